"""`prepack`: results of packed weights, what is saved and loaded, and what is refused."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import (
    LSTM,
    LayerNormLSTM,
    LSTMCell,
    PackedLSTM,
    PackedLSTMCell,
    _build,
    prepack,
)

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")

SMALLER = [torch.bfloat16, torch.int8]
# input_size, hidden_size, options: whole and ragged vectors, pairs and fours.
LAYERS: list[tuple[int, int, dict[str, Any]]] = [
    (1, 24, {}),
    (33, 50, {"batch_first": True}),
    (64, 64, {"bias": False}),
    (40, 100, {"proj_size": 30}),
    (24, 37, {"num_layers": 2, "bidirectional": True}),
    (7, 20, {"num_layers": 2, "bidirectional": True, "proj_size": 5, "batch_first": True}),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
every_weights = pytest.mark.parametrize("weights", SMALLER, ids=str)
kinds_and_weights = pytest.mark.parametrize(
    ("kind", "weights"),
    [
        *((LSTM, weights) for weights in SMALLER),
        *((LayerNormLSTM, weights) for weights in (torch.float32, *SMALLER)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)


def make(
    layer: tuple[int, int, dict[str, Any]],
    dtype: torch.dtype = torch.float32,
    kind: type[LSTM] = LSTM,
) -> LSTM:
    torch.manual_seed(0)
    return with_any_norms(kind(*layer[:2], **layer[2], dtype=dtype)).eval()


def with_any_norms(lstm: LSTM) -> LSTM:
    for name, parameter in lstm.named_parameters():
        if name.startswith(("gain_", "bias_c_")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return lstm


def small(**options: Any) -> LSTM:
    return make((6, 10, options))


def packed(lstm: nn.Module, weights: torch.dtype | None = None) -> Any:
    return prepack(copy.deepcopy(lstm), weights)


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for part in results for tensor in flat(part)]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def calls(lstm: LSTM, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every form of a call: its name, arguments and options."""
    T, B = 7, 5
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def sequence(steps: int, batch: int) -> Tensor:
        x = draw(steps, batch, lstm.input_size)
        return x.transpose(0, 1).contiguous() if lstm.batch_first else x

    count = lstm.num_layers * (2 if lstm.bidirectional else 1)

    def state(*batch: int) -> tuple[Tensor, Tensor]:
        sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
        h, c = (draw(count, *batch, size) for size in sizes)
        return h, c

    x, lengths = sequence(T, B), torch.tensor([3, 7, 0, 1, 5])
    reset = torch.rand(*x.shape[:2], generator=generator) < 0.3
    yield "dense", (x,), {}
    yield "state", (x, state(B)), {}
    yield "cells", (x, state(B)), {"return_cell_states": True}
    yield "lengths", (x, state(B)), {"lengths": lengths, "return_cell_states": True}
    yield "reset", (x, state(B)), {"reset": reset}
    yield "both", (x,), {"reset": reset, "lengths": lengths}
    for batch in (1, B, 60):
        yield f"a step of {batch}", (sequence(1, batch), state(batch)), {}
    strided = state(2 * B)
    yield "strided", (sequence(1, B), tuple(s[:, ::2] for s in strided)), {}
    yield "batch 0", (sequence(T, 0),), {}
    yield "unbatched", (draw(T, lstm.input_size), state()), {"return_cell_states": True}
    for enforce_sorted in (True, False):
        sizes = lengths.sort(descending=True)[0] if enforce_sorted else lengths
        found = pack_padded_sequence(x, sizes.clamp_min(1), lstm.batch_first, enforce_sorted)
        yield f"packed, sorted {enforce_sorted}", (found, state(B)), {"return_cell_states": True}


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
    any with oneDNN's products.
    """
    torch.manual_seed(0)
    onednn = "oneDNN" in _build.library.build_info()["products"]["bfloat16"][0]
    cell = LSTMCell(*sizes, bias=bias, dtype=dtype).eval()
    frozen = packed(cell)
    with torch.no_grad():
        for batch in ((), (0,), (1,), (5,), (40,)):
            x = torch.randn(*batch, sizes[0], dtype=dtype)
            state = tuple(torch.randn(2, *batch, sizes[1], dtype=dtype))
            reorders = dtype == torch.bfloat16 and (onednn or batch == (40,))
            tolerance = {"rtol": 2.0**-7 if reorders else 0, "atol": 0}
            torch.testing.assert_close(frozen(x, state), cell(x, state), **tolerance)
            torch.testing.assert_close(frozen(x), cell(x), **tolerance)


# The reference of weights in fewer bits.


def encoded(rows: Tensor, weights: torch.dtype) -> Tensor:
    """Rows [...,K] in float32 as a product takes them, in float64."""
    if weights == torch.float32:
        return rows.double()
    if weights == torch.bfloat16:
        return rows.bfloat16().double()
    largest = rows.abs().amax(-1, keepdim=True)
    quotient = torch.full_like(largest, 127) / largest  # 127 / largest would be rounded twice
    inverse = torch.where(largest > 2.0**-100, quotient, 0.0)
    return (rows * inverse).round().double() * (largest / 127).double()


def dequantized(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a packed layer in float64."""
    return {
        name: tensor.double() * state_dict[f"{name}_scale"].double().unsqueeze(1)
        if f"{name}_scale" in state_dict
        else tensor.double()
        for name, tensor in state_dict.items()
        if not name.endswith("_scale")
    }


def step(
    w: dict[str, Tensor], suffix: str, weights: torch.dtype, x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """The next h and c in float64."""
    from_x = encoded(x, weights) @ w[f"weight_ih{suffix}"].T
    from_h = encoded(h, weights) @ w[f"weight_hh{suffix}"].T
    normalizes = f"gain_c{suffix}" in w
    if normalizes:
        from_x = normed(from_x) * w[f"gain_ih{suffix}"]
        from_h = normed(from_h) * w[f"gain_hh{suffix}"]
    a = from_x + from_h
    a = a + w.get(f"bias_ih{suffix}", 0) + w.get(f"bias_hh{suffix}", 0)
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * c.double() + i.sigmoid() * g.tanh()
    shown = normed(c) * w[f"gain_c{suffix}"] + w[f"bias_c{suffix}"] if normalizes else c
    h = o.sigmoid() * shown.tanh()
    if f"weight_hr{suffix}" in w:
        h = encoded(h.float(), weights) @ w[f"weight_hr{suffix}"].T
    return h, c


def normed(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@kinds_and_weights
@pytest.mark.parametrize("layer", [*LAYERS[:4], (200, 300, {}), (520, 30, {})], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 9, 60])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_step_against_plain_equations(
    kind: type[LSTM],
    layer: tuple[int, int, dict[str, Any]],
    weights: torch.dtype,
    batch: int,
    steps: int,
) -> None:
    """From the state that the layer itself had before the step, in both directions."""
    input_size, H, options = layer
    lstm = make((input_size, H, options | {"bidirectional": True, "batch_first": False}), kind=kind)
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
            # Layer normalization divides the error of c by its deviation.
            deviation = 1.0 if kind is LSTM else c.std(-1, keepdim=True)
            off = (h_of[t] - h).abs() * deviation > 3e-6
            # With a projection a value between two of int8 may be rounded to the other one; more
            # of them with layer normalization, which divides errors by a deviation of about 0.3.
            share = 0.03 if kind is LSTM else 0.1
            assert off.any(-1).float().mean() <= (share if lstm.proj_size else 0), (t, d)
            assert (h_of[t] - h).abs().max() < 0.01
            h, c = h_of[t], c_of[t]


@pytest.mark.parametrize("weights", [torch.float32, *SMALLER], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_random_draws_of_layer_norm_keep_the_bound_of_a_step(
    seed: int, weights: torch.dtype
) -> None:
    """docs/numerics.md states it. Of 150 seeds c has half of it at most, h a sixth."""
    draw = random.Random(seed)
    input_size, H, batch = draw.randint(1, 60), draw.randint(1, 60), draw.randint(1, 12)
    frozen = packed(make((input_size, H, {}), kind=LayerNormLSTM), weights)
    torch.manual_seed(seed)
    x = torch.randn(20, batch, input_size) * 2 ** draw.uniform(-6, 6)
    h, c = torch.randn(batch, H) / 2, torch.randn(batch, H)
    output, _, cells = frozen(x, (h[None], c[None]), return_cell_states=True)
    w = dequantized(frozen.state_dict())

    def growth(rows: Tensor, of: str) -> Tensor:
        """By how much a norm enlarges the rounding of the sums before it."""
        a, weight = encoded(rows, weights), w[f"weight_{of}_l0"].T
        terms = (a.abs() @ weight.abs()).amax(-1)
        return terms * w[f"gain_{of}_l0"].abs().max() / ((a @ weight).var(-1, False) + 1e-5).sqrt()

    for x_t, h_t, c_t in zip(x, output, cells[0], strict=True):
        h_true, c_true = step(w, "_l0", weights, x_t, h, c)
        of_gates = torch.finfo(torch.float32).eps * (1 + growth(x_t, "ih") + growth(h, "hh"))
        of_c = w["gain_c_l0"].abs().max() / (c_true.var(-1, False) + 1e-5).sqrt()
        assert ((c_t - c_true).abs().amax(-1) <= of_gates).all()
        assert ((h_t - h_true).abs().amax(-1) <= of_gates * (1 + of_c)).all()
        h, c = h_t, c_t


def doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return value.to(torch.float64)
    return tuple(doubled(v) for v in value)


@every_weights
@every_layer
def test_against_float64(layer: tuple[int, int, dict[str, Any]], weights: torch.dtype) -> None:
    lstm = make(layer)
    frozen, exact = packed(lstm, weights), copy.deepcopy(lstm).double()

    # Of the norm. Of 60 seeds bfloat16 errs by 0.0037 at most, with a projection, which is a second
    # product, by 0.0052; int8 by 0.012 and 0.016.
    bound = {torch.bfloat16: 0.004, torch.int8: 0.016}[weights] * (1.5 if lstm.proj_size else 1)
    with torch.no_grad():
        for name, arguments, options in calls(lstm, torch.float32):
            found = flat(frozen(*arguments, **options))
            expected = flat(exact(*doubled(arguments), **options))
            for y, z in zip(found, expected, strict=True):
                assert y.shape == z.shape and y.dtype == torch.float32, name
                assert (y - z).norm() <= bound * z.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@every_layer
def test_layer_norm_errs_as_the_unpacked_path_does(
    layer: tuple[int, int, dict[str, Any]], dtype: torch.dtype
) -> None:
    """Of 300 seeds of a single row, packed errs 1.4 times as much in the median, 2.9 at worst."""
    lstm = make(layer, dtype, LayerNormLSTM)
    frozen, exact = packed(lstm), copy.deepcopy(lstm).double()
    with torch.no_grad():
        for name, arguments, options in calls(lstm, dtype):
            found, unpacked = (flat(m(*arguments, **options)) for m in (frozen, lstm))
            expected = flat(exact(*doubled(arguments), **options))
            for y, z, w in zip(found, unpacked, expected, strict=True):
                assert y.shape == z.shape and y.dtype == z.dtype, name
                roundoff = (1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps) * w.norm()
                assert (y - w).norm() <= 3 * (z - w).norm() + roundoff, name


@kinds_and_weights
@every_layer
def test_every_form_of_a_call_gives_the_same(
    kind: type[LSTM], layer: tuple[int, int, dict[str, Any]], weights: torch.dtype
) -> None:
    """The bits of the dense batch: packed, with lengths, row by row, step by step, unbatched."""
    lstm = make(layer, kind=kind)
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
def test_threads_do_not_change_a_bit(
    shape: tuple[int, int, int, int], weights: torch.dtype | None
) -> None:
    T, B, input_size, H = shape
    frozen = packed(make((input_size, H, {"bidirectional": True})), weights)
    projected = packed(make((input_size, H, {"proj_size": 20})), weights)
    normalized = packed(make((input_size, H, {"proj_size": 20}), kind=LayerNormLSTM), weights)
    x, before = torch.randn(T, B, input_size), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append((frozen(x), projected(x), normalized(x)))
    finally:
        torch.set_num_threads(before)
    assert all(same(results, found[0]) for results in found[1:])


@pytest.mark.parametrize("kind", [LSTM, LayerNormLSTM])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[3]], ids=str)
def test_layers_of_16_bits_compute_as_float32_and_round(
    kind: type[LSTM], layer: tuple[int, int, dict[str, Any]], dtype: torch.dtype
) -> None:
    lstm = make(layer, dtype, kind)
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
def test_rows_of_zeros_and_numbers_out_of_range(weights: torch.dtype) -> None:
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


def test_a_row_with_an_infinity_saturates_in_int8_as_in_float32() -> None:
    lstm = small()
    x = torch.randn(2, 4, 6)
    x[0, 0, 0], x[0, 1, 2], x[1, 2, 3] = torch.inf, -torch.inf, torch.inf
    found, expected = packed(lstm, torch.int8)(x)[0], lstm(x)[0]
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@every_weights
def test_negated_views_and_zero_tensors(weights: torch.dtype) -> None:
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


# What is saved and loaded.


class Tagger(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = LSTM(16, 32, num_layers=2, bidirectional=True, **options)
        self.norm = with_any_norms(LayerNormLSTM(64, 32, bidirectional=True))
        self.cell = LSTMCell(64, 24)
        self.linear = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.cell(self.norm(self.lstm(x)[0])[0][-1])[0])


def tagger(seed: int = 0, weights: torch.dtype | None = None, **options: Any) -> Tagger:
    torch.manual_seed(seed)
    return prepack(Tagger(**options).eval(), weights)


X = torch.linspace(-1, 1, 5 * 3 * 16).view(5, 3, 16)


@pytest.mark.parametrize("weights", [None, *SMALLER], ids=str)
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy", "copy", "save", "safetensors"])
def test_round_trips(way: str, weights: torch.dtype | None, tmp_path: Path) -> None:
    model = tagger(weights=weights)
    if way == "state_dict":
        other = tagger(1, weights)
        other.load_state_dict(model.state_dict())
    elif way == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_model(model, tmp_path / "model.safetensors")
        other = tagger(1, weights)
        safetensors.load_model(other, tmp_path / "model.safetensors")
    elif way == "save":
        torch.save(model, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
    else:
        other = {
            "pickle": lambda: pickle.loads(pickle.dumps(model)),
            "deepcopy": lambda: copy.deepcopy(model),
            "copy": lambda: copy.copy(model),
        }[way]()
    assert torch.equal(other(X), model(X)) and repr(other) == repr(model)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert same(list(other.state_dict().values()), list(model.state_dict().values()))
    tensors = other.lstm.state_dict()
    other.lstm.load_state_dict({name: torch.zeros_like(t) for name, t in tensors.items()})
    assert (way == "copy") == torch.equal(
        other(X), model(X)
    )  # weights of its own, but a shallow one


def test_the_names_of_the_state_dict() -> None:
    names = Tagger().state_dict().keys()
    assert tagger().state_dict().keys() == names
    assert tagger(weights=torch.bfloat16).state_dict().keys() == names
    of_int8 = {n for n in names if "weight" in n and "linear" not in n}
    found = tagger(weights=torch.int8).state_dict()
    assert found.keys() == names | {f"{n}_scale" for n in of_int8}
    assert all(found[n].dtype == torch.int8 and found[f"{n}_scale"].dim() == 1 for n in of_int8)


@pytest.mark.parametrize("source", [None, *SMALLER], ids=str)
@pytest.mark.parametrize("target", [None, *SMALLER], ids=str)
def test_a_dict_of_any_kind_into_any_kind(
    source: torch.dtype | None, target: torch.dtype | None
) -> None:
    """As if the layer that the weights came back to had been packed."""
    model = tagger(weights=source)
    loaded = tagger(1, target)
    assert str(loaded.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    expected = prepack(fastlstm.unpack(copy.deepcopy(model)), target)
    assert torch.equal(loaded(X), expected(X))


def test_a_model_before_packing_into_one_of_int8() -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    loaded = tagger(1, torch.int8)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(X), packed(model, torch.int8)(X))


def test_quantized_again_it_is_the_same() -> None:
    model = tagger(weights=torch.int8)
    again = prepack(fastlstm.unpack(copy.deepcopy(model)), torch.int8)
    a, b = model.state_dict(), again.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a if not n.endswith("_scale"))
    torch.testing.assert_close(a, b)


def load_errors(module: nn.Module, state_dict: dict[str, Tensor], **options: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state_dict, **options)
    return re.sub("(Packed)?LSTM", "LSTM", str(caught.value))


def test_what_does_not_fit_is_reported_as_by_a_module() -> None:
    lstm = small(num_layers=2)
    given = {**lstm.state_dict(), "weight_hh_l0": torch.zeros(3, 4), "weight_hr_l0": torch.ones(1)}
    given |= {"bias_ih_l1": torch.zeros(2)}
    del given["weight_ih_l1"]
    assert load_errors(packed(lstm), given) == load_errors(copy.deepcopy(lstm), given)
    frozen = packed(lstm)
    result = frozen.load_state_dict({"weight_hh_l0": lstm.weight_hh_l0 * 2}, strict=False)
    expected = copy.deepcopy(lstm)
    expected.load_state_dict({"weight_hh_l0": lstm.weight_hh_l0 * 2}, strict=False)
    assert set(result.missing_keys) == set(lstm.state_dict()) - {"weight_hh_l0"}
    assert same(frozen(X[..., :6]), expected(X[..., :6]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("weight_hh_l0_scale"), 'Missing key(s) .*: "weight_hh_l0_scale"'),
        (lambda d: d.update(weight_hh_l0_scale=torch.ones(3)), "size mismatch for weight_hh_l0_"),
        (
            lambda d: d["weight_hh_l0_scale"].fill_(float("nan")),
            "weight_hh_l0_scale: expected finite scales, got nan",
        ),
        (
            lambda d: d["weight_hh_l0"][2].fill_(-128),
            "weight_hh_l0: expected int8 weights from -127 to 127, got -128",
        ),
        (
            lambda d: d.update(weight_hh_l0=torch.full((40, 10), float("inf"))),
            "weight_hh_l0: expected finite weights to make int8 of them, got inf",
        ),
        (lambda d: d.update(weight_hh_l1=torch.ones(1)), 'Unexpected key(s) .*: "weight_hh_l1"'),
        (lambda d: d.update(weight_hh_l0="x"), "weight_hh_l0: expected a tensor, .* got str"),
    ],
)  # fmt: skip
def test_int8_that_cannot_be_right(change: Callable[[Any], Any], message: str) -> None:
    frozen = packed(small(), torch.int8)
    given = frozen.state_dict()
    before = frozen(X[..., :6])
    change(given)
    assert re.search(message.replace("(s)", r"\(s\)"), load_errors(frozen, given))
    assert same(frozen(X[..., :6]), before)
    inside = {f"lstm.{name}": tensor for name, tensor in given.items()}  # in a model
    message = re.sub("((weight|bias)_)", r"lstm.\1", message.replace("(s)", r"\(s\)"))
    assert re.search(message, load_errors(in_a_model(lstm=frozen), inside))


@pytest.mark.parametrize("kind", [LSTM, LSTMCell, LayerNormLSTM])
def test_an_ordinary_layer_refuses_int8(kind: type[nn.Module]) -> None:
    model = in_a_model(lstm=kind(6, 10).eval())
    given = prepack(copy.deepcopy(model), torch.int8).state_dict()
    with pytest.raises(RuntimeError, match=r"lstm\.weight_ih.*: expected floating-point .* int8"):
        model.load_state_dict(given, strict=False)


@pytest.mark.parametrize(
    "scale", [torch.ones(3), torch.ones(40, dtype=torch.int64), torch.ones(40, 1)], ids=str
)
def test_a_scale_that_does_not_fit(scale: Tensor) -> None:
    with pytest.raises(RuntimeError, match="expected a scale of float32 for each of 40 rows"):
        _build.library.pack_weight(torch.ones(40, 10, dtype=torch.int8), scale, "int8", True)


def test_int8_takes_a_quarter() -> None:
    lstm = make((256, 256, {}))

    def on_disk(module: nn.Module) -> int:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        return file.tell()

    def in_memory(module: nn.Module) -> int:
        return sum(b.nbytes for b in module.buffers())

    whole = on_disk(lstm)
    for weights, share in ((torch.float32, 1), (torch.bfloat16, 0.5), (torch.int8, 0.25)):
        frozen = packed(lstm, weights)
        assert share * 0.98 < on_disk(frozen) / whole < share * 1.05
        assert share * 0.98 < in_memory(frozen) / whole < share * 1.05


NEW_PROCESS = """
import sys, torch, fastlstm
sys.path.insert(0, sys.argv[1])
from test_packed import Tagger, X
model = fastlstm.prepack(Tagger().eval(), torch.int8)
model.load_state_dict(torch.load(f"{sys.argv[2]}/state.pt"))
unpickled = torch.load(f"{sys.argv[2]}/model.pt", weights_only=False)
columns = fastlstm._build.library.build_info()["products"]["float32"][2]
torch.save((columns, model(X), unpickled(X)), f"{sys.argv[2]}/y.pt")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_saved_here_and_loaded_by_another_processor(capability: str, tmp_path: Path) -> None:
    model = tagger(weights=torch.int8)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    done = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, Path(__file__).parent, tmp_path],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    columns, loaded, unpickled = torch.load(tmp_path / "y.pt")
    assert columns != _build.library.build_info()["products"]["float32"][2]
    assert torch.equal(loaded, unpickled)
    torch.testing.assert_close(loaded, model(X), rtol=0, atol=1e-5)  # other sigmoids


def test_threads_share_a_model() -> None:
    model = tagger(weights=torch.int8)
    inputs = [X * k for k in range(8)]
    expected = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert same(list(pool.map(model, inputs)), expected)


def _put(model: nn.Module, results: Any) -> None:
    torch.set_num_threads(1)
    results.put(model(X).tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_model(method: str) -> None:
    model = tagger(weights=torch.int8).share_memory()
    assert all(buffer.is_shared() for buffer in model.lstm.buffers())
    context = mp.get_context(method)
    results = context.Queue()
    process = context.Process(target=_put, args=(model, results))
    process.start()
    found = results.get(timeout=60)
    process.join()
    assert found == model(X).tolist()


# What is refused.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.train(), RuntimeError, "PackedLSTM has no training mode: its weights"),
        (lambda m: m.half(), RuntimeError, "cannot be moved to torch.float16 on cpu"),
        (lambda m: m.to(torch.float64), RuntimeError, "packed for torch.float32 on the CPU"),
        (lambda m: m.to("meta"), RuntimeError, r"fastlstm.unpack\(model\)"),
        (lambda m: m.weight_ih_l0, AttributeError, r"weight_ih_l0 is packed; state_dict\(\)"),
        (lambda m: m.bias_hh_l0, AttributeError, "bias_hh_l0 is packed"),
        (lambda m: m.no_such, AttributeError, "no attribute 'no_such'"),
        (
            lambda m: setattr(m, "weight_ih_l0", nn.Parameter(torch.zeros(40, 6))),
            AttributeError,
            "weight_ih_l0 is packed; load_state_dict replaces it",
        ),
        (
            lambda m: torch.func.functional_call(m, {"weight_ih_l0": torch.zeros(40, 6)}, X),
            AttributeError,
            "is packed",
        ),
        (lambda m: m(X), ValueError, "expected input of dtype torch.float32 and 6 features.* 16"),
        (lambda m: m(X[..., :6].double()), ValueError, "got torch.float64 and 6"),
        (lambda m: m(X[..., :6].bfloat16()), ValueError, "got torch.bfloat16 and 6"),
        (lambda m: m(X[..., :6], torch.zeros(1, 3, 10)), IndexError, "out of bounds"),
        (
            lambda m: m(X[..., :6], (torch.zeros(1, 3, 9),) * 2),
            ValueError,
            "PackedLSTM: expected h and c of 10 and 10 features, got 9 and 9",
        ),
        (lambda m: m(X[..., :6], (torch.zeros(1, 4, 10),) * 2), RuntimeError, "h_0 of shape"),
        (lambda m: m(X[..., :6], (torch.zeros(2, 3, 10),) * 2), RuntimeError, r"size\(0\) = .* 1"),
        (lambda m: m(X[:0, :, :6]), RuntimeError, "sequence length to be larger than 0"),
        (lambda m: m(X[..., :6], lengths=torch.tensor([9, 1, 1])), RuntimeError, "lengths"),
        (lambda m: m(X[..., :6].to("meta")), RuntimeError, "expected W_ih on meta"),
        (lambda m: torch.jit.script(m), RuntimeError, "torch.jit.script is not supported"),
        (lambda m: m(X[..., :6].clone().requires_grad_()), RuntimeError, "give no gradients"),
        (
            lambda m: torch.func.vmap(lambda x: m(x)[0])(X[None, ..., :6]),
            RuntimeError,
            "PackedLSTM: packed weights give no gradients, nor do they take part in torch.func",
        ),
        (
            lambda m: torch.func.grad(lambda x: m(x)[0].sum())(X[..., :6]),
            RuntimeError,
            "give no gradients",
        ),
        (
            lambda m: torch.func.jvp(lambda x: m(x)[0], (X[..., :6],), (X[..., :6],)),
            RuntimeError,
            "has a tangent",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
def test_refusals(
    call: Callable[[Any], Any], error: Any, message: str, weights: torch.dtype | None
) -> None:
    frozen = packed(small(), weights)
    before = frozen.state_dict()
    with pytest.raises(error, match=message):
        call(frozen)
    assert same(list(frozen.state_dict().values()), list(before.values()))
    assert frozen.eval() is frozen.float() is frozen.cpu() is frozen.requires_grad_()
    assert not list(frozen.parameters()) and not frozen.training
    frozen.flatten_parameters()  # as code for nn.LSTM calls it


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(X[0]), ValueError, "PackedLSTMCell: expected input .* 6 features, got .* 16"),
        (lambda m: m(X[..., :6]), ValueError, "Expected input to be 1D or 2D, got 3D"),
        (lambda m: m(X[0, :, :6], torch.zeros(3, 10)), TypeError, "must be tuple of Tensors"),
        (lambda m: m(X[0, :, :6], (torch.zeros(3, 9),) * 2), ValueError, "got 9 and 9"),
        (lambda m: m(X[0, :, :6], (torch.zeros(4, 10),) * 2), RuntimeError, "h_0 of shape"),
        (lambda m: m(X[0, :, :6], (torch.zeros(10),) * 2), RuntimeError, "h_0 of shape"),
        (lambda m: m.train(), RuntimeError, "PackedLSTMCell has no training mode"),
        (lambda m: m.weight_hh, AttributeError, "weight_hh is packed"),
        (lambda m: m(X[0, :, :6].clone().requires_grad_()), RuntimeError, "give no gradients"),
        (lambda m: torch.func.vmap(m)(X[..., :6]), RuntimeError, "torch.func transforms"),
    ],
)  # fmt: skip
def test_refusals_of_a_cell(call: Callable[[Any], Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(packed(LSTMCell(6, 10).eval(), torch.bfloat16))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.train(), RuntimeError, "PackedLayerNormLSTM has no training mode"),
        (lambda m: m.gain_hh_l0, AttributeError, "gain_hh_l0 is packed"),
        (lambda m: m(X), ValueError, "PackedLayerNormLSTM: expected input .* 6 features.* 16"),
        (lambda m: m(X[..., :6].clone().requires_grad_()), RuntimeError, "give no gradients"),
        (lambda m: m(X[:0, :, :6]), RuntimeError, "sequence length to be larger than 0"),
        (lambda m: m.load_state_dict({"gain_c_l0": X}, False), RuntimeError, "size mismatch"),
    ],
)  # fmt: skip
def test_refusals_of_layer_norm(call: Callable[[Any], Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(packed(make((6, 10, {}), kind=LayerNormLSTM), torch.int8))


def test_weights_of_layer_norm_of_another_size_are_refused() -> None:
    frozen = packed(make((6, 10, {}), kind=LayerNormLSTM))
    weights, state = frozen._op_weights(), torch.zeros(1, 3, 10)
    op, layout = torch.ops.fastlstm.lstm_packed, frozen._layout
    for position, wrong, message in (
        (5, torch.ones(39), "gain_hh of shape .* = .40., got .39."),
        (6, torch.ones(10).double(), "gain_c of dtype Float like input, got Double"),
        (7, torch.ones(10).half(), "bias_c of dtype Float like input, got Half"),
        (1, weights[1][:-16], "bytes of a packed matrix"),
        (1, weights[1].int(), "as fastlstm.prepack packs them, got a tensor .* of Int"),
    ):
        given = [*weights]
        given[position] = wrong
        with pytest.raises(RuntimeError, match=message):
            op(X[..., :6], state, state, given, layout)


def test_a_tangent_is_not_lost() -> None:
    frozen, x = packed(small()), X[..., :6]
    with forward_ad.dual_level():
        assert same(frozen(x), frozen(x))
        with pytest.raises(RuntimeError, match="has a tangent"):
            frozen(forward_ad.make_dual(x, x))


@every_weights
def test_a_state_of_another_size_reads_nothing_else(weights: torch.dtype) -> None:
    """Panels of 10 and of 9 units may be of one size."""
    frozen = packed(small(proj_size=7), weights)
    state = torch.zeros(1, 3, 6), torch.zeros(1, 3, 10)
    with pytest.raises(ValueError, match="expected h and c of 7 and 10 features, got 6 and 10"):
        frozen(X[..., :6], state)
    weights_of_op = frozen._op_weights()
    op, layout = torch.ops.fastlstm.lstm_packed, frozen._layout
    for position, wrong, message in (
        (2, torch.zeros(36), "b_ih of shape .* = .40., got .36."),
        (3, torch.zeros(40, dtype=torch.bfloat16), "b_hh of dtype Float like input, got BFloat16"),
        (1, weights_of_op[1].float(), "as fastlstm.prepack packs them, got a tensor .* of Float"),
        (1, weights_of_op[1].clone().zero_(), "pack the model again"),
        (1, weights_of_op[0], r"expected a packed matrix \[40, 7\] of gates, got \[40, 6\]"),
        (1, weights_of_op[1][:-16], "bytes of a packed matrix"),
    ):
        given = [*weights_of_op]
        given[position] = wrong
        with pytest.raises(RuntimeError, match=message):
            op(X[..., :6], torch.zeros(1, 3, 7), torch.zeros(1, 3, 10), given, layout)


def in_a_model(**layers: nn.Module) -> nn.Module:
    return nn.ModuleDict(layers).eval()


class Own(LSTM):
    pass


class OwnNorm(LayerNormLSTM):
    pass


def not_a_number() -> LSTM:
    lstm = LSTM(3, 4)
    nn.init.constant_(lstm.weight_hh_l0, float("nan"))
    return lstm


@pytest.mark.parametrize(
    ("bad", "arguments", "error", "message"),
    [
        (LSTM(3, 4), ("int8",), ValueError, "weights: expected None, torch.float32, .* got 'int8'"),
        (LSTM(3, 4), (torch.int16,), ValueError, "got torch.int16"),
        (
            LSTM(3, 4, dtype=torch.float64), (torch.int8,), ValueError,
            "bad is torch.float64: expected weights to be one of None, torch.float64, got",
        ),
        (LSTM(3, 4, dtype=torch.float16), (torch.float32,), ValueError, "bad is torch.float16"),
        (LSTM(3, 4, device="meta"), (), ValueError, "expected bad on the CPU, got meta"),
        (LSTMCell(3, 0), (), ValueError, "expected sizes of at least 1 in bad"),
        (
            not_a_number(), (torch.int8,), ValueError,
            "bad: weight_hh_l0: expected finite weights to make int8 of them, got nan",
        ),
        (
            prune.l1_unstructured(LSTM(3, 4), "weight_hh_l0", 0.5), (), ValueError,
            "weight_hh_l0 of bad is computed by a hook in every call; make it permanent",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("convert", [False, True])
def test_nothing_is_packed_if_one_layer_cannot_be(
    bad: nn.Module, arguments: tuple[Any, ...], error: Any, message: str, convert: bool
) -> None:
    model = in_a_model(good=LSTM(3, 4), other=nn.LSTM(3, 4), bad=bad)
    before = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        prepack(model, *arguments, convert=convert)
    assert [type(m) for m in model.modules()] == before


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="expected lstm in eval mode: call model.eval"):
        prepack(Tagger())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.LSTM(3, 4)])
def test_nothing_to_pack(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"expected a model with a fastlstm.LSTM .* convert=True"):
        prepack(model.eval())


def test_what_is_packed_already() -> None:
    frozen = packed(LSTM(3, 4).eval())
    for model in (frozen, nn.Sequential(frozen)):
        with pytest.raises(
            ValueError, match="one that is packed already; fastlstm.unpack turns it"
        ):
            prepack(model)


@pytest.mark.parametrize("kind", [OwnNorm, Own])
def test_a_layer_that_is_more_than_an_lstm_stays(kind: type[LSTM]) -> None:
    model = in_a_model(a=kind(3, 4), b=LSTM(3, 4))
    with pytest.warns(UserWarning, match=f"prepack: a stays as it is: its class {kind.__name__} "):
        prepack(model)
    assert type(model["a"]) is kind and type(model["b"]) is PackedLSTM


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = pickle.dumps(packed(small()))
    monkeypatch.setattr(_build, "_reason", "it was not built")
    for call in (lambda: prepack(small()), lambda: pickle.loads(saved)):
        with pytest.raises(RuntimeError, match="prepack needs the extension: it was not built"):
            call()


# What surrounds a packed layer.


def test_repr() -> None:
    lstm = packed(small(num_layers=2), torch.int8)
    assert repr(lstm) == "fastlstm.PackedLSTM(6, 10, num_layers=2, weights=torch.int8)"
    norm = packed(LayerNormLSTM(3, 4).eval(), torch.bfloat16)
    assert repr(norm) == "fastlstm.PackedLayerNormLSTM(3, 4, weights=torch.bfloat16)"
    cell = "fastlstm.PackedLSTMCell(3, 4, weights=torch.float32)"
    assert repr(packed(LSTMCell(3, 4).eval())) == cell


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
def test_unpack(weights: torch.dtype | None) -> None:
    torch.manual_seed(0)
    original = Tagger(zoneout_h=0.1, dropout=0.2).eval()
    original.lstm.tag = "kept"
    model = fastlstm.unpack(packed(original, weights))
    assert repr(model) == repr(original) and model.lstm.tag == "kept"
    assert not model.training and type(model.lstm) is LSTM and type(model.cell) is LSTMCell
    assert type(model.norm) is LayerNormLSTM
    for name, parameter in model.state_dict().items():
        bound = 0 if weights is None else original.state_dict()[name].abs().max() / 254
        assert (parameter - original.state_dict()[name]).abs().max() <= bound * 1.001, name
    model.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert type(fastlstm.unpack(packed(small()))) is LSTM


@pytest.mark.parametrize("keep_class", [True, False])
def test_unpack_gives_the_class_that_convert_made(keep_class: bool) -> None:
    model = in_a_model(lstm=nn.LSTM(3, 5).eval(), cell=nn.LSTMCell(3, 5).eval())
    fastlstm.convert(model, keep_class=keep_class)
    classes = [type(model[name]) for name in ("lstm", "cell")]
    frozen = pickle.loads(pickle.dumps(prepack(model)))
    assert [type(frozen[name]) for name in ("lstm", "cell")] == [PackedLSTM, PackedLSTMCell]
    fastlstm.unpack(frozen)
    assert [type(frozen[name]) for name in ("lstm", "cell")] == classes


@pytest.mark.filterwarnings("ignore:.*(torch.ao|quantiz)")
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_what_torch_ao_quantized_keeps_its_int8_weights(by_row: bool, kind: Any) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    ao = torch.ao.quantization
    torch.manual_seed(0)
    layer = kind(6, 10, **(options if kind is nn.LSTM else {})).eval()
    qconfig = ao.per_channel_dynamic_qconfig if by_row else ao.default_dynamic_qconfig
    model = ao.quantize_dynamic(in_a_model(layer=layer), {kind: qconfig})
    weights, x = model["layer"].get_weight(), torch.randn(4, 3, 6)
    x = x if kind is nn.LSTM else x[0]
    expected = model["layer"](x)[0]
    frozen = prepack(model)["layer"]
    state = frozen.state_dict()
    for name, weight in weights.items():
        assert torch.equal(state[name], weight.int_repr().clamp_min(-127)), name
        scale = weight.q_per_channel_scales() if by_row else weight.q_scale()
        torch.testing.assert_close(state[f"{name}_scale"].double(), torch.ones(40).double() * scale)
    # torch quantizes what it multiplies with one scale for a tensor, we for a row.
    assert (frozen(x)[0] - expected).norm() / expected.norm() < 2 / 127
    floats = fastlstm.unpack(frozen)
    assert (floats(x)[0] - expected).norm() / expected.norm() < 2 / 127


@pytest.mark.filterwarnings("ignore:.*(torch.ao|quantiz)")
def test_what_torch_ao_made_float16_becomes_float32() -> None:
    model = in_a_model(lstm=nn.LSTM(6, 10).eval())
    half = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.float16)
    expected = half["lstm"](X[..., :6])[0]
    frozen = prepack(half)["lstm"]
    assert frozen.weights == torch.float32
    torch.testing.assert_close(frozen(X[..., :6])[0], expected, rtol=0, atol=1e-3)


def test_hooks_stay() -> None:
    lstm, seen = small(), []
    lstm.register_forward_pre_hook(lambda m, args: seen.append("before"))
    handle = lstm.register_forward_hook(
        lambda m, args, kwargs, y: seen.append(kwargs), with_kwargs=True
    )
    frozen = prepack(lstm)
    frozen(X[..., :6], lengths=torch.tensor([1, 2, 3]))
    assert seen[0] == "before" and list(seen[1]) == ["lengths"]
    handle.remove()
    fastlstm.unpack(frozen)(X[..., :6])
    assert seen[2:] == ["before"]


def test_a_layer_in_two_places_stays_one() -> None:
    lstm = small()
    model = prepack(in_a_model(a=lstm, b=nn.ModuleList([lstm])), torch.int8)
    assert model["a"] is model["b"][0] and type(model["a"]) is PackedLSTM
    model.load_state_dict(model.state_dict())
    fastlstm.unpack(model)
    assert model["a"] is model["b"][0] and type(model["a"]) is LSTM


@pytest.mark.parametrize("source", [nn.LSTM, LSTM])
def test_parametrised_weights_are_packed_as_they_are(source: Any) -> None:
    torch.manual_seed(0)
    lstm = parametrizations.weight_norm(source(6, 10).eval(), "weight_hh_l0")
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2)
    expected = lstm(X[..., :6])
    frozen = prepack(lstm, convert=True)
    assert list(frozen.state_dict()) == list(LSTM(6, 10).state_dict())
    torch.testing.assert_close(frozen(X[..., :6]), expected)


def test_nn_lstm_is_converted_if_asked() -> None:
    torch.manual_seed(0)
    model = in_a_model(a=nn.LSTM(6, 10), b=nn.LSTMCell(6, 10))
    expected = model["a"](X[..., :6]), model["b"](X[0, :, :6])
    assert prepack(model, convert=True) is model
    assert type(model["a"]) is PackedLSTM and type(model["b"]) is PackedLSTMCell
    torch.testing.assert_close((model["a"](X[..., :6]), model["b"](X[0, :, :6])), expected)


def test_autocast_leaves_it_alone() -> None:
    frozen = packed(small())
    expected = frozen(X[..., :6])
    with torch.autocast("cpu", torch.bfloat16):
        assert same(frozen(X[..., :6]), expected)
        with pytest.raises(ValueError, match="bfloat16 and 6; autocast leaves packed layers alone"):
            frozen(X[..., :6].bfloat16())


@pytest.mark.parametrize("weights", [None, *SMALLER], ids=str)
class TestCompilers:
    def test_compile(self, weights: torch.dtype | None) -> None:
        model = tagger(weights=weights)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(X), model(X))

    def test_trace(self, weights: torch.dtype | None) -> None:
        model = tagger(weights=weights)
        with pytest.warns(torch.jit.TracerWarning):  # of sizes that become constants
            traced = torch.jit.trace(model, (X,), check_trace=False)
        assert torch.equal(traced(X + 1), model(X + 1))

    def test_export(self, weights: torch.dtype | None, tmp_path: Path) -> None:
        model, steps = tagger(weights=weights), torch.export.Dim("T")
        program = torch.export.export(model, (X,), dynamic_shapes=({0: steps},))
        torch.export.save(program, tmp_path / "tagger.pt2")
        loaded = torch.export.load(tmp_path / "tagger.pt2")
        for x in (X, torch.cat([X, X + 1])):
            assert torch.equal(loaded.module()(x), model(x))


@pytest.mark.slow
@every_weights
def test_compile_by_inductor(weights: torch.dtype) -> None:
    model = tagger(weights=weights)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(X), model(X))


@every_weights
def test_weights_for_another_processor_are_refused(weights: torch.dtype) -> None:
    frozen = packed(small(), weights)
    other = frozen.packed_weight_hh_l0
    lanes = other[:64].view(torch.int32)[8:10]  # and vectors, of PackedHeader
    here = "x".join(map(str, lanes.tolist()))
    lanes[:] = torch.tensor([2, 4])
    message = f"packed for this processor .* panels of {here}.*, got .* panels of 2x4: pack"
    with pytest.raises(RuntimeError, match=message):
        frozen(X[..., :6])


@pytest.mark.parametrize("kind", [LSTM, LayerNormLSTM])
def test_the_op_is_registered_rightly(kind: type[LSTM]) -> None:
    frozen = packed(make((6, 10, {"bidirectional": True}), kind=kind), torch.int8)
    x = X[..., :6]
    state = torch.zeros(2, 3, 10)
    arguments = (x, state, state, frozen._op_weights(), frozen._layout)
    for options in ({}, {"save_cells": True}, {"lengths": torch.tensor([1, 0, 5])}):
        torch.library.opcheck(torch.ops.fastlstm.lstm_packed.default, arguments, options)


def test_a_profile_names_it() -> None:
    frozen, cell = packed(small()), packed(LSTMCell(6, 10).eval())
    with torch.profiler.profile() as profile:
        frozen(X[..., :6]), cell(X[0, :, :6])
    names = [event.name for event in profile.events()]
    assert names.count("fastlstm::lstm_packed") == 2
