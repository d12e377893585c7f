"""What the recurrent regularisers draw before a layer runs, from torch's generator.

The draws are tensors that the layer takes, so every engine computes with the same ones.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def check_probabilities(**probabilities: Any) -> None:
    """Raises a ValueError that names the first argument that is no probability."""
    for name, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= float(p) <= 1:
            raise ValueError(f"{name}: expected a number in range [0, 1], got {p!r}")


def drop_input(input: Tensor, p: float, batch: int, batch_sizes: Tensor | None) -> Tensor:
    """Variational dropout: the same features are dropped at every step of a row.

    Args:
        input: [T,B,I], or [N,I] with `batch_sizes`.
        p: probability of dropping a feature.
        batch: B.
        batch_sizes: [T], of packed data.
    """
    if p == 0:
        return input
    mask = F.dropout(input.new_ones(batch, input.size(-1)), p)
    if batch_sizes is not None:
        mask = torch.cat([mask[:rows] for rows in batch_sizes.tolist()])
    return input * mask


def drop_recurrent_weights(
    weights: Sequence[Tensor], directions: int, p: float
) -> Sequence[Tensor]:
    """Weight drop: DropConnect on W_hh, the second weight of each direction."""
    if p == 0:
        return weights
    each = len(weights) // directions
    return [F.dropout(w, p) if k % each == 1 else w for k, w in enumerate(weights)]


def draw_masks(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    recurrent_dropout: float,
    zoneout_h: float,
    zoneout_c: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """h_mask, zoneout_h and zoneout_c of one layer, None where the probability is 0.

    Args:
        input: [T,B,I], or [N,I] packed.
        h_0: [D,B,P].
        c_0: [D,B,H].
        recurrent_dropout: probability of dropping a unit of h, for a whole sequence.
        zoneout_h: probability that a unit of h keeps its value over a step.
        zoneout_c: the same for c.
    """

    def zones(state: Tensor, p: float) -> Tensor | None:
        shape = (state.size(0), *input.shape[:-1], state.size(-1))
        return input.new_empty(shape).bernoulli_(p) if p > 0 else None

    dropped = F.dropout(torch.ones_like(h_0), recurrent_dropout) if recurrent_dropout > 0 else None
    return dropped, zones(h_0, zoneout_h), zones(c_0, zoneout_c)
