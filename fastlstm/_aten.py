"""PyTorch's own LSTM as an engine: all layers in one call of `aten::lstm`, as nn.LSTM makes it.

Autograd is aten's too, so results and gradients have the bits of nn.LSTM. What aten lacks on a GPU
is added: gradients in eval mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._call import LstmCall, layout_of
from ._checks import check_layer


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
