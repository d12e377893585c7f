"""Recurrent regularizers: draws their masks before a layer runs, from torch's generator.

The masks are tensors that the layer takes, so every engine computes with the same masks.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .call import LstmCall


def check_probabilities(**probabilities: Any) -> None:
    """Raises a ValueError that names the first argument that is not a probability."""
    for name, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= float(p) <= 1:
            raise ValueError(f"{name}: expected a number in range [0, 1], got {p!r}")


class Regularizers(NamedTuple):
    """The probabilities of `functional.lstm`, by name."""

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_dropout: float = 0.0

    def have_masks(self) -> bool:
        """Whether the call of a layer takes masks for its state."""
        return bool(self.recurrent_dropout) or self.zones_out()

    def zones_out(self) -> bool:
        """Whether zoneout acts."""
        return bool(self.zoneout_h or self.zoneout_c)


def regularize(call: LstmCall, p: Regularizers) -> tuple[LstmCall, list[Tensor | None]]:
    """Draws the masks of a layer's call.

    Returns:
        The call with dropout applied, and the masks of zoneout for h and for c: [] without zoneout,
        None for the one of both that does not act. Only the reference computes zoneout.
    """
    input, weights, h_0, h_mask = call.input, call.weights, call.h_0, None
    if p.input_dropout:  # variational dropout: the same features at every step of a row
        mask = F.dropout(input.new_ones(h_0.size(1), input.size(-1)), p.input_dropout)
        if call.batch_sizes is not None:
            mask = torch.cat([mask[:rows] for rows in call.batch_sizes.tolist()])
        input = input * mask
    if p.weight_dropout:
        dropped = [d._replace(W_hh=F.dropout(d.W_hh, p.weight_dropout)) for d in call.directions]
        weights = [weight for d in dropped for weight in d.tensors()]
    if p.recurrent_dropout:
        h_mask = F.dropout(torch.ones_like(h_0), p.recurrent_dropout)

    call = call._replace(input=input, weights=weights, h_mask=h_mask)
    if not p.zones_out():
        return call, []

    def zones(state: Tensor, p: float) -> Tensor | None:
        shape = (state.size(0), *input.shape[:-1], state.size(-1))
        return input.new_empty(shape).bernoulli_(p) if p > 0 else None

    return call, [zones(h_0, p.zoneout_h), zones(call.c_0, p.zoneout_c)]
