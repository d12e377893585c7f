"""torch.backends.mkldnn.rnn.fp32_precision: float32 layers that multiply in bfloat16.

With "bf16" a product of float32 becomes one product of bfloat16, with "tf32" a sum of three.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from samples import with_gradients

import fastlstm
from fastlstm import _build

SETTING, INHERITED = torch.backends.mkldnn.rnn, torch.backends.mkldnn
INFO = _build.library.build_info() if _build.has_kernels("cpu") else {"products": {}}
has_amx = "bfloat16x2" in INFO["products"]
needs_amx = pytest.mark.skipif(not has_amx, reason="this processor has no AMX with bfloat16")
pytestmark = pytest.mark.skipif(
    not INFO.get("multiplies_bfloat16"),
    reason="the processor has no products of bfloat16 (or ATEN_CPU_CAPABILITY hides them)",
)
# The least and the largest relative error. With "bf16" each factor is rounded by up to 2^-9. With
# "tf32" a factor is a sum of two bfloat16 numbers, which leaves out up to 2^-15.
ERRORS = {"bf16": (2**-9 / 10, 2**-6), "tf32": (2**-24, 2**-15)}
PRECISIONS = ["bf16", pytest.param("tf32", marks=needs_amx)]
every_precision = pytest.mark.parametrize("precision", PRECISIONS)

CASES = [
    {"sizes": (33, 50)},
    {"sizes": (64, 64), "num_layers": 2, "bidirectional": True},
    {"sizes": (70, 256), "steps": 4, "batch": 67},
    {"sizes": (1, 24), "bias": False},
    {"sizes": (40, 130), "batch": 67, "proj_size": 70},
]


@pytest.fixture(autouse=True)
def _restore():
    before = SETTING.fp32_precision, INHERITED.fp32_precision
    yield
    SETTING.fp32_precision, INHERITED.fp32_precision = before


def results(module, x, hx, precision, **given):
    SETTING.fp32_precision = precision
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx)]
    output, (h_n, c_n) = module(leaves[0], (leaves[1], leaves[2]), **given)
    tensors = with_gradients([output, h_n, c_n], [*leaves, *module.parameters()])
    return [t.detach() for t in tensors]


def errors(found, truth):
    """Returns the relative error of each result. A NaN makes the maximum NaN."""
    pairs = zip(found, truth, strict=True)
    return torch.stack([(a.double() - b).norm() / b.double().norm() for a, b in pairs])


@every_precision
@pytest.mark.parametrize("given", [None, "lengths", "reset"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_that_of_rounding_the_factors(case, given, precision):
    torch.manual_seed(0)
    options = {**case}
    batch, steps = options.pop("batch", 9), options.pop("steps", 12)
    lstm = fastlstm.LSTM(*options.pop("sizes"), **options)
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    x = torch.randn(steps, batch, lstm.input_size)
    sizes = lstm.proj_size or lstm.hidden_size, lstm.hidden_size
    hx = tuple(torch.randn(count, batch, size) / 2 for size in sizes)
    lengths, reset = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.2
    extra = {"lengths": {"lengths": lengths}, "reset": {"reset": reset}}.get(given, {})
    wide, *wide_hx = (t.double() for t in (x, *hx))
    truth = results(copy.deepcopy(lstm).double(), wide, wide_hx, "ieee", **extra)
    rounded, full = (results(lstm, x, hx, name, **extra) for name in (precision, "ieee"))
    keeps_bits = precision == "bf16" and lstm.proj_size > 0
    least, most = (0, 2e-6) if keeps_bits else ERRORS[precision]
    assert least < errors(rounded, truth).max() < most
    assert errors(full, truth).max() < 2e-6 and torch.equal(rounded[0], full[0]) == keeps_bits


def test_a_single_step_obeys_in_training():
    """A single step without gradients stays in float32: bfloat16 would not make it faster."""
    torch.manual_seed(0)
    lstm, x = fastlstm.LSTM(24, 600), torch.randn(1, 5, 24)
    hx = (torch.randn(1, 5, 600), torch.randn(1, 5, 600))
    usual, rounded = (results(lstm, x, hx, precision) for precision in ("none", "bf16"))
    relative, (least, most) = errors(rounded, usual), ERRORS["bf16"]
    assert relative[0] > least and relative.max() < most
    with torch.no_grad():
        SETTING.fp32_precision = "bf16"
        assert torch.equal(lstm(x, hx)[0], usual[0])


@torch.no_grad()
def test_the_setting_and_the_one_it_inherits_are_read_in_every_call():
    lstm, x, outputs = fastlstm.LSTM(24, 40), torch.randn(7, 5, 24), []
    for precisions in (("none", "none"), ("bf16", "none"), ("none", "bf16"), ("ieee",) * 2):
        SETTING.fp32_precision, INHERITED.fp32_precision = precisions
        outputs.append(lstm(x)[0])
    assert torch.equal(outputs[0], outputs[3]) and torch.equal(outputs[1], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


@torch.no_grad()
@every_precision
@pytest.mark.parametrize("kind", ["float64", "prepacked", "projection"])
def test_layers_that_keep_their_bits(kind, precision):
    """float64 and prepacked layers ignore the setting; a projection ignores "bf16"."""
    lstm = fastlstm.LSTM(40, 130, proj_size=10 if kind == "projection" else 0).eval()
    change = {"float64": fastlstm.LSTM.double, "prepacked": fastlstm.prepack}
    lstm = change[kind](lstm) if kind in change else lstm
    x = torch.randn(6, 70, 40, dtype=torch.float64 if kind == "float64" else torch.float32)
    usual = lstm(x)[0]
    SETTING.fp32_precision = precision
    assert torch.equal(lstm(x)[0], usual) == (kind != "projection" or precision == "bf16")


SCRIPT = """
import sys, torch, fastlstm
torch.manual_seed(0)
lstm = fastlstm.LSTM(40, 256, bidirectional=True)
x = torch.randn(3, 70, 40)
results = []
for precision in ("none", "ieee", "tf32"):
    torch.backends.mkldnn.rnn.fp32_precision = precision
    output, state = lstm(x)
    results.append([output, *state, *torch.autograd.grad(output.sin().sum(), lstm.parameters())])
torch.save(results, sys.argv[1])
"""


@needs_amx
def test_amx_changes_only_tf32(tmp_path):
    results = []
    for amx in "01":
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / amx)]
        subprocess.run(command, env={**os.environ, "FASTLSTM_AMX": amx}, check=True)
        results.append(torch.load(tmp_path / amx))
    for without, with_tiles, same in zip(*results, (True, True, False), strict=True):
        for a, b in zip(without, with_tiles, strict=True):
            assert torch.equal(a, b) == same
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@every_precision
def test_a_row_depends_neither_on_its_batch_nor_on_threads(precision, threads):
    SETTING.fp32_precision = precision
    lstm, x = fastlstm.LSTM(48, 100), torch.randn(9, 33, 48)
    together = lstm(x)[0]
    assert torch.equal(lstm(x[:, 5:6])[0], together[:, 5:6])
    threads(1)
    assert torch.equal(lstm(x)[0], together)
