"""A call of one layer as one value, and the list of its weights by name.

The only place in Python that knows the order of the op's arguments and of its list of weights;
in C++ those are csrc/core/call.h and csrc/core/weights.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from torch import Tensor


class LstmCall(NamedTuple):
    """The tensors of one layer, in the order in which the op takes them.

    For their shapes see `reference.lstm_layer`.
    """

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: Sequence[Tensor]
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    h_mask: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None

    @property
    def directions(self) -> list[Direction]:
        """The weights of each direction by name."""
        return by_direction(self.weights, self.h_0.shape[0])


class Direction(NamedTuple):
    """The weights of one direction, in the order of the list, None where there is none."""

    W_ih: Tensor  # [4H,I]
    W_hh: Tensor  # [4H,P]
    b_ih: Tensor | None = None  # [4H]
    b_hh: Tensor | None = None  # [4H]
    W_hr: Tensor | None = None  # [P,H]
    gain_ih: Tensor | None = None  # [4H]
    gain_hh: Tensor | None = None  # [4H]
    gain_c: Tensor | None = None  # [H]
    bias_c: Tensor | None = None  # [H]

    def tensors(self) -> list[Tensor]:
        """Those that are not None."""
        return [weight for weight in self if weight is not None]


def _names(biases: bool, projects: bool, normalizes: bool) -> tuple[str, ...]:
    names = Direction._fields
    return names[:2] + names[2:4] * biases + names[4:5] * projects + names[5:] * normalizes


# By the number of weights of a direction.
_LAYOUTS = {len(names := _names(*has)): names for has in product((False, True), repeat=3)}


def weight_names(count: int, directions: int) -> tuple[str, ...] | None:
    """The names of a direction's weights in a list of `count`; None if no layer has so many."""
    return None if count % directions else _LAYOUTS.get(count // directions)


def by_direction(weights: Sequence[Tensor], directions: int) -> list[Direction]:
    """Names the weights of a list, of a length that `weight_names` knows."""
    names = weight_names(len(weights), directions)
    assert names is not None
    parts = (weights[k : k + len(names)] for k in range(0, len(weights), len(names)))
    return [Direction(**dict(zip(names, part, strict=True))) for part in parts]
