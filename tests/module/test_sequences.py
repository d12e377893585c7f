"""The forms of ragged batches: packed, lengths, nested; resets and cell states."""

import functools
import itertools
import sys

import native_programs
import pytest
import samples
import torch
from oracle import oracle
from samples import draw, every_route, with_gradients
from torch import nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

EXACT = {"rtol": 1e-12, "atol": 1e-12}
make = functools.partial(samples.make, num_layers=2, bidirectional=True)


@pytest.fixture(autouse=True)
def _no_nn_lstm(monkeypatch):
    monkeypatch.setattr(nn.LSTM, "forward", None)  # only a call that fits no engine may run it


def run(module, x, hx=None, **arguments):
    """Returns padded outputs, h_n, c_n, and gradients of parameters and states."""
    leaves = [t.requires_grad_() for t in (*module.parameters(), *(hx or ()))]
    output, (h_n, c_n) = module(x, hx, **arguments)
    if isinstance(output, PackedSequence):
        output, _ = rnn.pad_packed_sequence(output, batch_first=module.batch_first)
    return with_gradients([output, h_n, c_n], leaves)


@every_route
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, 1])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 5, 1, 4]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("with_state", [False, True])
def test_lengths_equal_packed_input(route, batch_first, proj_size, lengths, with_state):
    lstm = make(route, batch_first=batch_first, proj_size=proj_size)
    x = draw(route, 4, 5, 3) if batch_first else draw(route, 5, 4, 3)
    hx = (draw(route, 4, 4, proj_size or 4), draw(route, 4, 4, 4)) if with_state else None
    is_sorted = lengths == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, is_sorted)
    assert (packed.sorted_indices is None) == is_sorted
    by_packing = run(lstm, packed, hx)
    by_lengths = run(lstm, x, hx, lengths=torch.tensor(lengths))
    torch.testing.assert_close(by_lengths, by_packing, **EXACT)


@every_route
def test_full_lengths_change_nothing(route):
    lstm, x = make(route), draw(route, 5, 2, 3)
    torch.testing.assert_close(run(lstm, x, lengths=torch.tensor([5, 5])), run(lstm, x), **EXACT)


@every_route
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_nested_input_gives_the_results_of_lengths(route, batch_first, with_state):
    lstm, lengths = make(route, batch_first=batch_first, proj_size=2), torch.tensor([3, 0, 5])
    rows = [draw(route, length, 3).requires_grad_() for length in lengths]
    hx = (draw(route, 4, 3, 2), draw(route, 4, 3, 4)) if with_state else None
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    output, state = lstm(nested, hx)
    padded, expected_state = lstm(rnn.pad_sequence(rows, batch_first), hx, lengths=lengths)
    assert output.size(1) == nested.size(1)
    padded = padded if batch_first else padded.transpose(0, 1)
    expected = torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])
    torch.testing.assert_close((output.values(), state), (expected, expected_state), **EXACT)
    leaves = [*rows, *lstm.parameters()]
    assert_same_gradients(leaves, (output.values(), state), (expected, expected_state))


def assert_same_gradients(leaves, *calls):
    losses = [values.square().sum() + h_n.sum() for values, (h_n, _) in calls]
    found, expected = (torch.autograd.grad(loss, leaves) for loss in losses)
    torch.testing.assert_close(found, expected, **EXACT)


NESTED_MODULES = {
    "LayerNormLSTM": lambda: fastlstm.LayerNormLSTM(3, 3),
    "prepacked": lambda: fastlstm.prepack(fastlstm.LSTM(3, 3).eval()),
    "converted": lambda: fastlstm.convert(nn.LSTM(3, 3)),
    "compiled": lambda: torch.compile(fastlstm.LSTM(3, 3), fullgraph=True, backend="aot_eager"),
}


@pytest.mark.skipif(not fastlstm.has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize("name", NESTED_MODULES)
def test_nested_input_of_every_module(name):
    lstm, x, lengths = NESTED_MODULES[name](), torch.randn(6, 3, 3), torch.tensor([2, 6, 1])
    rows = [x[:length, b] for b, length in enumerate(lengths)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    output, state = lstm(nested)
    padded, expected = lstm(x, lengths=lengths)
    together = (output + nested).to_padded_tensor(0.0).transpose(0, 1)
    assert torch.equal(together, torch.where(padded != 0, padded + x, 0.0))
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_nested_rows_are_padded_to_the_longest(monkeypatch):
    """Also if rows have gaps between them, or if torch has not computed the longest length."""
    lstm, seen = fastlstm.LSTM(3, 3, num_layers=2), []
    compute = lstm._fastlstm_compute
    watch = lambda call: seen.append(call.input.shape) or compute(call)
    monkeypatch.setattr(lstm, "_fastlstm_compute", watch)
    monkeypatch.setattr(lstm, "_fastlstm_plain_weights", lambda: None)
    starts, lengths = torch.tensor([4, 0]), torch.tensor([2, 5])
    gaps = torch.nested.narrow(torch.randn(2, 9, 3), 1, starts, lengths, layout=torch.jagged)
    flat = torch.nested.nested_tensor_from_jagged(torch.randn(7, 3), torch.tensor([0, 2, 7]))
    for nested in (gaps, flat):
        lstm(lstm(nested)[0])
    assert seen == [(5, 2, 3)] * 4


@every_route
@pytest.mark.parametrize("batch_first", [False, True])
def test_nested_rows_with_holes_keep_their_offsets(route, batch_first):
    lstm, x = make(route, batch_first=batch_first), draw(route, 3, 6, 3)
    x[0, 3:], x[2, :2] = torch.nan, torch.nan  # the holes are never read
    x.requires_grad_()
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 4])
    nested = torch.nested.narrow(x, 1, starts, lengths, layout=torch.jagged)
    rows = [x[b, s : s + n] for b, (s, n) in enumerate(zip(starts, lengths, strict=True))]
    output, state = lstm(nested)
    whole, expected = lstm(torch.nested.as_nested_tensor(rows, layout=torch.jagged))
    assert output.offsets() is nested.offsets() and output.lengths() is nested.lengths()
    assert output.size(1) == nested.size(1) and not output.values()[3:14].any()
    torch.testing.assert_close(torch.cat(output.unbind()), whole.values(), **EXACT)
    torch.testing.assert_close(state, expected, **EXACT)
    leaves = [x, *lstm.parameters()]
    assert_same_gradients(leaves, (output.values(), state), (whole.values(), expected))


@every_route
def test_second_derivatives_of_nested_rows_are_an_error(route):
    """torch raises it: it cannot differentiate the gradient of a nested tensor's values."""
    lstm, rows = make(route), [draw(route, 4, 3), draw(route, 3, 3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).requires_grad_()
    output = lstm(nested)[0].values()
    (gradient,) = torch.autograd.grad(output.square().sum(), nested, create_graph=True)
    with pytest.raises(NotImplementedError):
        gradient.values().square().sum().backward()


def test_a_first_nested_call_logs_nothing():
    code = "import torch, fastlstm; rows = torch.nested.nested_tensor([torch.ones(2, 3)], "
    code += "layout=torch.jagged); fastlstm.LSTM(3, 4)(rows)"
    assert native_programs.check(sys.executable, "-W", "ignore", "-c", code) == ""


@every_route
def test_unbatched_lengths_and_reset(route):
    lstm, x = make(route), draw(route, 5, 3)
    reset = torch.tensor([False, False, True, False, True], device=route.device)
    given = {"lengths": torch.tensor([4]), "reset": reset[:, None], "return_cell_states": True}
    batched = lstm(x[:, None], **given)
    found = lstm(x, lengths=torch.tensor(4), reset=reset, return_cell_states=True)
    expected = batched[0][:, 0], tuple(s[:, 0] for s in batched[1]), batched[2][:, :, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_route
def test_a_reset_stops_a_nan(route):
    lstm = make(route, num_layers=1, bidirectional=False)
    x = draw(route, 4, 1, 3)
    hx = (torch.full((1, 1, 4), torch.nan).to(x), torch.full((1, 1, 4), torch.inf).to(x))
    reset = torch.arange(4, device=route.device)[:, None] == 0
    torch.testing.assert_close(lstm(x, hx, reset=reset), lstm(x), **EXACT)


@pytest.mark.skipif(not fastlstm.has_kernels("cpu"), reason="the extension is not built")
def test_a_plain_call_runs_no_more_python():
    for prepacks, bias, batch_first, both, proj_size in itertools.product(*[(False, True)] * 5):
        lstm = fastlstm.LSTM(3, 4, 1, bias, batch_first, 0.0, both, int(proj_size))
        lstm = fastlstm.prepack(lstm.eval()) if prepacks else lstm
        x = torch.randn(2, 5, 3) if batch_first else torch.randn(5, 2, 3)
        hx = tuple(torch.randn(1 + both, 2, size) for size in (proj_size or 4, 4))
        ragged = {"lengths": torch.tensor([5, 3]), "reset": torch.rand(x.shape[:2]) < 0.4}
        forms = (x, None, None, None), (x, hx, None, None), (x, hx, *ragged.values())
        expected = [lstm._fastlstm_call(*form, False) for form in forms]
        lstm._fastlstm_call = None
        found = [lstm(x), lstm(x, hx), lstm(x, hx, **ragged)]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_route
@pytest.mark.parametrize("proj_size", [0, 1])
def test_cell_states(route, proj_size):
    lstm = make(route, proj_size=proj_size)
    x, lengths = draw(route, 5, 3, 3), [5, 4, 2]
    _, (h_n, c_n), cells = lstm(x, lengths=torch.tensor(lengths), return_cell_states=True)
    assert cells.shape == (2, 5, 3, 8)
    for layer in range(2):
        for b, length in enumerate(lengths):
            assert torch.equal(cells[layer, length - 1, b, :4], c_n[2 * layer, b])
            assert torch.equal(cells[layer, 0, b, 4:], c_n[2 * layer + 1, b])
            assert cells[layer, length:, b].count_nonzero() == 0
    inputs = [x, torch.zeros_like(h_n[:2]), torch.zeros_like(c_n[:2]), list(lstm.parameters())]
    half = len(inputs[3]) // 2
    expected = oracle(*(t.cpu() for t in inputs[:3]), [w.cpu() for w in inputs[3][:half]], lengths)
    torch.testing.assert_close(cells[0].cpu(), torch.cat([*expected[3]], -1), **EXACT)
    packed = pack_padded_sequence(x, torch.tensor(lengths))
    _, _, packed_cells = lstm(packed, return_cell_states=True)
    flat = pack_padded_sequence(cells.movedim(0, 2), torch.tensor(lengths)).data
    torch.testing.assert_close(packed_cells, flat.movedim(1, 0), **EXACT)
    lstm.batch_first = True
    _, _, first = lstm(x.transpose(0, 1), lengths=torch.tensor(lengths), return_cell_states=True)
    assert torch.equal(first, cells.transpose(1, 2))
    assert torch.autograd.grad(cells.square().sum(), lstm.weight_hh_l0)[0].any()


@every_route
def test_cell_states_have_the_dtype_of_c_n(route):
    lstm = make(route, num_layers=1).bfloat16()
    _, (_, c_n), cells = lstm(draw(route, 3, 2, 3).bfloat16(), return_cell_states=True)
    assert cells.dtype == c_n.dtype == torch.bfloat16
