"""PyTorch's own LSTM as an engine: all layers in one call of `aten::lstm`, as nn.LSTM makes it.

Autograd is aten's too, so results and gradients have the bits of nn.LSTM. What aten lacks on a GPU
is added: gradients in eval mode, and second derivatives (`_twice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _twice
from ._call import LstmCall, layout_of
from ._checks import check_layer


def lstm(
    call: LstmCall, num_layers: int, directions: int, dropout: float, training: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """output, (h_n, c_n) and no cell states of a stack of layers, given together as `call`."""
    if torch.compiler.is_dynamo_compiling():
        output, h_n, c_n = torch.ops.fastlstm.torch_lstm(*call[:6], num_layers, directions)
        return output, (h_n, c_n), []
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
        _twice.differentiate(output)
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


# For compiled calls: one op for a stack. torch.compile can trace none of aten's, since what cuDNN
# keeps for backward has a size that nobody knows before. So backward runs forward again.
_ARGUMENTS = (
    "Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, str layout, Tensor? batch_sizes, "
    "int num_layers, int directions"
)
_as_library: Any = torch.library.Library
_library = _as_library("fastlstm", "FRAGMENT")
_library.define(f"torch_lstm({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
_library.define(f"torch_lstm_backward(Tensor?[] grads, {_ARGUMENTS}) -> Tensor[]")


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *call, num_layers, directions = arguments
    with torch.no_grad():
        output, state, _ = lstm(LstmCall(*call), num_layers, directions, 0.0, False)
    return output.contiguous(), state[0].contiguous(), state[1].contiguous()


def _forward_shapes(
    input: Tensor, h_0: Tensor, c_0: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    size = others[-1] * h_0.size(-1)
    return (
        input.new_empty(*input.shape[:-1], size),
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape),
    )


def _backward(grads: Sequence[Tensor | None], *arguments: Any) -> list[Tensor]:
    input, h_0, c_0, weights, layout, batch_sizes, num_layers, directions = arguments
    leaves = [t.detach().requires_grad_() for t in (input, h_0, c_0, *weights)]
    with torch.enable_grad():
        call = LstmCall(leaves[0], leaves[1], leaves[2], leaves[3:], layout, batch_sizes)
        output, state, _ = lstm(call, num_layers, directions, 0.0, True)
    pairs = [(r, g) for r, g in zip((output, *state), grads, strict=True) if g is not None]
    found = torch.autograd.grad([r for r, _ in pairs], leaves, [g for _, g in pairs])
    # Both biases may have one gradient, and an op returns no memory twice.
    first = {g.data_ptr(): g for g in reversed(found)}
    return [g.contiguous() if first[g.data_ptr()] is g else g.clone() for g in found]


def _backward_shapes(
    grads: Any, input: Tensor, h_0: Tensor, c_0: Tensor, weights: Any, *_: Any
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (input, h_0, c_0, *weights)]


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, weights, layout, batch_sizes, num_layers, directions = inputs
    ctx.save_for_backward(*tensors, *weights, batch_sizes)
    ctx.others = layout, num_layers, directions


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    input, h_0, c_0, *weights, batch_sizes = ctx.saved_tensors
    layout, *counts = ctx.others
    run = torch.ops.fastlstm.torch_lstm_backward
    of_input, of_h_0, of_c_0, *of_weights = run(
        grads, input, h_0, c_0, weights, layout, batch_sizes, *counts
    )
    return of_input, of_h_0, of_c_0, of_weights, None, None, None, None


for _name, _run, _shapes in (
    ("torch_lstm", _forward, _forward_shapes),
    ("torch_lstm_backward", _backward, _backward_shapes),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlstm::{_name}", _shapes, lib=_library)
torch.library.register_autograd(
    "fastlstm::torch_lstm", _differentiate, setup_context=_keep_arguments, lib=_library
)
