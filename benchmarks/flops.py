"""The number of operations of an LSTM, and the speed of a CPU in matrix products."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from cases import Case
from timing import Effort, median_time, wall_clock


def flops(case: Case, steps: int | None = None) -> int:
    """Returns the floating point operations of the matrix products of a case.

    They are 2 * steps * 4H * (I + H) per layer and direction, and with a projection to P features
    2 * steps * (4H * (I + P) + P * H). In training there are three times as many, because the
    backward pass has two products for every product of the forward pass. `steps` is the sum of the
    lengths of all rows; B * T if None.
    """
    all_steps = case.batch * case.steps if steps is None else steps
    directions = 2 if case.bidirectional else 1
    total = 0
    input_size = case.input_size
    for _ in range(case.num_layers):
        products = 4 * (input_size + case.output_size) + case.proj_size
        total += directions * 2 * all_steps * case.hidden_size * products
        input_size = directions * case.output_size
    return total * (3 if case.mode == "training" else 1)


def gemm_peak(dtype: torch.dtype, shapes: Iterable[tuple[int, int, int]]) -> float | None:
    """Returns the highest FLOP/s that oneDNN reaches in x [M,K] times w [N,K], transposed.

    `shapes` has (M, N, K) of each product to try; w is reordered once, before the measurement.
    Returns None if this torch has no oneDNN product with reordered weights in that dtype.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    best = 0.0
    for M, N, K in shapes:
        x, w = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
        try:
            reordered = torch.ops.mkldnn._reorder_linear_weight(w, M)
            torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")
        except RuntimeError:  # oneDNN has no such product for this dtype on this CPU
            return None

        def product(x: torch.Tensor = x, reordered: torch.Tensor = reordered) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")

        with torch.no_grad():
            best = max(best, 2 * M * N * K / median_time(product, wall_clock, Effort(0.3)))
    return best


def peak_shapes(cases: Iterable[Case]) -> list[tuple[int, int, int]]:
    """Returns (M, N, K) of a square product, and of one over all steps of each case."""
    shapes = {(c.batch * c.steps, 4 * c.hidden_size, c.input_size + c.hidden_size) for c in cases}
    return [(1024, 1024, 1024), *sorted(shapes)]
