"""The arithmetic of an LSTM, and how fast a CPU multiplies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from cases import Case
from timing import Effort, cpu_clock, median_time


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
