"""A weight in the format in which a packed layer holds it: checked, quantized, packed, unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _build

Weights = torch.dtype  # by what `prepack` calls a format
SMALLER = (torch.bfloat16, torch.int8)  # what weights of 32 or 16 bits may become


def problem(
    name: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], weights: Weights
) -> str | None:
    """Why a weight, of int8 with its scale, cannot be packed."""
    for of, given, expected in ((name, tensor, shape), (f"{name}_scale", scale, shape[:1])):
        if given is not None and tuple(given.shape) != expected:
            return (
                f"size mismatch for {of}: copying a param with shape {given.shape} from checkpoint,"
                f" the shape in current model is {torch.Size(expected)}."
            )
    if scale is not None and not scale.isfinite().all():
        return f"{name}_scale: expected finite scales, got {scale[~scale.isfinite()][0]}"
    if tensor.dtype == torch.int8 and (tensor == -128).any():
        return f"{name}: expected int8 weights from -127 to 127, got -128"
    if weights == torch.int8 and len(shape) == 2 and not tensor.isfinite().all():
        got = tensor[~tensor.isfinite()][0]
        return f"{name}: expected finite weights to make int8 of them, got {got}"
    return None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 from -127 to 127 with a float32 scale a row: weight is about q * scale[:, None]."""
    weight = weight.float()
    scale = weight.abs().amax(1) / 127
    q = weight / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return q.round().clamp(-127, 127).to(torch.int8), scale


def dequantize(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A weight by its whole numbers and the scales of its rows."""
    return tensor if scale is None else tensor * scale.unsqueeze(1)


def name_of(weights: Weights) -> str:
    """The format of weights of a dtype; no processor multiplies float16."""
    return "float32" if weights == torch.float16 else str(weights).removeprefix("torch.")


def pack(tensor: Tensor, scale: Tensor | None, weights: Weights, by_gates: bool) -> Tensor:
    """A matrix in the panels of this processor: bytes, behind a header that describes them.

    `weights` is the dtype wanted. With `by_gates` a panel holds all four gates of a unit.
    """
    if scale is not None and not weights == tensor.dtype == torch.int8:
        tensor, scale = dequantize(tensor, scale), None
    if scale is None and weights == torch.int8:
        tensor, scale = quantize(tensor)
    name = name_of(weights)
    packed: Tensor = _build.library.pack_weight(
        tensor.to(getattr(torch, name)).contiguous(), scale, name, by_gates
    )
    return packed


def unpack(packed: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """The matrix that was packed, of that dtype, and its scales."""
    tensor, scale = _build.library.unpack_weight(packed)
    return (tensor if scale is not None else tensor.to(weights)), scale
