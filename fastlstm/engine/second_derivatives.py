"""Second derivatives: gradients of a layer, computed by operations that autograd records.

The backward of the op calls `recorded_gradients` under create_graph (csrc/op/autograd.cpp).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .call import LstmCall, autocasts


def recorded_gradients(grads: Sequence[Tensor | None], *fields: Any) -> list[Tensor | None]:
    """Returns the gradients of a layer's input, h_0, c_0 and weights.

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
