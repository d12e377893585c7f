"""A call of one layer as one value, and the list of its weights by name.

The only place in Python that knows the order of the op's arguments and of its list of weights;
in C++ those are csrc/core/call.h and csrc/core/weights.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What a layer is computed in; in C++ csrc/dtype_list.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class LstmCall(NamedTuple):
    """The tensors of one layer, in the order in which the op takes them, and zoneout after them.

    For their shapes see `reference.lstm_layer`.
    """

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: Sequence[Tensor]
    layout: str = "bias"  # which weights there are, in words: `layout_of`
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    h_mask: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None

    def of_op(self) -> tuple[Any, ...]:
        """The arguments of the op, which has no zoneout."""
        return self[:-2]

    @property
    def directions(self) -> list[Direction]:
        """The weights of each direction by name."""
        names, weights = weight_names(self.layout), self.weights
        parts = (weights[k : k + len(names)] for k in range(0, len(weights), len(names)))
        return [Direction(**dict(zip(names, part, strict=True))) for part in parts]


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


# In sizes as of `reference.lstm_layer`.
_SHAPES = {
    "W_ih": ("4H", "I"),
    "W_hh": ("4H", "P"),
    "W_hr": ("P", "H"),
    "gain_c": ("H",),
    "bias_c": ("H",),
}


# A layout says in words which weights there are beside W_ih and W_hh, in this order.
_NAMES = Direction._fields
_WORDS = {"bias": _NAMES[2:4], "projection": _NAMES[4:5], "layer_norm": _NAMES[5:]}
_LAYOUTS = {has: " ".join(compress(_WORDS, has)) for has in product((False, True), repeat=3)}
_WEIGHTS = {
    words: (*_NAMES[:2], *chain(*compress(_WORDS.values(), has))) for has, words in _LAYOUTS.items()
}


def layout_of(bias: bool, projection: bool = False, layer_norm: bool = False) -> str:
    """The layout of a layer."""
    return _LAYOUTS[bool(bias), projection, layer_norm]


def layout_of_stack(weights: Sequence[Tensor], count: int) -> str:
    """The layout of an LSTM of torch.nn, from its weights for `count` layers and directions."""
    each = len(weights) // count
    return layout_of(each >= 4, each in (3, 5))


def weight_names(layout: str) -> tuple[str, ...]:
    """The names of a direction's weights, in the order of the list; a ValueError for no layout."""
    if layout not in _WEIGHTS:
        raise ValueError(
            f"layout: expected of the words {', '.join(_WORDS)} those that apply, in this order, "
            f"got {layout!r}"
        )
    return _WEIGHTS[layout]


def weight_shapes(
    layout: str, input_size: int, hidden_size: int, output_size: int
) -> tuple[tuple[int, ...], ...]:
    """The shapes of a direction's weights, in the order of the list."""
    sizes = {"I": input_size, "H": hidden_size, "4H": 4 * hidden_size, "P": output_size}
    shapes = (_SHAPES.get(name, ("4H",)) for name in weight_names(layout))
    return tuple(tuple(sizes[size] for size in shape) for shape in shapes)
