"""The weight formats of prepacked layers: checks, quantization, packing and unpacking."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _build

_LARGEST = 127  # the largest int8 weight
SMALLER = (torch.bfloat16, torch.int8)  # formats of 16 and 8 bits, for all layers but float64
KNOWN = (torch.float32, torch.float64, torch.float16, *SMALLER)


def problem(
    name: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], format: torch.dtype
) -> str | None:
    """Why a weight cannot be prepacked, or None. An int8 weight has a scale for each row."""
    for key, value, expected in ((name, tensor, shape), (f"{name}_scale", scale, shape[:1])):
        if value is not None and tuple(value.shape) != expected:
            in_checkpoint = f"copying a param with shape {value.shape} from checkpoint"
            in_model = f"the shape in current model is {torch.Size(expected)}"
            return f"size mismatch for {key}: {in_checkpoint}, {in_model}."
    if scale is not None and not scale.isfinite().all():
        return f"{name}_scale: expected finite scales, got {scale[~scale.isfinite()][0]}"
    if tensor.dtype == torch.int8:
        for got in tensor[tensor < -_LARGEST]:
            return f"{name}: expected int8 weights from -{_LARGEST} to {_LARGEST}, got {got}"
    if format == torch.int8 and len(shape) == 2 and not tensor.isfinite().all():
        got = tensor[~tensor.isfinite()][0]
        return f"{name}: expected finite weights to quantize to int8, got {got}"
    return None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight to int8. Returns it with a float32 scale for each row."""
    scale = weight.float().abs().amax(1) / _LARGEST
    q = weight.float() / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return q.round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def dequantize(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A weight from int8 values and the scales of its rows, or the tensor itself without scales."""
    return tensor if scale is None else tensor * scale.unsqueeze(1)


def name_of(format: torch.dtype) -> str:
    """The name of a format in a layout; float16 is multiplied as float32."""
    return "float32" if format == torch.float16 else str(format).removeprefix("torch.")


def pack(tensor: Tensor, scale: Tensor | None, format: torch.dtype, by_gates: bool) -> Tensor:
    """Returns a matrix [rows,columns] as bytes: a header, then panels as this processor reads them.

    An int8 matrix may have a float32 `scale` [rows]. `by_gates` is true if a panel has to hold all
    four gates of its units.
    """
    name = name_of(format)
    if format != torch.int8:
        tensor, scale = dequantize(tensor, scale).to(getattr(torch, name)), None
    elif tensor.dtype != torch.int8:
        tensor, scale = quantize(dequantize(tensor, scale))
    packed: Tensor = _build.library.pack_weight(tensor.contiguous(), scale, name, by_gates)
    return packed


def unpack(packed: Tensor, format: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Returns the matrix from the panels that `pack` made, and its scales or None."""
    tensor, scale = _build.library.unpack_weight(packed)
    return (tensor if scale is not None else tensor.to(format)), scale
