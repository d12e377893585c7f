"""Second derivatives: under create_graph the gradients are made of operations that have their own.

The backward of our op (csrc/op/autograd.cpp) calls `of_layer`; nodes of ATen that have no second
derivative call it through a hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from . import _route, reference
from ._call import LstmCall, layout_of_stack
from ._layers import by_layers

# The nodes of the graph whose backward has no derivative, as of torch 2.13.
_ONCE_DIFFERENTIABLE = ("CudnnRnnBackward0", "MiopenRnnBackward0", "LstmMpsBackward0")


def of_layer(grads: Sequence[Tensor | None], *call: Any) -> list[Tensor | None]:
    """The gradients of a layer's input, h_0, c_0 and weights from those of what the op returns."""
    whole = LstmCall(*call)

    def run(input: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return reference.lstm_layer(input, h_0, c_0, weights, *whole[4:])

    return _gradients(run, [*whole[:3], *whole.weights], grads)


def _gradients(
    run: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of all `tensors` that need one from those of run(*tensors), in float32."""
    device = tensors[0].device.type
    as_given = torch.autocast(device, enabled=False) if _route.autocasts(device) else None
    with torch.enable_grad(), as_given or contextlib.nullcontext():
        # Views: the derivative by one must not run on through the history of another, such as that
        # of a layer's input through a weight that both layers share.
        own = [tensor.view_as(tensor) for tensor in tensors]
        pairs = [(r, g) for r, g in zip(run(*own), grads, strict=False) if g is not None]
        needed = [tensor for tensor in own if tensor.requires_grad]
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            needed,
            [gradient.reshape(result.shape) for result, gradient in pairs],
            create_graph=True,
            allow_unused=True,
        )
    of_needed = iter(found)
    return [next(of_needed) if tensor.requires_grad else None for tensor in own]


def differentiate(output: Tensor) -> None:
    """Gives the node of the graph that made an output second derivatives if it has none.

    The hook costs nothing but its call.
    """
    node: Any = output.grad_fn
    if node is not None and node.name() in _ONCE_DIFFERENTIABLE:
        node.register_hook(_differentiable_gradients)


def _differentiable_gradients(
    grad_inputs: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """The gradients of the node at work, under create_graph; None leaves them as they are."""
    node: Any = torch._C._current_autograd_node()
    if not torch.is_grad_enabled() or node._saved_dropout > 0:  # whose mask nobody can draw again
        return None
    tensors, weights = _saved_tensors(node)
    sizes = getattr(node, "_saved_batch_sizes", ())
    batch_first = node._saved_batch_first

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        others = list(tensors)
        del others[weights]
        input, h_0, c_0 = others
        call = LstmCall(
            input.transpose(0, 1) if batch_first else input,
            h_0,
            c_0,
            tensors[weights],
            layout_of_stack(tensors[weights], len(h_0)),
            torch.tensor(sizes) if sizes else None,
        )
        output, state, _ = by_layers(
            call, node._saved_num_layers, lambda layer, _: reference.lstm_layer(*layer)
        )
        return output.transpose(0, 1) if batch_first else output, *state

    found = _gradients(run, tensors, grad_outputs)
    return tuple(None if g is None else new for g, new in zip_longest(grad_inputs, found))


def _saved_tensors(node: Any) -> tuple[list[Tensor], slice]:
    """What a node was computed from, in the order of its gradients, and where the weights stand."""
    if hasattr(node, "_saved_params"):  # Apple's
        return [node._saved_input, *node._saved_hx, *node._saved_params], slice(3, None)
    weights = node._saved_weight
    return [node._saved_input, *weights, node._saved_hx, node._saved_cx], slice(1, -2)
