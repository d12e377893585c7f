"""A call as one value: of a stack of layers as it was checked, and of one layer as the op takes it.

The only place in Python that knows the order of the op's arguments and of its list of weights;
in C++ that is csrc/core/call.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .regularizers import Regularizers

# What a layer is computed in; in C++ csrc/dtype_list.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Asked once: torch 2.11 cannot trace the question.
_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a device type."""
    return device_type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type)


class LstmCall(NamedTuple):
    """The tensors of one layer, in the order in which the op takes them.

    For their shapes see `reference.lstm_layer`.
    """

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: Sequence[Tensor]
    layout: str = "bias"  # which weights there are, in words: `LAYOUTS`
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    h_mask: Tensor | None = None

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
        """The weights that there are."""
        return [weight for weight in self if weight is not None]


class Call(NamedTuple):
    """A call of a stack of layers, or of an LSTMCell: checked, steps first, with a batch dimension.

    Attributes:
        input: [T,B,I], or the data [N,I] of a PackedSequence; [B,I] of a cell.
        hx: (h_0 [L*D,B,P], c_0 [L*D,B,H]), or None for zeros; (h [B,H], c [B,H]) of a cell.
        weights: for each layer, for each direction, those of `layout`.
        layout: which weights a direction has, in words: `LAYOUTS`.
        num_layers, directions: L and D.
        batch_sizes: [T] int64 on the CPU, the rows alive at each step of packed input.
        lengths: [B] int64 on the input's device.
        reset: [T,B] bool.
        training: the mode, which nothing but cuDNN and the two below want to know.
        dropout: the probability between layers, 0 outside of training.
        regularizers: those of the recurrence, None outside of training.
        return_cell_states: whether every cell state is a result.
        is_cell: whether it is the step of an LSTMCell.
    """

    input: Tensor
    hx: tuple[Tensor, Tensor] | None
    weights: Sequence[Tensor]
    layout: str
    num_layers: int = 1
    directions: int = 1
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    training: bool = False
    dropout: float = 0.0
    regularizers: Regularizers | None = None
    return_cell_states: bool = False
    is_cell: bool = False

    def options(self) -> list[str]:
        """The options in use that nn.LSTM lacks."""
        used: dict[str, Any] = {
            "lengths": self.lengths is not None,
            "reset": self.reset is not None,
            "return_cell_states": self.return_cell_states,
            "layer normalization": "layer_norm" in self.layout,
            **(self.regularizers._asdict() if self.regularizers else {}),
        }
        return [name for name, is_used in used.items() if is_used]

    def dtype(self) -> torch.dtype:
        """In what it is computed: under autocast not in the input's."""
        dtype, device = self.input.dtype, self.input.device.type
        if dtype != torch.float64 and autocasts(device):
            return torch.get_autocast_dtype(device)
        return dtype

    def steps_and_batch(self) -> tuple[int, int]:
        """T and B."""
        if self.is_cell:
            return 1, self.input.size(0)
        if self.batch_sizes is None:
            return self.input.size(0), self.input.size(1)
        return self.batch_sizes.size(0), int(self.batch_sizes[0])

    def state(self) -> tuple[Tensor, Tensor]:
        """hx, made of zeros if it is None."""
        if self.hx is not None:
            return self.hx
        input, hidden_size = self.input, self.weights[0].size(0) // 4
        output_size = self.weights[1].size(-1)
        batch = self.steps_and_batch()[1]
        rows = (batch,) if self.is_cell else (self.num_layers * self.directions, batch)
        c_0 = input.new_zeros(*rows, hidden_size)
        return c_0 if output_size == hidden_size else input.new_zeros(*rows, output_size), c_0


# A layout says in words which weights there are beside W_ih and W_hh, in this order. LAYOUTS has it
# by whether there are biases, a projection, layer normalization.
_NAMES = Direction._fields
_WORDS = {"bias": _NAMES[2:4], "projection": _NAMES[4:5], "layer_norm": _NAMES[5:]}
LAYOUTS = {has: " ".join(compress(_WORDS, has)) for has in product((False, True), repeat=3)}
_WEIGHTS = {
    words: (*_NAMES[:2], *chain(*compress(_WORDS.values(), has))) for has, words in LAYOUTS.items()
}


def layout_of_stack(weights: Sequence[Tensor], count: int) -> str:
    """The layout of an LSTM of torch.nn, from its weights for `count` layers and directions."""
    each = len(weights) // count
    return LAYOUTS[each >= 4, each in (3, 5), False]


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
    gates = 4 * hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "W_ih": (gates, input_size),
        "W_hh": (gates, output_size),
        "W_hr": (output_size, hidden_size),
        "gain_c": (hidden_size,),
        "bias_c": (hidden_size,),
    }
    return tuple(shapes.get(name, (gates,)) for name in weight_names(layout))
