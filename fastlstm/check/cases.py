"""The calls by which engines are checked, and how `reference` in float64 judges their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..engine.by_reference import run_reference
from ..engine.call import LAYOUTS, Call, Regularizers, Results, stack_shapes
from .parent import Case

# The bits of the significand for each kind of arithmetic; a roundoff is 2**-bits. bfloat16 has 8,
# but 9 make its check stricter. "tf32" is float32 with matrix products in TF32.
BITS = {"float64": 53, "float32": 24, "tf32": 11, "bfloat16": 9, "float16": 11}
# The bits for prepacked layers with float32 input: 11 if the weights are rounded to 16 or 8 bits.
PREPACKED_BITS = {"prepacked": 24, "prepacked in bfloat16": 11, "prepacked in int8": 11}
TOLERANCE = 32  # the largest error allowed, in roundoffs; 4 times that with layer normalization

# The words of a case say which options its call has.
OPTIONS = (
    "plain; no bias; two layers, both directions; packed; packed, both directions; lengths; "
    "lengths, both directions, no state; reset; reset, lengths, both directions; projection, "
    "both directions; layer norm, lengths; recurrent dropout, both directions; cell states, both "
    "directions; one step; one row; large H"
).split("; ")
# Calls that are timed as well: in inference, unless the name has the word "training".
TIMED = ("typical", "typical, training", "typical, packed, training", "typical step")
# Steps, rows, input_size and hidden_size. A case takes the first key that its name contains.
SIZES = {
    "large H": (6, 9, 64, 512),
    "one row": (40, 1, 6, 33),
    "one step": (1, 5, 6, 33),
    "typical step": (1, 1, 128, 256),
    "typical": (25, 16, 128, 256),
    "": (7, 5, 6, 33),
}


def cases_of(engines: Sequence[str], device: torch.device, timed: bool = False) -> list[Case]:
    """The cases of each engine. If `timed`, engines of the op also have the calls of TIMED."""
    cases = []
    kinds = [kind for kind in BITS if kind != "tf32" or device.type == "cuda"]
    for engine in engines:
        pairs = [*product(OPTIONS, ["float32"] if engine in PREPACKED_BITS else kinds)]
        if timed and engine != "torch" and engine not in PREPACKED_BITS:
            pairs += product(TIMED, ["float32", "bfloat16"])
        cases += [{"engine": engine, "dtype": kind, "option": option} for option, kind in pairs]
    return cases


def draw(option: str, kind: str, device: torch.device) -> Call:
    """The call of a case, with the same values on every device."""
    T, B, I, H = next(sizes for word, sizes in SIZES.items() if word in option)
    P = 9 if "projection" in option else H
    L, D = 1 + ("two layers" in option), 1 + ("both directions" in option)
    layout = LAYOUTS["no bias" not in option, "projection" in option, "layer norm" in option]
    dtype = getattr(torch, "float32" if kind == "tf32" else kind)
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (drawn / (2 if len(shape) == 1 else shape[-1] ** 0.5)).to(dtype).to(device)

    weights = [values(*shape) for shape in stack_shapes(layout, I, H, P, L, D)]
    lengths = torch.linspace(T, "packed" in option, B).long()  # from T to 1 if packed, else to 0
    batch_sizes = (torch.arange(T).unsqueeze(1) < lengths).sum(1) if "packed" in option else None
    rows = (T, B) if batch_sizes is None else (int(lengths.sum()),)
    hx = None if "no state" in option else (values(L * D, B, P), values(L * D, B, H))
    reset = torch.rand(T, B, generator=generator) < 0.3
    return Call(values(*rows, I), hx, weights, layout, L, D, batch_sizes)._replace(
        lengths=lengths.flip(0).to(device) if "lengths" in option else None,
        reset=reset.to(device) if "reset" in option else None,
        # A probability of 1 drops all of h: this mask is the same on every device.
        regularizers=Regularizers(recurrent_dropout=1.0) if "dropout" in option else None,
        return_cell_states="cell states" in option,
    )


def compute(
    run: Callable[[Call], Results], call: Call, dtype: torch.dtype, differentiates: bool = True
) -> dict[str, Tensor]:
    """The results and gradients of a call by name. Upstream gradients are rounded to `dtype`."""
    call = call.mapped(lambda tensor: tensor.detach().requires_grad_(differentiates))
    output, (h_n, c_n), cells = run(call)
    tensors = {"output": output, "h_n": h_n, "c_n": c_n}
    if call.return_cell_states:
        tensors["cell states"] = cells[0]
    if differentiates:
        options: Any = {"generator": torch.Generator().manual_seed(1), "dtype": torch.float64}
        upstream = [torch.randn(r.shape, **options).to(dtype).to(r) for r in tensors.values()]
        gradients = torch.autograd.grad([*tensors.values()], call.tensors(), upstream)
        tensors |= {f"gradient {k}": gradient for k, gradient in enumerate(gradients)}
    return {name: value.detach() for name, value in tensors.items()}


def expected_results(option: str, kind: str, device: torch.device) -> dict[str, Tensor]:
    """The results of a case by the equations in float64, with the values of the case's tensors."""
    call = draw(option, kind, device)
    return compute(run_reference, call.mapped(Tensor.double), call.input.dtype)


def judge(
    option: str, bits: int, got: dict[str, Tensor], correct: dict[str, Tensor]
) -> tuple[float, str]:
    """The largest of error / (roundoff * max(1, |correct|.max())), and what is wrong or ''."""
    errors = {}
    for name, value in got.items():
        error = (value.to(correct[name]) - correct[name]).abs().max()
        errors[name] = (error / correct[name].abs().max().clamp(min=1)).item() * 2.0**bits
    limit = 4 * TOLERANCE if "layer norm" in option else TOLERANCE
    wrong = ", ".join(f"{name} {e:.3g}" for name, e in errors.items() if not e <= limit)
    return max(errors.values()), f"errors above {limit} roundoffs: {wrong}" if wrong else ""
