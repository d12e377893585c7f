"""prepack: the results of packed layers, bit by bit and against equations in Python."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from packed_layers import (
    LAYERS,
    SMALLER,
    calls,
    every_layer,
    every_weights,
    flat,
    make,
    packed,
    same,
    small,
)
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastlstm import LSTM, LSTMCell, _build

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_the_bits_of_the_unpacked_path(
    layer: tuple[int, int, dict[str, Any]], dtype: torch.dtype
) -> None:
    lstm = make(layer, dtype)
    frozen = packed(lstm)
    with torch.no_grad():
        for name, arguments, options in calls(lstm, dtype):
            assert same(frozen(*arguments, **options), lstm(*arguments, **options)), name


@pytest.mark.parametrize("sizes", [(1, 24), (33, 50), (64, 64)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_bits_of_an_unpacked_cell(
    sizes: tuple[int, int], bias: bool, dtype: torch.dtype
) -> None:
    """In bfloat16 rows may be summed in another order, so that the last bit differs: many rows, or
    any with AMX's tiles.
    """
    torch.manual_seed(0)
    on_tiles = "amx" in _build.library.build_info()["products"]["bfloat16"][0]
    cell = LSTMCell(*sizes, bias=bias, dtype=dtype).eval()
    frozen = packed(cell)
    with torch.no_grad():
        for batch in ((), (0,), (1,), (5,), (40,)):
            x = torch.randn(*batch, sizes[0], dtype=dtype)
            state = tuple(torch.randn(2, *batch, sizes[1], dtype=dtype))
            reorders = dtype == torch.bfloat16 and (on_tiles or batch == (40,))
            tolerance = {"rtol": 2.0**-7 if reorders else 0, "atol": 0}
            torch.testing.assert_close(frozen(x, state), cell(x, state), **tolerance)
            torch.testing.assert_close(frozen(x), cell(x), **tolerance)


def encoded(rows: Tensor, weights: Any) -> Tensor:
    """Rows [...,K] in float32 as a product takes them, in float64."""
    if weights == torch.bfloat16:
        return rows.bfloat16().double()
    largest = rows.abs().amax(-1, keepdim=True)
    quotient = torch.full_like(largest, 127) / largest  # 127 / largest would be rounded twice
    inverse = torch.where(largest > 2.0**-100, quotient, 0.0)
    return (rows * inverse).round().double() * (largest / 127).double()


def dequantized(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a packed layer in float64."""
    found = {}
    for name, tensor in state_dict.items():
        if not name.endswith("_scale"):
            found[name] = tensor.double()
            if (scale := state_dict.get(f"{name}_scale")) is not None:
                found[name] *= scale.double().unsqueeze(1)
    return found


def step(
    w: dict[str, Tensor], suffix: str, weights: Any, x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """The next h and c in float64."""
    from_x = encoded(x, weights) @ w[f"weight_ih{suffix}"].T
    from_h = encoded(h, weights) @ w[f"weight_hh{suffix}"].T
    a = from_x + from_h
    a = a + w.get(f"bias_ih{suffix}", 0) + w.get(f"bias_hh{suffix}", 0)
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * c.double() + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if f"weight_hr{suffix}" in w:
        h = encoded(h.float(), weights) @ w[f"weight_hr{suffix}"].T
    return h, c


@every_weights
@pytest.mark.parametrize("layer", [*LAYERS[:4], (200, 300, {}), (520, 30, {})], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 9, 60])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_step_against_plain_equations(
    layer: tuple[int, int, dict[str, Any]], weights: Any, batch: int, steps: int
) -> None:
    """From the state that the layer itself had before the step, in both directions."""
    input_size, H, options = layer
    lstm = make((input_size, H, options | {"bidirectional": True, "batch_first": False}))
    frozen = packed(lstm, weights)
    x = torch.randn(steps, batch, input_size) * torch.rand(batch, 1).exp2()
    h_0, c_0 = (torch.randn(2, batch, size) / 2 for size in (lstm.proj_size or H, H))
    output, _, cells = frozen(x, (h_0, c_0), return_cell_states=True)
    w = dequantized(frozen.state_dict())
    for d, suffix in enumerate(("_l0", "_l0_reverse")):
        h_of, c_of = output.chunk(2, -1)[d], cells[0].chunk(2, -1)[d]
        h, c = h_0[d], c_0[d]
        for t in reversed(range(steps)) if d else range(steps):
            h, c = step(w, suffix, weights, x[t], h, c)
            torch.testing.assert_close(c_of[t].double(), c, rtol=0, atol=3e-6)
            off = (h_of[t] - h).abs() > 3e-6
            # With a projection a value between two of int8 may be rounded to the other one.
            assert off.any(-1).float().mean() <= (0.03 if lstm.proj_size else 0), (t, d)
            assert (h_of[t] - h).abs().max() < 0.01
            h, c = h_of[t], c_of[t]


def doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return value.to(torch.float64)
    return tuple(doubled(v) for v in value)


@every_weights
@every_layer
def test_against_float64(layer: tuple[int, int, dict[str, Any]], weights: Any) -> None:
    lstm = make(layer)
    frozen, exact = packed(lstm, weights), copy.deepcopy(lstm).double()

    # Of the norm. Of 60 seeds bfloat16 errs by 0.0037 at most, with a projection, which is a second
    # product, by 0.0052; int8 by 0.012 and 0.016.
    bound = {torch.bfloat16: 0.004, torch.int8: 0.016}[weights]
    bound *= 1.5 if lstm.proj_size else 1
    with torch.no_grad():
        for name, arguments, options in calls(lstm, torch.float32):
            found = flat(frozen(*arguments, **options))
            expected = flat(exact(*doubled(arguments), **options))
            for y, z in zip(found, expected, strict=True):
                assert y.shape == z.shape and y.dtype == torch.float32, name
                assert (y - z).norm() <= bound * z.norm(), name


@every_weights
@every_layer
def test_every_form_of_a_call_gives_the_same(
    layer: tuple[int, int, dict[str, Any]], weights: Any
) -> None:
    """The bits of the dense batch: packed, with lengths, row by row, step by step, unbatched."""
    lstm = make(layer)
    frozen, T = packed(lstm, weights), 6
    dim = 0 if lstm.batch_first else 1
    x = torch.randn(*((5, T) if lstm.batch_first else (T, 5)), lstm.input_size)
    output, state = frozen(x)
    for b in range(5):
        one = frozen(x.narrow(dim, b, 1))
        assert torch.equal(one[0], output.narrow(dim, b, 1))
        assert same(one[1], [s[:, b : b + 1] for s in state])
        assert torch.equal(frozen(x.select(dim, b))[0], output.select(dim, b))
    lengths = torch.full((5,), T)
    assert same(frozen(x, lengths=lengths), (output, state))
    data = pack_padded_sequence(x, lengths, lstm.batch_first)
    expected = pack_padded_sequence(output, lengths, lstm.batch_first).data
    assert torch.equal(frozen(data)[0].data, expected)
    if not lstm.bidirectional:
        hx, steps = None, []
        for piece in x.split(1, 1 - dim):
            y, hx = frozen(piece, hx)
            steps.append(y)
        assert same((torch.cat(steps, 1 - dim), hx), (output, state))


@pytest.mark.parametrize("weights", [None, *SMALLER], ids=str)
@pytest.mark.parametrize("shape", [(6, 50, 70, 90), (1, 50, 70, 90), (9, 1, 300, 256)], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, int, int, int], weights: Any) -> None:
    T, B, input_size, H = shape
    frozen = packed(make((input_size, H, {"bidirectional": True})), weights)
    projected = packed(make((input_size, H, {"proj_size": 20})), weights)
    x, before = torch.randn(T, B, input_size), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append((frozen(x), projected(x)))
    finally:
        torch.set_num_threads(before)
    assert all(same(results, found[0]) for results in found[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[3]], ids=str)
def test_layers_of_16_bits_compute_as_float32_and_round(
    layer: tuple[int, int, dict[str, Any]], dtype: torch.dtype
) -> None:
    lstm = make(layer, dtype)
    wide = packed(copy.deepcopy(lstm).float(), torch.int8)
    for _, arguments, options in calls(lstm, dtype):
        if isinstance(arguments[0], Tensor):
            arguments32 = (
                arguments[0].float(),
                *(tuple(s.float() for s in p) for p in arguments[1:]),
            )
            expected = [y.to(dtype) for y in flat(wide(*arguments32, **options))]
            assert same(packed(lstm, torch.int8)(*arguments, **options), expected)


@every_weights
def test_rows_of_zeros_and_numbers_out_of_range(weights: Any) -> None:
    lstm = small(bias=False)
    frozen = packed(lstm, weights)
    x = torch.randn(3, 4, 6)
    x[:, 0], x[0, 1], x[1, 2, 0], x[2, 3, 0] = 0, 1e-42, 1e30, float("nan")
    output = frozen(x)[0]
    assert not output[:, 0].any()
    assert output[:, :3].isfinite().all()
    assert output[2, 3].isnan().all() and not output[:2].isnan().any()
    lstm.weight_ih_l0.data[3] = 0  # a row without a scale
    assert packed(lstm, weights)(x[:, :3])[0].isfinite().all()


def test_a_row_with_an_infinity_saturates_as_in_float32() -> None:
    lstm = small()
    for weight in lstm.parameters():
        weight.data += 0.2 * weight.data.sign()  # none rounds to zero, which no infinity passes
    x = torch.randn(2, 4, 6)
    x[0, 0, 0], x[0, 1, 2], x[1, 2, 3] = torch.inf, -torch.inf, torch.inf
    found, expected = packed(lstm, torch.int8)(x)[0], lstm(x)[0]
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@every_weights
def test_negated_views_and_zero_tensors(weights: Any) -> None:
    """Tensors that do not hold their values, given to calls past the dispatcher."""
    lstm, cell = small(), LSTMCell(6, 10).eval()
    x, h, c = torch.randn(3, 4, 6), torch.randn(1, 4, 10), torch.randn(1, 4, 10)
    calls = ((lstm, (x, (h, c))), (cell, (x[0], (h[0], c[0]))))
    for layer, args in ((packed(layer, weights), args) for layer, args in calls):
        x_, (h_, c_) = args
        negated = (torch._neg_view(-x_), (torch._neg_view(-h_), torch._neg_view(-c_)))
        assert same(layer(*negated), layer(*args))
        zero = torch._efficientzerotensor(x_.shape)
        assert same(layer(zero, (h_, c_)), layer(torch.zeros_like(x_), (h_, c_)))
    given = {name: torch._neg_view(-tensor) for name, tensor in lstm.state_dict().items()}
    layer = packed(LSTM(6, 10).eval(), weights)
    layer.load_state_dict(given)
    assert same(layer(x), packed(lstm, weights)(x))
