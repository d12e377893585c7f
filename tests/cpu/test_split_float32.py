"""float32 by three products of bfloat16 (csrc/cpu/products/split_float32.h), as layers use them."""

import os
import subprocess
import sys

import pytest
import torch

import fastlstm
from fastlstm import _build

PRECISION = torch.backends.mkldnn

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="there are no kernels")


def splits() -> bool:
    return "bfloat16x2" in _build.library.build_info()["products"]


def needs_amx():
    if not splits():
        pytest.skip("this processor has no AMX with bfloat16")


@pytest.fixture
def precision():
    """Sets torch.backends.mkldnn.rnn.fp32_precision, and sets it back."""
    if not hasattr(PRECISION, "rnn"):
        pytest.skip("this torch has no precision of its own for recurrent layers")
    before = PRECISION.rnn.fp32_precision

    def choose(name):
        PRECISION.rnn.fp32_precision = name

    yield choose
    PRECISION.rnn.fp32_precision = before


def layers(input_size, hidden_size, **options):
    """An LSTM, and torch.nn's in float64 with the same weights."""
    torch.manual_seed(0)
    ours = fastlstm.LSTM(input_size, hidden_size, **options)
    exact = torch.nn.LSTM(input_size, hidden_size, **options).double()
    exact.load_state_dict(ours.state_dict())
    return ours, exact


def gradients(module, x, **call):
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    output = module(x, **call)[0]
    wanted = [x, *module.parameters()]
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, wanted, direction.to(x.dtype))]


def error(found, exact):
    return (found.double() - exact).norm() / exact.norm()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True, "bias": False},
        {"num_layers": 2},
        {"bidirectional": True, "proj_size": 9},
    ],
)
@pytest.mark.parametrize("sizes", [(12, 67, 70, 256), (5, 1, 33, 41), (2, 3, 1, 130)])
def test_errors(precision, options, sizes) -> None:
    """Two planes leave out 2^-15 of a product at most; TF32 would round its factors to 2^-11."""
    needs_amx()
    steps, batch, input_size, hidden_size = sizes
    ours, exact = layers(input_size, hidden_size, **options)
    x = torch.randn(steps, batch, input_size)
    expected, plain = gradients(exact, x.double()), gradients(ours, x)
    precision("tf32")
    for true, more, less in zip(expected, plain, gradients(ours, x), strict=True):
        assert error(more, true) < error(less, true) <= 2**-15


@pytest.mark.parametrize("form", ["lengths", "reset"])
def test_ragged_rows_and_resets(precision, form) -> None:
    needs_amx()
    ours, _ = layers(40, 64)
    x = torch.randn(9, 81, 40)
    lengths = torch.tensor([9] + [8] * 50 + [3] * 30)
    call = {form: lengths if form == "lengths" else torch.rand(9, 81) < 0.1}
    plain = gradients(ours, x, **call)
    precision("tf32")
    for found, expected in zip(gradients(ours, x, **call), plain, strict=True):
        assert not torch.equal(found, expected)
        assert error(found, expected.double()) <= 2**-15


@torch.no_grad()
def test_single_steps_and_prepacked_weights_stay_float32(precision) -> None:
    ours = layers(40, 130)[0].eval()
    prepacked = fastlstm.prepack(ours, torch.float32)
    x = torch.randn(6, 70, 40)
    plain = ours(x)[0], ours(x[:1])[0]
    precision("tf32")
    assert torch.equal(ours(x)[0], plain[0]) != splits()
    assert torch.equal(ours(x[:1])[0], plain[1])
    assert torch.equal(prepacked(x)[0], plain[0])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_values_that_are_not_finite(precision, value, where) -> None:
    """They give what nn.LSTM gives, and the other rows keep their bits."""
    needs_amx()
    precision("tf32")
    ours, exact = layers(40, 256)
    x = torch.randn(3, 64, 40)
    before = ours(x)[0]
    if where == "input":
        x[1, 5, 7] = value
    else:
        ours.weight_ih_l0.data[3, 2] = value
        exact.load_state_dict(ours.state_dict())
    for found, true in zip(gradients(ours, x), gradients(exact, x.double()), strict=True):
        torch.testing.assert_close(found.double(), true, atol=1e-2, rtol=1e-3, equal_nan=True)
    if where == "input":
        others = [row for row in range(64) if row != 5]
        assert torch.equal(ours(x)[0][:, others], before[:, others])


@pytest.mark.parametrize("name", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("steps", [1, 4])
@torch.no_grad()
def test_products_that_overflow_and_cancel(precision, name, steps) -> None:
    """No NaN, as nn.LSTM has none: the first product decides over its gate."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("multiply-adds are not fused, by nn.LSTM neither")
    precision(name)
    ours, _ = layers(2, 64)
    torch.nn.init.constant_(ours.weight_ih_l0, 3e38)
    x = torch.tensor([2.0, -2.0]).expand(steps, 64, 2)
    for some in (x, x[:, :1], x.flip(-1)):
        assert torch.isfinite(torch.nn.LSTM.forward(ours, some)[0]).all()
        assert torch.isfinite(ours(some)[0]).all()


SCRIPT = """
import sys, torch, fastlstm
torch.manual_seed(0)
lstm = fastlstm.LSTM(40, 256, bidirectional=True)
x = torch.randn(3, 70, 40)
found = []
for precision in sys.argv[2:]:
    torch.backends.mkldnn.rnn.fp32_precision = precision
    output, state = lstm(x)
    found.append([output, *state, *torch.autograd.grad(output.sin().sum(), lstm.parameters())])
torch.save(found, sys.argv[1])
"""


def test_tiles_change_tf32_alone(tmp_path, precision) -> None:
    """With AMX or its emulation, and without: float32 has the same bits."""
    if _build.library.build_info()["cpu_capability"] != "avx512":
        pytest.skip("the tiles are emulated with AVX-512 alone")
    found = {}
    for switch in "01":
        file = tmp_path / switch
        command = [sys.executable, "-c", SCRIPT, str(file), "none", "ieee", "tf32"]
        subprocess.run(command, env={**os.environ, "FASTLSTM_AMX": switch}, check=True)
        found[switch] = torch.load(file)
    for without, with_tiles, same in zip(found["0"], found["1"], (True, True, False), strict=True):
        for a, b in zip(without, with_tiles, strict=True):
            assert torch.equal(a, b) == same
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
