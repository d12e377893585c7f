"""Runs a call by the equations in Python. Under autocast it casts the same tensors as the op.

Second derivatives come from here too: under create_graph the backward of the op calls
`recorded_gradients` (csrc/op/autograd.cpp).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .call import Call, LstmCall, Results, autocasts, replaced
from .checks import check_layer
from .stack import run_layers


def run_reference(call: Call) -> Results:
    """Runs a call by `reference.lstm_layer`."""
    return run_layers(replaced(call, hx=call.state()), _run_layer)


def _run_layer(*fields_and_masks: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = len(LstmCall._fields)
    call, zoneout_masks = LstmCall(*fields_and_masks[:count]), fields_and_masks[count:]
    device = call.input.device.type
    if not autocasts(device):
        check_layer(call)
        return reference.lstm_layer(*call, *zoneout_masks)
    call = _as_autocast(call, torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _run_layer(*call, *zoneout_masks)


def _as_autocast(call: LstmCall, dtype: torch.dtype) -> LstmCall:
    """Casts as the op does. Unchanged: float64; float32 c_0 on a CPU if there is a projection."""

    def cast(value: Any) -> Any:
        is_floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_floating and value.dtype != torch.float64 else value

    c_0, weights = call.c_0, [cast(weight) for weight in call.weights]
    keeps_c_0 = c_0.dtype == torch.float32 and c_0.is_cpu and "projection" in call.layout
    cast_call = replaced(LstmCall(*map(cast, call)), weights=weights)
    return replaced(cast_call, c_0=c_0) if keeps_c_0 else cast_call


def recorded_gradients(grads: Sequence[Tensor | None], *fields: Any) -> list[Tensor | None]:
    """Returns gradients of a layer's input, h_0, c_0 and weights that autograd has recorded.

    `grads` are those of output, h_n, c_n and cells; `fields` those of an `LstmCall`.
    """
    call = LstmCall(*fields)
    device = call.input.device.type
    no_autocast = torch.autocast(device, enabled=False) if autocasts(device) else None
    with torch.enable_grad(), no_autocast or contextlib.nullcontext():
        # With views autograd stops at the layer's own arguments. Otherwise it could go on through
        # the history of an argument, such as an input that was computed with the same weight.
        views = [tensor.view_as(tensor) for tensor in (*call[:3], *call.weights)]
        results = reference.lstm_layer(views[0], views[1], views[2], views[3:], *call[4:])
        pairs = [(r, g) for r, g in zip(results, grads, strict=False) if g is not None]
        needed = [tensor for tensor in views if tensor.requires_grad]
        outputs, upstream = [r for r, _ in pairs], [g.reshape(r.shape) for r, g in pairs]
        options = {"create_graph": True, "allow_unused": True}
        gradients = iter(torch.autograd.grad(outputs, needed, upstream, **options))
    return [next(gradients) if tensor.requires_grad else None for tensor in views]
