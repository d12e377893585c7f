"""A call as one value: `Call` is a call of a stack of layers, `LstmCall` the call of one layer.

csrc/core/call.h has the order of the op's arguments, csrc/core/weights.h the order of weights.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from itertools import chain, compress, product
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

# The dtypes in which a layer is computed; in C++ csrc/dtype_list.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
State = tuple[Tensor, Tensor]  # h and c
# The output, (h_n, c_n), and the cell states of each layer if the call returns them.
Results = tuple[Tensor, State, list[Tensor]]

# Read at import, because torch 2.11 cannot trace `is_autocast_available`.
_CAN_AUTOCAST = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a device type."""
    return device_type in _CAN_AUTOCAST and torch.is_autocast_enabled(device_type)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the cell state and of all arithmetic: float32 for the 16-bit types."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def zero_state(
    input: Tensor, leading: Sequence[int], H: int, P: int, dtype: torch.dtype | None = None
) -> State:
    """Zeros h [*leading,P], c [*leading,H] of `dtype` or input.dtype, one tensor if P == H."""
    c = input.new_zeros(*leading, H, dtype=dtype)
    return (c if P == H else input.new_zeros(*leading, P, dtype=dtype)), c


def live_steps(input: Tensor, lengths: Tensor) -> Tensor:
    """[T,B,1] bool: whether a step of `input` [T,B,...] is before the end of its row."""
    steps = torch.arange(input.shape[0], device=input.device)
    return (steps.unsqueeze(1) < lengths).unsqueeze(-1)


def only_live(sequence: Tensor, live: Tensor) -> Tensor:
    """`sequence` with zeros after the end of each row, where it may have been NaN."""
    return torch.where(live, sequence, 0.0)


class Regularizers(NamedTuple):
    """Probabilities, as `functional.lstm` takes them."""

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_dropout: float = 0.0

    def zones_out(self) -> bool:
        """Whether there is zoneout, which only the reference computes."""
        return bool(self.zoneout_h or self.zoneout_c)


def check_probabilities(**probabilities: Any) -> None:
    """Raises a ValueError that names the first argument that is not a probability."""
    for name, p in probabilities.items():
        if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= float(p) <= 1:
            raise ValueError(f"{name}: expected a number in range [0, 1], got {p!r}")


class Direction(NamedTuple):
    """The weights of one direction, in the order of `Call.weights`; a missing weight is None."""

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
        return [weight for weight in self if weight is not None]


class LstmCall(NamedTuple):
    """The arguments of one layer, in the order of the op; `reference.lstm_layer` describes them."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: Sequence[Tensor]
    layout: str = "bias"  # names the weights that are there: a value of `LAYOUTS`
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    h_mask: Tensor | None = None

    @property
    def directions(self) -> list[Direction]:
        names, weights = weight_names(self.layout), self.weights
        groups = (weights[k : k + len(names)] for k in range(0, len(weights), len(names)))
        return [Direction(**dict(zip(names, group, strict=True))) for group in groups]


class Call(NamedTuple):
    """A call of a stack of layers, which is never batch_first, or of an LSTMCell."""

    input: Tensor  # [T,B,I], or the data [N,I] of a PackedSequence; [B,I] of a cell
    hx: State | None  # (h_0 [L*D,B,P], c_0 [L*D,B,H]), None for zeros; (h [B,H], c [B,H]) of a cell
    weights: Sequence[Tensor]  # for each layer, for each direction, those that `layout` names
    layout: str  # names the weights of a direction: a value of `LAYOUTS`
    num_layers: int = 1  # L
    num_directions: int = 1  # D
    batch_sizes: Tensor | None = None  # this and the next two are as in `reference.lstm_layer`
    lengths: Tensor | None = None
    reset: Tensor | None = None
    training: bool = False  # whether the module is in training mode; only cuDNN reads it
    dropout: float = 0.0  # the probability between layers, 0 outside of training
    regularizers: Regularizers | None = None  # None outside of training
    return_cell_states: bool = False  # whether every cell state is a result
    is_cell: bool = False  # whether the call is the step of an LSTMCell

    def extra_options(self) -> list[str]:
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
        """The dtype in which the call is computed: that of autocast if autocast is on."""
        dtype, device = self.input.dtype, self.input.device.type
        if dtype != torch.float64 and autocasts(device):
            return torch.get_autocast_dtype(device)
        return dtype

    def steps_and_batch(self) -> tuple[int, int]:
        """T and B; while torch.jit traces they are tensors, so that the trace takes other sizes."""
        if self.is_cell:
            return 1, self.input.size(0)
        if self.batch_sizes is None:
            return self.input.size(0), self.input.size(1)
        batch: Any = self.batch_sizes[0]
        return self.batch_sizes.size(0), batch if torch._C._is_tracing() else int(batch)

    def state_sizes(self) -> tuple[int, int]:  # of c and of h
        W_ih, W_hh = self.weights[:2]
        return W_ih.size(0) // 4, W_hh.size(-1)

    def state(self) -> State:
        """The initial state: `hx`, or zeros if `hx` is None."""
        if self.hx is not None:
            return self.hx
        batch = self.steps_and_batch()[1]
        leading = (batch,) if self.is_cell else (self.num_layers * self.num_directions, batch)
        return zero_state(self.input, leading, *self.state_sizes())

    def tensors(self) -> list[Tensor]:
        """The input, the state if there is one, and the weights."""
        return [self.input, *(self.hx or ()), *self.weights]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with the results of `change` in place of its `tensors`."""
        hx: Any = None if self.hx is None else tuple(map(change, self.hx))
        return self._replace(input=change(self.input), hx=hx, weights=[*map(change, self.weights)])

    def with_training_options(self, dropout: float, regularizers: Regularizers) -> Call:
        """The call with the dropout and the regularizers of training mode."""
        is_regularized = any(regularizers)
        if dropout or is_regularized:
            check_probabilities(dropout=dropout, **regularizers._asdict())
        # The shapes of masks come from h_0 and c_0, so `hx` must not be None.
        changes = {"hx": self.state(), "regularizers": regularizers} if is_regularized else {}
        return replaced(self, dropout=dropout, **changes)

    def layer(self, k: int, input: Tensor) -> LstmCall:
        """The call of layer k. If `hx` is None, h_0 and c_0 are None, or zeros for a cell."""
        count = len(self.weights) // self.num_layers
        weights = self.weights[k * count : (k + 1) * count]
        if self.is_cell:
            h_0, c_0 = (state.unsqueeze(0) for state in self.state())
            return LstmCall(input.unsqueeze(0), h_0, c_0, weights, self.layout)
        state: tuple[Any, Any] = self.hx or (None, None)
        if self.hx is not None and self.num_layers > 1:
            rows = slice(k * self.num_directions, (k + 1) * self.num_directions)
            state = self.hx[0][rows], self.hx[1][rows]
        options = self.batch_sizes, self.lengths, self.reset
        return LstmCall(input, *state, weights, self.layout, *options)


_FIELDS = {kind: kind._fields for kind in (LstmCall, Direction, Call)}
_Tuple = TypeVar("_Tuple", LstmCall, Direction, Call)


def replaced(old: _Tuple, **changes: Any) -> _Tuple:
    """Returns the named tuple with changes, as `_replace`, which torch 2.8 cannot compile."""
    kind = type(old)
    values: Any = [changes.get(name, x) for name, x in zip(_FIELDS[kind], old, strict=True)]
    return kind(*values)


# A layout names the weights that a direction has besides W_ih and W_hh, by words of `_WORDS`.
# `LAYOUTS` maps flags (has biases, has a projection, has layer normalization) to the layout.
_NAMES = Direction._fields
_WORDS = {"bias": _NAMES[2:4], "projection": _NAMES[4:5], "layer_norm": _NAMES[5:]}
LAYOUTS = {flags: " ".join(compress(_WORDS, flags)) for flags in product((False, True), repeat=3)}
_NAMES_BY_LAYOUT = {
    layout: (*_NAMES[:2], *chain(*compress(_WORDS.values(), flags)))
    for flags, layout in LAYOUTS.items()
}


def weight_names(layout: str) -> tuple[str, ...]:
    """The names of a direction's weights in order. Raises a ValueError for an unknown layout."""
    if layout not in _NAMES_BY_LAYOUT:
        words = f"a selection of the words {', '.join(_WORDS)}, in this order"
        raise ValueError(f"layout: expected {words}, got {layout!r}")
    return _NAMES_BY_LAYOUT[layout]


def weight_shapes(layout: str, I: int, H: int, P: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a direction's weights by name, in order."""
    shapes: dict[str, tuple[int, ...]] = {"W_ih": (4 * H, I), "W_hh": (4 * H, P), "W_hr": (P, H)}
    shapes |= {"gain_c": (H,), "bias_c": (H,)}
    return {name: shapes.get(name, (4 * H,)) for name in weight_names(layout)}


def stack_shapes(
    layout: str, I: int, H: int, P: int, num_layers: int, directions: int
) -> list[tuple[int, ...]]:
    """The shapes of the weights of all layers and directions, in the order of `Call.weights`."""
    sizes = [directions * P if k else I for k in range(num_layers)]
    return [*chain(*(directions * [*weight_shapes(layout, n, H, P).values()] for n in sizes))]
