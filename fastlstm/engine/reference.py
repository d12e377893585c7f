"""The LSTM in plain PyTorch: the specification that every engine is tested against.

It also computes the calls that no other engine serves: forward-mode derivatives, some transforms of
`torch.func`, zoneout, devices and dtypes without a kernel and, if the extension is not built, every
call that PyTorch's LSTM does not serve.

With x the input of a step, and h and c the state before it::

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
    f = sigmoid(W_if x + b_if + W_hf h + b_hf)
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    o = sigmoid(W_io x + b_io + W_ho h + b_ho)
    c = f * c + i * g
    h = o * tanh(c)

Sources: Hochreiter & Schmidhuber (1997); the forget gate: Gers, Schmidhuber & Cummins (2000);
the projection h = W_hr (o * tanh(c)): Sak, Senior & Beaufays (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Direction, LstmCall, live_steps, only_live, state_dtype


def cell(x_gates: Tensor, h: Tensor, c: Tensor, weights: Direction) -> tuple[Tensor, Tensor]:
    """One step: `x_gates` [B,4H] = W_ih x + b_ih, `h` [B,P], `c` [B,H]; returns the next h, c."""
    h_gates = affine(h, weights.W_hh, weights.b_hh, weights.gain_hh)
    i, f, g, o = (x_gates + h_gates).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    c_normalized = c if weights.gain_c is None else layer_norm(c, weights.gain_c, weights.bias_c)
    h = torch.sigmoid(o) * torch.tanh(c_normalized)
    return (h if weights.W_hr is None else F.linear(h, weights.W_hr)), c


def affine(x: Tensor, W: Tensor, b: Tensor | None, gain: Tensor | None) -> Tensor:
    """W x + b, or LN(W x) gain + b."""
    return F.linear(x, W, b) if gain is None else layer_norm(F.linear(x, W), gain, b)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) * gain + bias, over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], gain, bias)


def zoneout(keep: Tensor, previous: Tensor, next: Tensor) -> Tensor:
    """Keeps the share `keep` of the previous state and takes the rest from the next one."""
    return keep * previous + (1 - keep) * next


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    layout: str = "bias",
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    h_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer in one or two directions: the contract of the op `fastlstm::lstm`.

    The 16-bit types are computed in float32 and rounded at the end.
    T steps, B batch rows, I input_size, H hidden_size, P = proj_size or H, D directions.

    Args:
        input: [T,B,I], or the [N,I] data of a PackedSequence if `batch_sizes` is given.
        h_0: [D,B,P] initial hidden state; direction 1 walks from the last step to the first.
        c_0: [D,B,H] initial cell state. With an input of 16 bits it may be float32.
        weights: for each direction W_ih [4H,I], W_hh [4H,P], then b_ih, b_hh [4H] ("bias"), W_hr
            [P,H] ("projection"), and gain_ih, gain_hh [4H], gain_c, bias_c [H] ("layer_norm"; the
            equations are those of `fastlstm.LayerNormLSTM`).
        layout: the words above of the weights that are given, in that order, joined by spaces.
        batch_sizes: [T] int64 on the CPU, the number of rows of each step, as in a PackedSequence.
        lengths: [B] int64. After its last step a row keeps its state, and its output is zero.
        reset: [T,B] bool. h and c are zero before such a step; no gradient passes it.
        h_mask: [D,B,P]. W_hh sees h_mask * h instead of h (recurrent dropout).
        zoneout_h: [D,T,B,P] (or [D,N,P]), the share z of the previous h that stays; see
            `functional.lstm`.
        zoneout_c: [D,T,B,H] (or [D,N,H]), the same for c.

    Returns:
        output [T,B,D*P] (or [N,D*P]), h_n [D,B,P], c_n [D,B,H] in c_0's dtype, and every cell state
        [D,T,B,H] (or [D,N,H]) in the state dtype.
    """
    dtype, c_dtype, working = input.dtype, c_0.dtype, state_dtype(input.dtype)
    input, h_0, c_0, *weights = (t.to(working) for t in (input, h_0, c_0, *weights))
    live = None if lengths is None else live_steps(input, lengths)
    input = input if live is None else only_live(input, live)  # a NaN must not reach dL/dW_ih
    h_mask, *zoneouts = (m if m is None else m.to(working) for m in (h_mask, zoneout_h, zoneout_c))
    call = LstmCall(input, h_0, c_0, weights, layout, batch_sizes, lengths, reset, h_mask)
    walks = [_walk(call, zoneouts, live, d, w) for d, w in enumerate(call.directions)]
    outputs, h_n, c_n, cells = zip(*walks, strict=True)
    output = torch.cat(outputs, -1).to(dtype)
    return output, torch.stack(h_n).to(dtype), torch.stack(c_n).to(c_dtype), torch.stack(cells)


def _walk(
    call: LstmCall, zoneouts: list[Tensor | None], live: Tensor | None, d: int, weights: Direction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Walks direction d. `h` and `c` hold the states of all rows, also of rows that have ended."""
    sizes = None if call.batch_sizes is None else call.batch_sizes.tolist()
    by_step: Any = torch.unbind if sizes is None else lambda sequence: sequence.split(sizes)
    x_gates = by_step(affine(call.input, weights.W_ih, weights.b_ih, weights.gain_ih))
    zoneout_h, zoneout_c = (None if mask is None else by_step(mask[d]) for mask in zoneouts)
    h, c, reset = call.h_0[d], call.c_0[d], call.reset
    outputs, cells = [], []
    for t in reversed(range(len(x_gates))) if d == 1 else range(len(x_gates)):
        rows = None if sizes is None else x_gates[t].shape[0]
        h_prev, c_prev = h[:rows], c[:rows]
        h_in, c_in = h_prev, c_prev
        if reset is not None:
            h_in, c_in = (torch.where(reset[t, :, None], 0.0, state) for state in (h_in, c_in))
        h_masked = h_in if call.h_mask is None else h_in * call.h_mask[d, :rows]
        h_new, c_new = cell(x_gates[t], h_masked, c_in, weights)
        h_t = h_new if zoneout_h is None else zoneout(zoneout_h[t], h_in, h_new)
        c_t = c_new if zoneout_c is None else zoneout(zoneout_c[t], c_in, c_new)
        outputs.append(h_t if live is None else only_live(h_t, live[t]))
        if live is not None:
            h_t, c_t = torch.where(live[t], h_t, h_prev), torch.where(live[t], c_t, c_prev)
        cells.append(c_t)
        h = h_t if rows is None else torch.cat([h_t, h[rows:]])
        c = c_t if rows is None else torch.cat([c_t, c[rows:]])
    if d == 1:
        outputs, cells = outputs[::-1], cells[::-1]
    join = torch.stack if sizes is None else torch.cat
    return join(outputs), h, c, join(cells)
