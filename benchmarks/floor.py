"""What bounds an LSTM: the arithmetic on a CPU, the time of one step on a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from cases import Case
from timing import Effort, cpu_clock, median_time

from fastlstm import _build

GIGA = 1e9


def flops(case: Case, steps: int | None = None) -> int:
    """Floating point operations of the matrix products: 2 * steps * 4H * (I + H) per direction.

    With a projection to P numbers 2 * steps * (4H * (I + P) + P * H).

    Args:
        case: the case; training counts three times, for the two products of the backward pass.
        steps: real steps of all rows together; B * T if None.
    """
    rows = case.batch * case.steps if steps is None else steps
    directions = 2 if case.bidirectional else 1
    total = 0
    input_size = case.input_size
    for _ in range(case.num_layers):
        products = 4 * (input_size + case.output_size) + case.proj_size
        total += directions * 2 * rows * case.hidden_size * products
        input_size = directions * case.output_size
    return total * (3 if case.mode == "training" else 1)


def gemm_peak(dtype: torch.dtype, shapes: Iterable[tuple[int, int, int]]) -> float | None:
    """FLOP/s of the best of some products x [M,K] times packed w [N,K], by oneDNN.

    Args:
        dtype: dtype of both factors.
        shapes: (M, N, K) of each product to try.

    Returns:
        The peak, or None where this torch has no packed oneDNN product of that dtype.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    best = 0.0
    for M, N, K in shapes:
        x, w = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(w, M)
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        except RuntimeError:  # oneDNN has no such product for this dtype on this CPU
            return None

        def product(x: torch.Tensor = x, packed: torch.Tensor = packed) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

        with torch.no_grad():
            best = max(best, 2 * M * N * K / median_time(product, cpu_clock, Effort(0.3)))
    return best


def peak_shapes(cases: Iterable[Case]) -> list[tuple[int, int, int]]:
    """A square product, and the products of all steps of each case at once."""
    own = {(c.batch * c.steps, 4 * c.hidden_size, c.input_size + c.hidden_size) for c in cases}
    return [(1024, 1024, 1024), *sorted(own)]


# An H100 SXM. The constants are those of the planner (csrc/cuda/plan.h), but for the cell's, the
# time between the last product and the store: here what any kernel needs, there what ours need.
SMS, CAPABILITY = 132, 90
CELL = 0.15e-6  # seconds
SHARED_MEMORY = 227 * 1024  # bytes of weights that a block can hold


@functools.cache
def h100() -> dict[str, float]:
    constants: dict[str, float] = _build.library.cuda_constants(sm_count=SMS, capability=CAPABILITY)
    return constants


def multiply_adds(precision: str) -> float | None:
    """Multiply-adds of an SM per clock, or None if the precision has no persistent kernel."""
    mma = h100()["mma_per_clock"]
    rates = {"bfloat16": mma, "float16": mma, "tf32": mma / 2, "float32": 128.0}
    return rates.get(precision)


def cuda_step(case: Case) -> float | None:
    """The floor of one time step on an H100, in seconds, of one layer and one direction.

    Blocks Pu own U hidden units each, with their slice of W_hh on chip; Pb groups of them share
    the batch rows. A step costs a trip of h from SM to SM, its exchange (of the gate gradients,
    four times as much, in backward), the products, and the cell. The best partition counts;
    "training" is a forward step and a backward step.

    Returns:
        The floor, or None if no partition holds W_hh on chip or the precision has no such kernel.
    """
    rate = multiply_adds(case.precision)
    if rate is None:
        return None
    exchanged = (1, 4) if case.mode == "training" else (1,)
    floors = [_step(case, factor, rate) for factor in exchanged]
    return None if math.inf in floors else sum(floors)


def _step(case: Case, factor: int, rate: float) -> float:
    B, H, size = case.batch, case.hidden_size, case.dtype.itemsize
    device = h100()
    clock = device["clock_ghz"] * GIGA
    l2 = device["l2_bytes_per_clock"] * SMS * clock
    best = math.inf
    for blocks in range(1, min(H, SMS) + 1):
        units = math.ceil(H / blocks)
        weights = 4 * units * H * size
        if weights > SHARED_MEMORY:
            continue
        rows = math.ceil(B / min(SMS // blocks, B))
        state = H * size * factor  # bytes of a row
        into_sm = rows * state / device["sm_bytes_per_clock"] / clock
        exchange = max(into_sm, blocks * B * state / l2)
        macs = 4 * units * H * 8 * math.ceil(rows / 8)
        product = max(macs / rate, weights / device["shared_bytes_per_clock"]) / clock
        best = min(best, device["trip_clocks"] / clock + exchange + product + CELL)
    return best
