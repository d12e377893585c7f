"""Second derivatives: under create_graph the gradients are made of operations that have their own.

The backward of our op (csrc/op/autograd.cpp) calls `of_layer`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._call import LstmCall, autocasts


def of_layer(grads: Sequence[Tensor | None], *call: Any) -> list[Tensor | None]:
    """The gradients of a layer's input, h_0, c_0 and weights from those of what the op returns."""
    whole = LstmCall(*call)
    tensors = [*whole[:3], *whole.weights]
    device = whole.input.device.type
    as_given = torch.autocast(device, enabled=False) if autocasts(device) else None
    with torch.enable_grad(), as_given or contextlib.nullcontext():
        # Views: the derivative by one must not run on through the history of another, such as that
        # of a layer's input through a weight that both layers share.
        views = [tensor.view_as(tensor) for tensor in tensors]
        results = reference.lstm_layer(views[0], views[1], views[2], views[3:], *whole[4:])
        pairs = [(r, g) for r, g in zip(results, grads, strict=False) if g is not None]
        needed = [tensor for tensor in views if tensor.requires_grad]
        gradients = torch.autograd.grad(
            [result for result, _ in pairs],
            needed,
            [gradient.reshape(result.shape) for result, gradient in pairs],
            create_graph=True,
            allow_unused=True,
        )
    each = iter(gradients)
    return [next(each) if tensor.requires_grad else None for tensor in views]
