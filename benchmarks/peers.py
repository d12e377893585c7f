"""Other CUDA LSTMs, if they are installed: haste_pytorch and flashrnn.

Each walks the steps of a layer. flashrnn leaves the input projection x W_ih^T + b to its caller;
haste_pytorch computes it inside. So both are reported with and without it: the time of that product
alone is added or subtracted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case
from timing import Clock, Effort, median_time
from torch import Tensor


def _step(case: Case, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Tensor]:
    if case.mode == "inference":
        return forward
    for leaf in leaves:
        leaf.requires_grad_()
    grad_output = torch.randn_like(forward())

    def training_step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = forward()
        output.backward(grad_output)
        return output

    return training_step


def projection(case: Case, device: str) -> Callable[[], Tensor]:
    """The input projection of all steps, as every LSTM needs it; gradients too in training."""
    options: dict[str, Any] = {"device": device, "dtype": case.dtype}
    x = torch.randn(case.steps, case.batch, case.input_size, **options)
    weight = torch.randn(4 * case.hidden_size, case.input_size, **options)
    bias = torch.randn(4 * case.hidden_size, **options)
    return _step(case, lambda: F.linear(x, weight, bias), [x, weight, bias])


def haste(case: Case, device: str) -> Callable[[], Tensor]:
    import haste_pytorch

    module = haste_pytorch.LSTM(case.input_size, case.hidden_size).to(device, case.dtype)
    module.train(case.mode == "training")
    x = torch.randn(case.steps, case.batch, case.input_size, device=device, dtype=case.dtype)
    return _step(case, lambda: module(x)[0], [x, *module.parameters()])


def flashrnn(case: Case, device: str) -> Callable[[], Tensor]:
    from flashrnn import flashrnn

    B, T, H = case.batch, case.steps, case.hidden_size
    options: dict[str, Any] = {"device": device, "dtype": case.dtype}
    Wx = torch.randn(B, T, 4, 1, H, **options)
    R = torch.randn(4, 1, H, H, **options) / H**0.5
    b = torch.randn(4, 1, H, **options)

    def forward() -> Tensor:
        states, _ = flashrnn(Wx, R, b, function="lstm", backend="cuda_fused")
        return states[0]

    return _step(case, forward, [Wx, R, b])


# name of the module: (how to build a step, whether the step makes the input projection)
PEERS = {"haste_pytorch": (haste, True), "flashrnn": (flashrnn, False)}


def installed() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(name)]


def measure(case: Case, device: str, clock: Clock, effort: Effort) -> dict[str, object]:
    """Seconds of each installed peer on a case, with and without the input projection.

    Returns:
        "projection" and each peer: seconds, `{"with_projection": s, "without_projection": s}`, or
        the message of the error with which the peer refused.
    """
    result: dict[str, object] = {}
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = case.precision == "tf32"
    try:
        product = median_time(projection(case, device), clock, effort)
        result["projection"] = product
        for name in installed():
            build, projects = PEERS[name]
            try:
                seconds = median_time(build(case, device), clock, effort)
            except Exception as error:  # a peer may refuse a shape in any way
                result[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            result[name] = {
                "with_projection": seconds if projects else seconds + product,
                "without_projection": seconds - product if projects else seconds,
            }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
    return result
