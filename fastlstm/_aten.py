"""PyTorch's own LSTM as an engine: all layers in one call of `aten::lstm`, as nn.LSTM makes it.

Autograd is aten's too, so results and gradients have the bits of nn.LSTM. What aten lacks on a GPU
is added: gradients in eval mode, and second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _route
from ._call import LstmCall, layout_of, layout_of_stack
from ._checks import check_layer
from ._layers import by_layers, run_layer


def lstm(
    call: LstmCall, num_layers: int, directions: int, dropout: float, training: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """output, (h_n, c_n) and no cell states of a stack of layers, given together as `call`."""
    input, h_0, c_0, weights, layout, batch_sizes, *_ = call
    if not input.is_cpu:
        h_0, c_0 = h_0.contiguous(), c_0.contiguous()
        if not training and torch.is_grad_enabled():
            # cuDNN keeps what backward needs only if it is told that this is training.
            training = any(t.requires_grad for t in (input, h_0, c_0, *weights))
            dropout = 0.0
    options = "bias" in layout, num_layers, dropout, training, directions == 2
    run: Any = torch._VF.lstm
    if batch_sizes is None:
        output, h_n, c_n = run(input, (h_0, c_0), weights, *options, False)  # steps first
    else:
        output, h_n, c_n = run(input, batch_sizes, (h_0, c_0), weights, *options)
    if not input.is_cpu:
        differentiate_twice(output)
    return output, (h_n, c_n), []


def lstm_cell(
    input: Tensor, h: Tensor, c: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor] | None:
    """The next h and c [B,H]; None if there is an error that aten would not see."""
    gates = weights[0].shape[:1]
    if h.dtype != c.dtype or h.shape != c.shape or [b for b in weights[2:] if b.shape != gates]:
        return None
    run: Any = torch._VF.lstm_cell
    try:
        step: tuple[Tensor, Tensor] = run(input, (h, c), *weights)
    except RuntimeError:
        state = h.unsqueeze(0), c.unsqueeze(0)
        check_layer(LstmCall(input.unsqueeze(0), *state, weights, layout_of(len(weights) > 2)))
        raise
    return step


# The nodes of the graph whose backward has no derivative, as of torch 2.13.
_ONCE_DIFFERENTIABLE = ("CudnnRnnBackward0", "MiopenRnnBackward0", "LstmMpsBackward0")


def differentiate_twice(output: Tensor) -> None:
    """Gives the node of the graph that made an output second derivatives if it has none.

    The hook costs nothing but its call: under create_graph it computes the layers again, from what
    the node saved, by an engine that can be differentiated twice.
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
    with torch.autocast(tensors[0].device.type, enabled=False):
        # Views, so that a state that was computed from the input is a variable of its own.
        own = [tensor.view_as(tensor) for tensor in tensors]
        others = own.copy()
        del others[weights]
        input, h_0, c_0 = others
        sizes = getattr(node, "_saved_batch_sizes", ())
        call = LstmCall(
            input.transpose(0, 1) if node._saved_batch_first else input,
            h_0,
            c_0,
            own[weights],
            layout_of_stack(own[weights], len(h_0)),
            torch.tensor(sizes) if sizes else None,
        )
        engine = _route.of_op(call, "auto").engine
        output, state, _ = by_layers(
            call, node._saved_num_layers, lambda layer, _: run_layer(layer, engine, recompute=True)
        )
        if node._saved_batch_first:
            output = output.transpose(0, 1)
    pairs = [(r, g) for r, g in zip((output, *state), grad_outputs, strict=False) if g is not None]
    needed = [k for k, gradient in enumerate(grad_inputs) if gradient is not None]
    found = torch.autograd.grad(
        [result for result, _ in pairs],
        [own[k] for k in needed],
        [gradient for _, gradient in pairs],
        create_graph=True,
        allow_unused=True,
    )
    by_place = dict(zip(needed, found, strict=True))
    return tuple(by_place.get(k) for k in range(len(grad_inputs)))


def _saved_tensors(node: Any) -> tuple[list[Tensor], slice]:
    """What a node was computed from, in the order of its gradients, and where the weights stand."""
    if hasattr(node, "_saved_params"):  # Apple's
        return [node._saved_input, *node._saved_hx, *node._saved_params], slice(3, None)
    weights = node._saved_weight
    return [node._saved_input, *weights, node._saved_hx, node._saved_cx], slice(1, -2)
