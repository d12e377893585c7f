"""torch.backends.mkldnn.rnn.fp32_precision: float32 layers that multiply in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastlstm
from fastlstm import _build

SWITCH = torch.backends.mkldnn.rnn

pytestmark = pytest.mark.skipif(
    not _build.has_kernels("cpu") or not _build.library.build_info()["multiplies_bfloat16"],
    reason="the processor has no products of bfloat16 (or ATEN_CPU_CAPABILITY hides them)",
)

CASES: list[dict[str, Any]] = [
    {"sizes": (33, 50)},
    {"sizes": (64, 64), "num_layers": 2, "bidirectional": True},
    {"sizes": (40, 101)},
    {"sizes": (1, 24), "bias": False},
]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = SWITCH.fp32_precision
    yield
    SWITCH.fp32_precision = before


def results(
    module: fastlstm.LSTM, x: Tensor, hx: tuple[Tensor, Tensor], precision: str, **given: Any
) -> list[Tensor]:
    """Outputs and gradients of everything, with the same masks in every call."""
    SWITCH.fp32_precision = precision
    torch.manual_seed(1)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx)]
    output, (h_n, c_n) = module(leaves[0], (leaves[1], leaves[2]), **given)
    loss = output.sin().sum() + h_n.cos().sum() + c_n.sin().sum()
    gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    return [t.detach() for t in (output, h_n, c_n, *gradients)]


def error(result: Tensor, truth: Tensor) -> float:
    return ((result.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("given", [None, "lengths", "reset"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_that_of_rounding_the_factors(case: dict[str, Any], given: str | None) -> None:
    torch.manual_seed(0)
    options = {**case}
    lstm = fastlstm.LSTM(*options.pop("sizes"), **options)
    batch, steps, count = 9, 12, lstm.num_layers * (2 if lstm.bidirectional else 1)
    x = torch.randn(steps, batch, lstm.input_size)
    hx = tuple(torch.randn(count, batch, lstm.hidden_size) / 2 for _ in range(2))
    extra = {
        "lengths": {"lengths": torch.randint(0, steps + 1, (batch,))},
        "reset": {"reset": torch.rand(steps, batch) < 0.2},
    }.get(given or "", {})
    wide = [t.double() for t in (x, *hx)]
    truth = results(copy.deepcopy(lstm).double(), wide[0], (wide[1], wide[2]), "ieee", **extra)
    rounded = results(lstm, x, (hx[0], hx[1]), "bf16", **extra)
    # A factor is off by 2^-9 at most; with a tenth of that, nothing would have been rounded.
    errors = [error(r, t) for r, t in zip(rounded, truth, strict=True)]
    assert max(errors) < 2**-6
    assert max(errors) > 2**-9 / 10
    full = results(lstm, x, (hx[0], hx[1]), "ieee", **extra)
    assert max(error(f, t) for f, t in zip(full, truth, strict=True)) < 2e-6


@pytest.mark.parametrize("precision", ["none", "ieee"])
def test_other_precisions_are_float32(precision: str) -> None:
    lstm, x = fastlstm.LSTM(24, 40), torch.randn(7, 5, 24)
    hx = (torch.randn(1, 5, 40), torch.randn(1, 5, 40))
    usual = results(lstm, x, hx, "none")
    assert all(map(torch.equal, results(lstm, x, hx, precision), usual))


def test_a_single_step_obeys_where_it_trains() -> None:
    """Forward and backward; without gradients it is bound by reading the weights."""
    torch.manual_seed(0)
    lstm, x = fastlstm.LSTM(24, 600), torch.randn(1, 5, 24)
    hx = (torch.randn(1, 5, 600), torch.randn(1, 5, 600))
    usual, rounded = (results(lstm, x, hx, precision) for precision in ("none", "bf16"))
    errors = [error(r, t.double()) for r, t in zip(rounded, usual, strict=True)]
    assert 2**-9 / 10 < errors[0] < 2**-6 and max(errors) < 2**-6
    with torch.no_grad():
        SWITCH.fp32_precision = "bf16"
        assert torch.equal(lstm(x, hx)[0], usual[0])


def test_the_switch_is_read_in_every_call() -> None:
    lstm, x = fastlstm.LSTM(24, 40), torch.randn(7, 5, 24)
    usual, rounded, again = [], [], []
    for results_, precision in ((usual, "none"), (rounded, "bf16"), (again, "none")):
        SWITCH.fp32_precision = precision
        results_.append(lstm(x)[0])
    assert torch.equal(usual[0], again[0])
    assert not torch.equal(usual[0], rounded[0])


def test_the_switch_above_is_inherited() -> None:
    lstm, x = fastlstm.LSTM(24, 40), torch.randn(7, 5, 24)
    SWITCH.fp32_precision = "bf16"
    rounded = lstm(x)[0]
    SWITCH.fp32_precision = "none"
    before = torch.backends.mkldnn.fp32_precision
    try:
        torch.backends.mkldnn.fp32_precision = "bf16"
        assert torch.equal(lstm(x)[0], rounded)
    finally:
        torch.backends.mkldnn.fp32_precision = before


@pytest.mark.parametrize("options", [{"proj_size": 10}, {"dtype": torch.float64}])
def test_projections_and_other_dtypes_stay_as_they_are(options: dict[str, Any]) -> None:
    lstm = fastlstm.LSTM(24, 40, **options)
    x = torch.randn(7, 5, 24, dtype=options.get("dtype"))
    usual = lstm(x)[0]
    SWITCH.fp32_precision = "bf16"
    assert torch.equal(lstm(x)[0], usual)


def test_a_row_depends_neither_on_its_batch_nor_on_threads() -> None:
    SWITCH.fp32_precision = "bf16"
    lstm, x = fastlstm.LSTM(48, 100), torch.randn(9, 33, 48)
    together, threads = lstm(x)[0], torch.get_num_threads()
    assert torch.equal(lstm(x[:, 5:6])[0], together[:, 5:6])
    try:
        torch.set_num_threads(1)
        assert torch.equal(lstm(x)[0], together)
    finally:
        torch.set_num_threads(threads)
