"""PyTorch's own LSTM as an engine, and how it serves calls with lengths.

PyTorch's LSTM takes no lengths, so the input gets one more feature: 1 after the end of a row and 0
before. Its weight is -SATURATE in gate i and SATURATE in gate f, so that after the end i is 0 and f
is 1, exactly and in every dtype: c keeps its value. The second direction walks over the padding
first, and its state stays zero until the row begins. So every row runs all steps, and the host
reads no length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import DTYPES, Call, LstmCall, Results, autocasts, live_steps, only_live, replaced
from .checks import check_lengths
from .stack import run_layers

# A power of two is exact in every dtype, TF32 too. i is 0 and f is 1 if |W_hh h + b| < 32000 in
# both gates: sigmoid is exactly 0 below -746 and 1 above 746 in float64, sooner in other dtypes.
SATURATE = 2.0**15


def why_no_lengths(call: Call) -> str | None:
    """Why PyTorch's own LSTM cannot serve a call with lengths; None if it can."""
    if call.input.dtype not in DTYPES:
        return f"with lengths it does not serve an input of {call.input.dtype}"
    if call.hx is None:
        return None
    if call.num_directions == 2:
        return "with lengths and two directions it takes no initial state"
    if call.hx[1].dtype != call.input.dtype and not autocasts(call.input.device.type):
        return f"it takes no c_0 of {call.hx[1].dtype} with an input of {call.input.dtype}"
    return None


def run_torch(call: Call) -> Results:
    """Runs a call by the aten functions of nn.LSTM and nn.LSTMCell, and gives the same bits."""
    if call.lengths is not None:
        check_lengths(call)
        output, state, _ = run_layers(replaced(call, hx=call.state()), _run_layer)
        return output, state, []
    input, (h_0, c_0), weights = call.input, call.state(), call.weights
    aten: Any = torch._VF
    if call.is_cell:
        h, c = aten.lstm_cell(input, (h_0, c_0), *weights)
        return h, (h, c), []
    training = call.training
    if not input.is_cpu:
        h_0, c_0 = h_0.contiguous(), c_0.contiguous()
        if not training and torch.is_grad_enabled():
            # cuDNN keeps what backward needs only in training mode.
            training = any(t.requires_grad for t in (input, h_0, c_0, *weights))
    has_biases, is_bidirectional = "bias" in call.layout, call.num_directions == 2
    options = has_biases, call.num_layers, call.dropout, training, is_bidirectional
    if call.batch_sizes is None:
        output, h_n, c_n = aten.lstm(input, (h_0, c_0), weights, *options, False)  # steps first
    else:
        output, h_n, c_n = aten.lstm(input, call.batch_sizes, (h_0, c_0), weights, *options)
    return output, (h_n, c_n), []


def _run_layer(*layer: Any) -> tuple[Tensor, Tensor, Tensor, None]:
    """Returns output, h_n, c_n of an `LstmCall` with lengths."""
    call = LstmCall(*layer)
    input, lengths, h_0, steps = call.input, call.lengths, call.h_0, call.input.size(0)
    assert lengths is not None
    live = live_steps(input, lengths)
    # Tensor cores need an input size that is a multiple of 8. cuDNN's persistent kernels, which
    # PyTorch uses in float16, need a multiple of 128, so a multiple of 128 grows by 128.
    added = 8 - input.size(-1) % 8 if input.size(-1) % 128 else 128
    ended = F.pad((~live).to(input.dtype), (0, added - 1))
    wide = torch.cat([only_live(input, live), ended], -1)  # without a NaN of the padding
    layout = "bias projection" if "projection" in call.layout else "bias"
    plain = Call(wide, (h_0, call.c_0), _wide_weights(call, added), layout, 1, len(call.directions))
    output, (h_n, c_n), _ = run_torch(plain)
    output = only_live(output, live)
    last = (lengths.clamp(1, steps) - 1).view(1, -1, 1).expand_as(h_0[:1])
    h_last = output[..., : h_0.size(-1)].gather(0, last)  # not h_n: gate o changes h after the end
    h_last = torch.where(live[0], h_last, h_0[:1].to(output.dtype))
    return output, torch.cat([h_last, h_n[1:]]), c_n, None


def _wide_weights(call: LstmCall, added: int) -> list[Tensor]:
    """Returns weights and biases. W_ih gets `added` columns: one of +-SATURATE, then zeros.

    They are parts of one tensor, matrices first, which is cuDNN's layout. From any other layout
    PyTorch copies the weights, and warns.
    """
    W_ih = call.weights[0]
    columns = W_ih.new_zeros(4, W_ih.size(0) // 4, added)
    columns[0, :, 0], columns[1, :, 0] = -SATURATE, SATURATE
    no_bias, weights = W_ih.new_zeros(W_ih.size(0)), list[Tensor]()
    for w in call.directions:
        if w.b_ih is None:
            w = replaced(w, b_ih=no_bias, b_hh=no_bias)
        weights += replaced(w, W_ih=torch.cat([w.W_ih, columns.flatten(0, 1)], 1)).tensors()
    order = sorted(range(len(weights)), key=lambda k: -weights[k].dim())
    whole = torch.cat([weights[k].flatten() for k in order])
    parts = torch.split(whole, [weights[k].numel() for k in order])
    part_of = dict(zip(order, parts, strict=True))
    return [part_of[k].view_as(weight) for k, weight in enumerate(weights)]
