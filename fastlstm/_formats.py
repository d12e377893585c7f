"""A weight in the format in which a packed layer holds it: checked, quantized, packed, unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _build

_LARGEST = 127  # of the whole numbers of int8, which have a scale for each row
SMALLER = (torch.bfloat16, torch.int8)  # for layers of 32 or 16 bits
KNOWN = (torch.float32, torch.float64, torch.float16, *SMALLER)


def problem(
    name: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], weights: torch.dtype
) -> str | None:
    """Why a weight, of whole numbers with its scales, cannot be packed."""
    for key, value, expected in ((name, tensor, shape), (f"{name}_scale", scale, shape[:1])):
        if value is not None and tuple(value.shape) != expected:
            return (
                f"size mismatch for {key}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {torch.Size(expected)}."
            )
    if scale is not None and not scale.isfinite().all():
        return f"{name}_scale: expected finite scales, got {scale[~scale.isfinite()][0]}"
    if tensor.dtype == torch.int8:
        for got in tensor[tensor < -_LARGEST]:
            return f"{name}: expected int8 weights from -{_LARGEST} to {_LARGEST}, got {got}"
    if weights == torch.int8 and len(shape) == 2 and not tensor.isfinite().all():
        got = tensor[~tensor.isfinite()][0]
        return f"{name}: expected finite weights to make int8 of them, got {got}"
    return None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers with a float32 scale for each row: weight is about `dequantize` of them."""
    scale = weight.float().abs().amax(1) / _LARGEST
    q = weight.float() / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return q.round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def dequantize(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A weight by its whole numbers and the scales of its rows."""
    return tensor if scale is None else tensor * scale.unsqueeze(1)


def name_of(weights: torch.dtype) -> str:
    """The name of a format; no processor multiplies float16."""
    return "float32" if weights == torch.float16 else str(weights).removeprefix("torch.")


def pack(tensor: Tensor, scale: Tensor | None, weights: torch.dtype, by_gates: bool) -> Tensor:
    """A matrix in the panels of this processor: bytes, behind a header that describes them.

    `weights` is the format wanted. With `by_gates` a panel holds all four gates of a unit.
    """
    name = name_of(weights)
    if weights != torch.int8:
        tensor, scale = dequantize(tensor, scale).to(getattr(torch, name)), None
    elif scale is None or tensor.dtype != torch.int8:
        tensor, scale = quantize(dequantize(tensor, scale))
    packed: Tensor = _build.library.pack_weight(tensor.contiguous(), scale, name, by_gates)
    return packed


def unpack(packed: Tensor, weights: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix that was packed, in its format, and its scales."""
    tensor, scale = _build.library.unpack_weight(packed)
    return (tensor if scale is not None else tensor.to(weights)), scale
