"""One way for every plain call: it passes few Python functions, and an error in it comes once."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.modules.cell import CellModule
from fastlstm.modules.lstm import SequenceModule

T, B, I, H = 4, 3, 5, 6
FOLDER = str(Path(fastlstm.__file__).parent)
pytestmark = pytest.mark.skipif(not fastlstm.has_kernels("cpu"), reason="no CPU kernels")

LSTMS = {
    "LSTM": fastlstm.LSTM,
    "converted": lambda *args, **options: fastlstm.convert(nn.LSTM(*args, **options)),
    "prepacked": lambda *args, **options: fastlstm.prepack(fastlstm.LSTM(*args, **options).eval()),
    "prepacked in int8": lambda *args, **options: fastlstm.prepack(
        fastlstm.LSTM(*args, **options).eval(), torch.int8
    ),
}
CELLS = {
    "LSTMCell": fastlstm.LSTMCell,
    "converted": lambda *args: fastlstm.convert(nn.LSTMCell(*args)),
    "prepacked": lambda *args: fastlstm.prepack(fastlstm.LSTMCell(*args).eval()),
}
OPTIONS = {
    "one layer": {},
    "batch first": {"batch_first": True},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2, "dropout": 0.5},
    "all": {"num_layers": 3, "bidirectional": True, "batch_first": True, "proj_size": 2},
    "no bias, an int as dropout": {"bias": False, "dropout": 0},
}
FORMS = [
    "padded",
    "unbatched",
    "sorted",
    "unsorted",
    "lengths",
    "reset",
    "lengths and reset",
    "reset of numbers",
]


def arguments(lstm, form, has_state):
    """The arguments of a call of one form, and its options."""
    x, options = torch.randn(T, B, I), {}
    if form == "unbatched":
        x = x[:, 0]
    elif "sorted" in form:
        lengths = torch.tensor([T, 2, 1] if form == "sorted" else [1, T, 2])
        x = pack_padded_sequence(x, lengths, enforce_sorted=form == "sorted")
    elif lstm.batch_first:
        x = x.transpose(0, 1)
    if "lengths" in form:
        options["lengths"] = torch.tensor([0, T, 2], dtype=torch.int32)
    if "reset" in form:
        options["reset"] = torch.rand(x.shape[:2]) < 0.5
    if "numbers" in form:
        options["reset"] = options["reset"].double()
    rows = lstm.num_layers * (2 if lstm.bidirectional else 1)
    batch = () if form == "unbatched" else (B,)
    sizes = lstm.proj_size or H, H
    return (x, tuple(torch.randn(rows, *batch, n) for n in sizes) if has_state else None), options


def plain_calls():
    """Every plain form as a function that makes the call, by a name."""
    calls = {}
    for kind, make in LSTMS.items():
        for name, options in OPTIONS.items():
            lstm = make(I, H, **options)
            for form in FORMS:
                for has_state in (False, True):
                    given = arguments(lstm, form, has_state)
                    run = lambda lstm=lstm, given=given: lstm(*given[0], **given[1])
                    calls[f"{kind}, {name}, {form}, {'with' * has_state} state"] = run
    for kind, make in CELLS.items():
        for shape in ((), (B,)):
            cell = make(I, H)
            x, h, c = torch.randn(*shape, I), torch.randn(*shape, H), torch.randn(*shape, H)
            calls[f"cell {kind}, {shape}"] = lambda cell=cell, x=x: cell(x)
            calls[f"cell {kind}, {shape}, state"] = lambda cell=cell, x=x, h=h, c=c: cell(x, (h, c))
    return calls


def run_with(mode, run):
    if mode == "training":
        return run()
    with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
        return run()


def functions_of(run):
    """The file and name of each function of fastlstm that a call passes."""
    seen = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(FOLDER):
            seen.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
def test_a_plain_call_passes_three_functions_in_two_files(mode):
    for name, run in plain_calls().items():
        seen = functions_of(lambda run=run: run_with(mode, run))
        assert len(seen) <= 3 and len({file for file, _ in seen}) <= 2, (name, seen)


@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
def test_no_plain_call_needs_the_general_path(mode, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("this call is not plain")

    for module in (SequenceModule, CellModule):
        monkeypatch.setattr(module, "_fastlstm_call", refuse)
    for run in plain_calls().values():
        run_with(mode, run)
    with pytest.raises(AssertionError, match="not plain"):
        fastlstm.LSTM(I, H)(torch.randn(T, B, I), return_cell_states=True)


def test_the_general_path_gives_the_same_bits(monkeypatch):
    """Results, gradients and random numbers of both paths are equal."""
    calls = plain_calls()

    def results(run):
        torch.manual_seed(1)
        output, state = run()
        return [*([output.data] if isinstance(output, tuple) else [output]), *state]

    plain = {name: results(run) for name, run in calls.items()}
    for name in ("plain_lstm", "plain_lstm_cell"):
        refuse = lambda *arguments: NotImplemented
        monkeypatch.setattr(fastlstm._build.library, name, refuse)
    for name, run in calls.items():
        for ours, general in zip(plain[name], results(run), strict=True):
            assert torch.equal(ours, general), name
            assert ours.stride() == general.stride(), name


@pytest.mark.parametrize("make", [fastlstm.LSTM, fastlstm.LSTMCell])
@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError])
def test_an_error_of_a_saved_tensor_hook_comes_once(make, error):
    calls = []

    def pack(tensor):
        calls.append(tensor)
        raise error("a hook of the user")

    x = torch.randn(T, B, I) if make is fastlstm.LSTM else torch.randn(B, I)
    module, message = make(I, H), "^a hook of the user"
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, pytest.raises(error, match=message):
        module(x)
    assert len(calls) == 1


@pytest.mark.parametrize("make", [fastlstm.LSTM, fastlstm.LSTMCell])
@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_an_error_of_a_parametrization_comes_once(make, error):
    calls, fails = [], []

    class Fails(nn.Module):
        def forward(self, weight):
            calls.append(weight)
            if fails:
                raise error("a parametrization of the user")
            return weight

    module = make(I, H)
    name = "weight_hh_l0" if make is fastlstm.LSTM else "weight_hh"
    parametrize.register_parametrization(module, name, Fails(), unsafe=True)
    calls.clear()
    fails.append(True)
    with pytest.raises(error, match="^a parametrization of the user"):
        module(torch.randn(T, B, I) if make is fastlstm.LSTM else torch.randn(B, I))
    assert len(calls) == 1


@pytest.mark.parametrize("num_layers", [1, 2])
def test_an_error_for_memory_comes_once(num_layers):
    """The state would have 2 ** 52 bytes."""
    lstm = fastlstm.LSTM(1, 1, num_layers)
    x = torch.zeros(1, 1, 1).expand(1, 2**50, 1)

    def run():
        with torch.no_grad(), pytest.raises(RuntimeError, match="memory"):
            lstm(x)

    names = [name for _, name in functions_of(run)]
    assert names.count("forward") == 1 and "_fastlstm_call" not in names


def test_wrong_arguments_are_not_plain():
    """The extension answers NotImplemented to whatever nn.LSTM may refuse, and raises nothing."""
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    run = fastlstm._build.library.plain_lstm
    source = lstm._fastlstm_plain_weights()
    wrong = None, 3, [x], x.numpy(), x.double(), x[..., 1:], x[0, 0], x[:0], x.to("meta"), "x"
    for value in (*wrong, x.to_sparse(), x.long(), torch.nested.nested_tensor([x[0]])):
        assert run(lstm, source, value, None, None, None) is NotImplemented
        for options in ((value, None, None), (None, value, None), (None, None, value)):
            if value is not None:
                assert run(lstm, source, x, *options) is NotImplemented
    for name, value in {"hidden_size": 2**70, "num_layers": -1, "dropout": 2.0, "bias": 1}.items():
        changed = copy.deepcopy(lstm)
        setattr(changed, name, value)
        assert run(changed, source, x, None, None, None) is NotImplemented
        delattr(changed, name)
        assert run(changed, source, x, None, None, None) is NotImplemented
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="^a property$"):
            run(Failing(error), source, x, None, None, None)


class Failing:
    """An object whose attributes raise an error."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        raise self.error("a property")


def test_an_overridden_permute_hidden_is_called():
    class Doubles(fastlstm.LSTM):
        def permute_hidden(self, hx, permutation):
            return super().permute_hidden((2 * hx[0], hx[1]), permutation)

    x, hx = torch.randn(T, B, I), (torch.randn(1, B, H), torch.randn(1, B, H))
    packed = pack_padded_sequence(x, torch.tensor([1, T, 2]), enforce_sorted=False)
    own, plain = Doubles(I, H), fastlstm.LSTM(I, H)
    own.load_state_dict(plain.state_dict())
    on_instance = copy.deepcopy(plain)
    on_instance.permute_hidden = lambda hx, p: plain.permute_hidden((2 * hx[0], hx[1]), p)
    for lstm in (own, on_instance):
        for given in (x, packed):
            expected = plain(given, (2 * hx[0], hx[1]))[1]
            h_n, c_n = lstm(given, hx)[1]
            assert torch.equal(h_n, 2 * expected[0]) and torch.equal(c_n, expected[1])
