"""The calls by which an engine is checked, and how its results are judged.

The results and gradients of a call are compared with the equations of `reference` in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.by_reference import run_reference
from ..engine.call import LAYOUTS, Call, Results, weight_shapes

# The bits of a significand by kind of arithmetic. "tf32" is float32 with products in TF32.
BITS = {"float64": 53, "float32": 24, "tf32": 11, "bfloat16": 9, "float16": 11}
TOLERANCE = 32  # roundoffs of the largest value; four times as many with layer normalization

# The words of a case say which options its call has.
CASES = (
    "plain; no bias; two layers, both directions; packed; packed, both directions; lengths; "
    "lengths, both directions, no state; reset; reset, lengths, both directions; projection, "
    "both directions; layer norm, lengths; cell states, lengths, both directions; one step; "
    "one row; large H"
).split("; ")
# Typical calls, which are timed; without the words, in inference and in float32.
TIMED = (
    "typical; typical, training; typical, packed, training; typical, bfloat16; typical, bfloat16, "
    "training; typical step"
).split("; ")
SMALL = "small, reset, lengths"  # is compared before the first use of kernels that were not checked
# Steps, rows, input_size and hidden_size of the cases with a word, the first that fits.
SIZES = {
    "large H": (6, 9, 64, 512),
    "one row": (40, 1, 6, 33),
    "one step": (1, 5, 6, 33),
    "small": (3, 5, 6, 33),
    "typical step": (1, 1, 128, 256),
    "typical": (25, 16, 128, 256),
    "": (7, 5, 6, 33),
}


def kinds_of(device: torch.device) -> list[str]:
    """The kinds of arithmetic that a device has."""
    return [kind for kind in BITS if kind != "tf32" or device.type == "cuda"]


def dtype_of(kind: str) -> torch.dtype:
    """The dtype of the tensors of a kind of arithmetic."""
    dtype: torch.dtype = getattr(torch, "float32" if kind == "tf32" else kind)
    return dtype


def draw(case: str, kind: str, device: torch.device) -> Call:
    """The call of a case, with the same values on every device."""
    T, B, I, H = next(sizes for word, sizes in SIZES.items() if word in case)
    P = 9 if "projection" in case else H
    L, D = 1 + ("two layers" in case), 1 + ("both directions" in case)
    layout = LAYOUTS["no bias" not in case, "projection" in case, "layer norm" in case]
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (drawn / (2 if len(shape) == 1 else shape[-1] ** 0.5)).to(dtype_of(kind)).to(device)

    weights = [
        values(*shape)
        for size in [I, *[D * P] * (L - 1)]
        for shape in D * weight_shapes(layout, size, H, P)
    ]
    lengths = torch.linspace(T, "packed" in case, B).long()
    batch_sizes = (torch.arange(T).unsqueeze(1) < lengths).sum(1) if "packed" in case else None
    rows = (T, B) if batch_sizes is None else (int(lengths.sum()),)
    hx = None if "no state" in case else (values(L * D, B, P), values(L * D, B, H))
    reset = torch.rand(T, B, generator=generator) < 0.3
    return Call(
        values(*rows, I),
        hx,
        weights,
        layout,
        L,
        D,
        batch_sizes,
        lengths.flip(0).to(device) if "lengths" in case else None,
        reset.to(device) if "reset" in case else None,
        return_cell_states="cell states" in case,
    )


def results(run: Callable[[Call], Results], call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """By name what a call returns, and its gradients for upstream gradients of a dtype's values."""
    state = call.hx or ()
    leaves = [t.detach().requires_grad_() for t in (call.input, *state, *call.weights)]
    input, weights = leaves[0], leaves[1 + len(state) :]
    hx = (leaves[1], leaves[2]) if state else None
    output, (h_n, c_n), cells = run(call._replace(input=input, hx=hx, weights=weights))
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    if call.return_cell_states and call.lengths is not None:
        steps = torch.arange(call.input.size(0), device=output.device).unsqueeze(1)
        is_live = (steps < call.lengths).unsqueeze(-1)  # after that cell states are not specified
        found["cell states"] = torch.where(is_live, cells[0], 0.0)
    generator = torch.Generator().manual_seed(1)
    upstream = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype).to(value)
        for value in found.values()
    ]
    gradients = torch.autograd.grad([*found.values()], leaves, upstream)
    found |= {f"gradient {k}": gradient for k, gradient in enumerate(gradients)}
    return {name: value.detach() for name, value in found.items()}


def expected(case: str, kind: str, device: torch.device) -> dict[str, Tensor]:
    """The results by the equations in float64, for the values of a kind of arithmetic."""
    call = draw(case, kind, device)
    hx = None if call.hx is None else (call.hx[0].double(), call.hx[1].double())
    weights = [weight.double() for weight in call.weights]
    call = call._replace(input=call.input.double(), hx=hx, weights=weights)
    return results(run_reference, call, dtype_of(kind))


def judge(
    case: str, kind: str, found: dict[str, Tensor], right: dict[str, Tensor]
) -> tuple[float, str]:
    """The largest error in roundoffs of the largest value, and what is wrong, or ""."""
    errors = {}
    for name, value in right.items():
        error = (found[name].to(value) - value).abs().max() / value.abs().max().clamp(min=1)
        errors[name] = error.item() * 2.0 ** BITS[kind]
    limit = 4 * TOLERANCE if "layer norm" in case else TOLERANCE
    wrong = ", ".join(f"{name} {e:.3g}" for name, e in errors.items() if not e <= limit)
    text = f"errors in roundoffs, of {limit} allowed: {wrong}" if wrong else ""
    return max(errors.values()), text
