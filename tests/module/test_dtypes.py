"""Every dtype of torch, in every argument: a right result, or an error that names both."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_call import ROUNDOFF, TOLERANCE
from oracle import oracle
from torch import Tensor

import fastlstm
from fastlstm import LSTM, LayerNormLSTM, LSTMCell, _build, functional
from fastlstm._call import DTYPES

T, B, I, H = 3, 2, 4, 5
# But two whose tensors torch itself can hardly make.
EVERY = {d for d in vars(torch).values() if isinstance(d, torch.dtype)}
EVERY = sorted(EVERY - {torch.quint4x2, torch.quint2x4}, key=str)
# As C++ writes them, where that is not as Python does.
CPP_NAMES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bool": "Bool",
    "uint8": "Byte", "int8": "Char", "int16": "Short", "int32": "Int", "int64": "Long",
    "complex32": "ComplexHalf", "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip
needs_op = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning"),
]


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype; with any values where torch cannot convert them."""
    name = str(dtype).removeprefix("torch.")
    if name in ("qint8", "quint8", "qint32"):
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, dtype)
    try:
        return tensor.to(dtype)
    except (RuntimeError, NotImplementedError):
        return torch.empty(tensor.shape, dtype=dtype)


def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "input": (T, B, I), "h_0": (1, B, H), "c_0": (1, B, H),
        "W_ih": (4 * H, I), "W_hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,),
    }  # fmt: skip
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def by_function(x: dict[str, Tensor], **options: Any) -> Any:
    weights = [x[name] for name in ("W_ih", "W_hh", "b_ih", "b_hh")]
    output, (h_n, c_n) = functional.lstm(x["input"], (x["h_0"], x["c_0"]), weights, **options)
    return output, h_n, c_n


def by_cell(x: dict[str, Tensor], **options: Any) -> Any:
    state = x["h_0"][0], x["c_0"][0]
    weights = [x[name] for name in ("W_ih", "W_hh", "b_ih", "b_hh")]
    return functional.lstm_cell(x["input"][0], state, *weights, **options)


def by_op(x: dict[str, Tensor]) -> Any:
    weights = [x[name] for name in ("W_ih", "W_hh", "b_ih", "b_hh")]
    return torch.ops.fastlstm.lstm(x["input"], x["h_0"], x["c_0"], weights)[:3]


def by_backward_op(x: dict[str, Tensor]) -> Any:
    weights = [x[name] for name in ("W_ih", "W_hh", "b_ih", "b_hh")]
    call = (x["input"], x["h_0"], x["c_0"], weights, "bias", *[None] * 4)
    saved = torch.zeros(T, B, H), torch.zeros(1, T, B, H), torch.zeros(1, T, B, 4 * H)
    return torch.ops.fastlstm.lstm_backward(*call, *[None] * 4, *saved, True, True)


DOORS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "lstm": by_function,
    "lstm by the reference": lambda x: by_function(x, engine="reference"),
    "lstm by torch": lambda x: by_function(x, engine="torch"),
    "lstm_cell": by_cell,
    "lstm_cell by the reference": lambda x: by_cell(x, engine="reference"),
    "the op": by_op,
    "the op's backward": by_backward_op,
}
every_door = pytest.mark.parametrize(
    "door", [pytest.param(d, marks=needs_op if "op" in d else ()) for d in DOORS]
)


def expect_error(call: Callable[[], Any], name: str, dtype: torch.dtype) -> None:
    """An error that says what has the dtype: the argument, or of quantized ones the op."""
    known = str(dtype).removeprefix("torch.")
    with pytest.raises((RuntimeError, TypeError, ValueError)) as raised:
        call()
    message = str(raised.value)
    assert "INTERNAL ASSERT" not in message
    words = rf"({re.escape(known)}|{CPP_NAMES.get(known, known)})"
    assert re.search(rf"{name}.*\b{words}\b|Quantized", message, re.IGNORECASE | re.DOTALL), message


@every_door
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_a_call_in_one_dtype(dtype: torch.dtype, door: str) -> None:
    given = {name: cast(tensor, dtype) for name, tensor in values().items()}
    if (
        dtype in (torch.complex64, torch.complex128)
        and "op" not in door
        and "reference" not in door
    ):
        assert all(each.dtype == dtype for each in DOORS[door](given))  # by PyTorch's own LSTM
    elif dtype not in DTYPES:
        expect_error(lambda: DOORS[door](given), "input", dtype)
    elif door != "the op's backward":
        found = DOORS[door](given)
        weights = [given[name] for name in ("W_ih", "W_hh", "b_ih", "b_hh")]
        steps = given["input"][:1] if "cell" in door else given["input"]
        output, h_n, c_n, _ = oracle(steps, given["h_0"], given["c_0"], weights)
        expected = (h_n[0], c_n[0]) if "cell" in door else (output, h_n, c_n)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            atol = TOLERANCE * ROUNDOFF[str(dtype).removeprefix("torch.")]
            torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=atol)


@every_door
@pytest.mark.parametrize("name", ["input", "h_0", "W_hh", "b_hh"])
def test_one_argument_of_another_dtype(name: str, door: str) -> None:
    for dtype in EVERY:
        if dtype == torch.float32:
            continue
        given = values()
        given[name] = cast(given[name], dtype)
        # Of the input's dtype, which is one of ours, another argument is blamed.
        blamed = "(W_ih|h_0|input)" if name == "input" else name
        expect_error(lambda given=given: DOORS[door](given), blamed, dtype)


OF_MODULES = {
    "LSTM": lambda: LSTM(I, H),
    "LayerNormLSTM": lambda: LayerNormLSTM(I, H),
    "LSTMCell": lambda: LSTMCell(I, H),
}
for _name, _make in list(OF_MODULES.items()):
    if _name == "LayerNormLSTM":
        continue
    for _weights in (None, torch.bfloat16, torch.int8):
        OF_MODULES[f"packed {_name} {_weights}"] = lambda make=_make, weights=_weights: (
            fastlstm.prepack(make().eval(), weights)
        )


@pytest.mark.parametrize(
    "module", [pytest.param(m, marks=needs_op if "packed" in m else ()) for m in OF_MODULES]
)
def test_modules(module: str) -> None:
    layer, x = OF_MODULES[module](), values()
    input, h, c = x["input"], x["h_0"], x["c_0"]
    if "Cell" in module:
        input, h, c = input[0], h[0], c[0]
    with torch.no_grad():
        layer(input, (h, c))
        for dtype in EVERY:
            if dtype == torch.float32:
                continue
            expect_error(lambda dtype=dtype: layer(cast(input, dtype)), "input", dtype)
            state = cast(h, dtype), cast(c, dtype)
            expect_error(lambda state=state: layer(input, state), "h_0|hx", dtype)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("name", ["lengths", "reset", "batch_sizes"])
def test_what_is_no_part_of_the_equations(name: str, dtype: torch.dtype) -> None:
    x = values()
    numbers = {
        "lengths": torch.tensor([3, 1]),
        "reset": torch.tensor([[0, 1], [0, 0], [1, 0]]),
        "batch_sizes": torch.tensor([2, 2, 2]),
    }[name]
    call = {"input": x["input"].flatten(0, 1)} if name == "batch_sizes" else {"input": x["input"]}
    weights = [x[weight] for weight in ("W_ih", "W_hh", "b_ih", "b_hh")]

    def run(given: Tensor) -> Tensor:
        output: Tensor = functional.lstm(**call, hx=None, weights=weights, **{name: given})[0]
        return output

    of_integers = re.fullmatch("torch.u?int(8|16|32|64)", str(dtype))
    is_taken = {
        "lengths": of_integers,
        "batch_sizes": dtype == torch.int64,
        "reset": of_integers or dtype.is_floating_point or dtype == torch.bool,
    }[name]
    given = cast(numbers, dtype)
    if is_taken and "float4" not in str(dtype):  # of which torch compares no numbers
        expected = run(numbers.bool() if name == "reset" else numbers)
        assert torch.equal(run(given), expected)
    elif name != "reset" or not given.is_quantized:
        expect_error(lambda: run(given), name, dtype)
