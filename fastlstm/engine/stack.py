"""Runs the layers of a call one after the other, and arranges the results as a module does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _build
from .call import (
    Call,
    LstmCall,
    Regularizers,
    Results,
    State,
    autocasts,
    live_steps,
    only_live,
    replaced,
)


def run_time_major(
    compute: Callable[[Call], Results], call: Call, batch_first: bool
) -> tuple[Any, ...]:
    """Runs a call by `compute`, which takes [T,B,...]. Returns what `functional.lstm` returns."""
    batch_first = batch_first and call.batch_sizes is None
    if batch_first:
        reset = None if call.reset is None else call.reset.transpose(0, 1)
        call = replaced(call, input=call.input.transpose(0, 1), reset=reset)
    output, state, layer_cells = compute(call)
    if batch_first:
        output = output.transpose(0, 1)
    if not call.return_cell_states:
        return output, state
    cells = torch.stack([c.movedim(0, -2).flatten(-2) for c in layer_cells]).to(state[1].dtype)
    if call.lengths is not None:
        cells = only_live(cells, live_steps(call.input, call.lengths))
    return output, state, cells.transpose(1, 2) if batch_first else cells


def run_cell(compute: Callable[[Call], Results], call: Call) -> State:
    """Returns the next h and c [B,H] of a cell's call."""
    _, (h, c), _ = compute(call)
    dtype = call.input.dtype if call.hx is None else call.hx[1].dtype
    if autocasts(call.input.device.type):  # torch.lstm_cell promotes c and the gates
        dtype = torch.promote_types(dtype, call.dtype())
    if c.dtype != dtype and c.is_cpu:
        return h.to(dtype), c.to(dtype)
    return h, c


def run_layers(call: Call, run: Callable[..., Any], *rest: Any) -> Results:
    """Runs the layers one after the other.

    `run` takes the fields of an `LstmCall`, then `rest`, then the masks of zoneout, if any. It
    returns output, h_n, c_n, cells, and may return more.
    """
    output, all_h, all_c, all_cells = call.input, [], [], []
    for k in range(call.num_layers):
        if k > 0 and call.dropout:
            output = F.dropout(output, call.dropout)
        layer = call.layer(k, output)
        zoneout_masks: list[Tensor | None] = []
        if call.regularizers is not None:
            layer, zoneout_masks = regularize(layer, call.regularizers)
        output, h_n, c_n, cells, *_ = run(*layer, *rest, *zoneout_masks)
        all_h.append(h_n)
        all_c.append(c_n)
        all_cells.append(cells)
    if call.is_cell:
        return h_n[0], (h_n[0], c_n[0]), []
    if call.num_layers == 1:
        return output, (h_n, c_n), all_cells
    return output, (torch.cat(all_h), torch.cat(all_c)), all_cells


def run_extension(call: Call, engine: str) -> Results:
    """Runs an eager call of plain tensors by functions of the extension that skip torch.ops."""
    if call.is_cell:
        h_0, c_0 = call.hx or (None, None)
        h, c = _build.library.lstm_cell(call.input, h_0, c_0, call.weights, call.layout, engine)
        return h, (h, c), []
    return run_layers(call, _build.library.lstm, call.return_cell_states, engine)


def regularize(call: LstmCall, p: Regularizers) -> tuple[LstmCall, list[Tensor | None]]:
    """Draws the masks of a layer's call from torch's generator, the same ones for every engine.

    Returns the call with dropout applied, and the masks of zoneout for h and for c: [] without
    zoneout, None for the mask of a probability of 0.
    """
    input, weights, h_0, h_mask = call.input, call.weights, call.h_0, None
    if p.input_dropout:  # variational dropout: the same features at every step of a row
        mask = F.dropout(input.new_ones(h_0.size(1), input.size(-1)), p.input_dropout)
        if call.batch_sizes is not None:
            mask = torch.cat([mask[:rows] for rows in call.batch_sizes.tolist()])
        input = input * mask
    if p.weight_dropout:
        dropped = [replaced(d, W_hh=F.dropout(d.W_hh, p.weight_dropout)) for d in call.directions]
        weights = [weight for d in dropped for weight in d.tensors()]
    if p.recurrent_dropout:
        h_mask = F.dropout(torch.ones_like(h_0), p.recurrent_dropout)
    call = replaced(call, input=input, weights=weights, h_mask=h_mask)
    if not p.zones_out():
        return call, []

    def zoneout_mask(state: Tensor, probability: float) -> Tensor | None:
        shape = (state.size(0), *input.shape[:-1], state.size(-1))
        return input.new_empty(shape).bernoulli_(probability) if probability else None

    return call, [zoneout_mask(h_0, p.zoneout_h), zoneout_mask(call.c_0, p.zoneout_c)]
