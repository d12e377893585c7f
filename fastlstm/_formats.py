"""A weight in the format in which a packed layer holds it: checked, quantized, packed, unpacked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _build

Weights = torch.dtype | Literal["int4"]  # by what `prepack` calls a format


_LARGEST: dict[Weights, int] = {torch.int8: 127, "int4": 7}  # of whole numbers, which have scales
_GROUP = 32  # neighbors in a row of int4 that share a scale; a row of int8 has one
SMALLER: tuple[Weights, ...] = (torch.bfloat16, *_LARGEST)  # for layers of 32 or 16 bits


def _whole(scale: Tensor | None) -> Weights:
    """The format of whole numbers with these scales."""
    return torch.int8 if scale is None or scale.dim() == 1 else "int4"


def problem(
    name: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...], weights: Weights
) -> str | None:
    """Why a weight, of whole numbers with its scales, cannot be packed."""
    whole = _whole(scale)
    groups = tuple(-(-k // _GROUP) for k in shape[1:] if whole == "int4")
    scales = (f"{name}_scale", scale, shape[:1] + groups)
    for of, given, expected in ((name, tensor, shape), scales):
        if given is not None and tuple(given.shape) != expected:
            return (
                f"size mismatch for {of}: copying a param with shape {given.shape} from checkpoint,"
                f" the shape in current model is {torch.Size(expected)}."
            )
    if scale is not None and not scale.isfinite().all():
        return f"{name}_scale: expected finite scales, got {scale[~scale.isfinite()][0]}"
    if tensor.dtype == torch.int8:
        bound = _LARGEST[whole]
        for got in tensor[(tensor < -bound) | (tensor > bound)]:
            return f"{name}: expected {name_of(whole)} weights from -{bound} to {bound}, got {got}"
    if weights in _LARGEST and len(shape) == 2 and not tensor.isfinite().all():
        got = tensor[~tensor.isfinite()][0]
        return f"{name}: expected finite weights to make {name_of(weights)} of them, got {got}"
    return None


def quantize(weight: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Whole numbers with float32 scales: weight is about `dequantize` of them."""
    (rows, K), largest = weight.shape, _LARGEST[weights]
    group = _GROUP if weights == "int4" else K
    groups = pad(weight.float(), (0, -K % group)).reshape(rows, -1, group)
    scale = groups.abs().amax(2) / largest
    q = groups / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(2)
    q = q.round().clamp(-largest, largest).to(torch.int8).flatten(1)[:, :K]
    return q, scale if weights == "int4" else scale.squeeze(1)


def dequantize(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A weight by its whole numbers and the scales of its rows or of the groups in them."""
    if scale is None:
        return tensor
    if _whole(scale) == "int4":
        return tensor * scale.repeat_interleave(_GROUP, 1)[:, : tensor.size(1)]
    return tensor * scale.unsqueeze(1)


def name_of(weights: Weights) -> str:
    """The name of a format; no processor multiplies float16."""
    return "float32" if weights == torch.float16 else str(weights).removeprefix("torch.")


def pack(tensor: Tensor, scale: Tensor | None, weights: Weights, by_gates: bool) -> Tensor:
    """A matrix in the panels of this processor: bytes, behind a header that describes them.

    `weights` is the format wanted. With `by_gates` a panel holds all four gates of a unit.
    """
    name = name_of(weights)
    if weights not in _LARGEST:
        tensor, scale = dequantize(tensor, scale).to(getattr(torch, name)), None
    elif scale is None or tensor.dtype != torch.int8 or _whole(scale) != weights:
        tensor, scale = quantize(dequantize(tensor, scale), weights)
    packed: Tensor = _build.library.pack_weight(tensor.contiguous(), scale, name, by_gates)
    return packed


def unpack(packed: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """The matrix that was packed, in its format, and its scales."""
    tensor, scale = _build.library.unpack_weight(packed)
    return (tensor if scale is not None else tensor.to(weights)), scale
