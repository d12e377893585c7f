"""What a call reads of its module: the attributes and weights that nn.LSTM reads when it is called.

Our engines compute a call if the weights have the shapes that the attributes describe. If they have
other shapes, torch.nn's own forward decides whether there is a result or an error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _build
from ..engine.call import LAYOUTS, stack_shapes, state_dtype, weight_shapes

nn_lstm: Any = nn.LSTM  # its methods run on modules that do not inherit from it
CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def read_weights(lstm: Any) -> tuple[list[Any], str | None, Any]:
    """Returns the weights of an LSTM, their layout and their dtype.

    The weights are `_flat_weights`, or are read by name if one was replaced (the test is nn.LSTM's
    `_weights_have_changed`). Layout and dtype are None if the attributes describe other shapes.
    """
    names, weights, parameters = lstm._flat_weights_names, lstm._flat_weights, lstm._parameters
    layout, shapes = described_weights(lstm)
    library = None if torch.compiler.is_compiling() else _build.library
    if library is not None and library.have_names_and_shapes(weights, parameters, names, shapes):
        return weights, layout, weights[0].dtype
    current = [getattr(lstm, name, None) for name in names]
    if len(weights) != len(names) or not all(map(is_, weights, current)):
        for weight, ref in zip(current, lstm._flat_weight_refs, strict=True):
            if weight is not None and ref is not None and ref() is not weight:
                weights = current
    fit = bool(shapes) and shapes_of(weights) == shapes
    return [*weights], layout if fit else None, weights[0].dtype if fit else None


def weights_of_cell(cell: nn.Module) -> tuple[list[Any], str]:
    """Returns the weights of an LSTMCell and their layout, whatever its attribute `bias` says."""
    try:
        weights = [*map(cell._parameters.__getitem__, CELL_WEIGHTS)]
    except KeyError:
        weights = [getattr(cell, name) for name in CELL_WEIGHTS]
    if weights[2] is None and weights[3] is None:
        return weights[:2], ""
    return weights, "bias"


def named_weights(layer: nn.Module) -> dict[str, Any]:
    """Returns the weights of a layer by name, in the order in which the op takes them."""
    if isinstance(layer, nn.RNNBase):
        return dict(zip(layer._flat_weights_names, read_weights(layer)[0], strict=True))
    pairs = zip(CELL_WEIGHTS, weights_of_cell(layer)[0], strict=False)
    return {name: weight for name, weight in pairs if weight is not None}


def described_weights(lstm: Any) -> tuple[str, list[tuple[int, ...]]]:
    """Layout and shapes that an LSTM's attributes describe; "", [] if nn.LSTM may refuse them."""
    describe = _describe if torch.compiler.is_compiling() else _describe_cached
    try:
        flags = lstm.bias, lstm.bidirectional, lstm.batch_first, lstm.training
        sizes = lstm.num_layers, lstm.input_size, lstm.hidden_size, lstm.proj_size
        return describe(getattr(lstm, "_fastlstm_normalizes", False), *flags, *sizes, lstm.dropout)
    except AttributeError:
        return "", []


def _describe(*attributes: Any) -> tuple[str, list[tuple[int, ...]]]:
    normalizes, bias, bidirectional, batch_first, training, *numbers, dropout = attributes
    num_layers, input_size, hidden_size, proj_size = numbers
    flags = bias, bidirectional, batch_first, training
    are_flags = all(type(flag) is bool for flag in flags)
    are_sizes = all(type(n) is not bool and hasattr(n, "__index__") for n in numbers)
    is_probability = isinstance(dropout, (int, float)) and 0 <= dropout <= 1
    if not (are_flags and are_sizes and is_probability and num_layers > 0):
        return "", []
    output_size = proj_size if proj_size > 0 else hidden_size
    layout = LAYOUTS[bias, output_size != hidden_size, normalizes]
    sizes = input_size, hidden_size, output_size
    return layout, stack_shapes(layout, *sizes, num_layers, 1 + bidirectional)


_describe_cached = functools.lru_cache(typed=True)(_describe)  # `typed`, because True == 1


def is_pair(hx: Any, h_shape: tuple[int, ...], c_shape: tuple[int, ...]) -> bool:
    """Whether hx is (h, c) of these shapes."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        return False
    h, c = hx
    are_tensors = isinstance(h, Tensor) and isinstance(c, Tensor)
    return are_tensors and h.shape == h_shape and c.shape == c_shape


def takes_arguments(
    lstm: Any, input: Tensor, hx: Any, batch_sizes: Any, weight: Tensor, dtype: torch.dtype
) -> bool:
    """Whether our engines take input and state, for weights of `dtype` on the device of `weight`.

    If not, nn.LSTM decides whether there is a result or an error.
    """
    if input.dim() not in ((2, 3) if batch_sizes is None else (2,)):
        return False
    if input.size(-1) != lstm.input_size or input.device != weight.device:
        return False
    if not is_uniform(input, hx, dtype):
        return False
    if hx is None:
        return True
    leading: tuple[int, ...] = (lstm.num_layers * (2 if lstm.bidirectional else 1),)
    if batch_sizes is not None:
        leading = (*leading, int(batch_sizes[0]))
    elif input.dim() == 3:
        leading = (*leading, input.size(0 if lstm.batch_first else 1))
    output_size = lstm.proj_size if lstm.proj_size > 0 else lstm.hidden_size
    has_shapes = is_pair(hx, (*leading, output_size), (*leading, lstm.hidden_size))
    return has_shapes and hx[0].device == hx[1].device == input.device


def is_uniform(input: Tensor, hx: Any, dtype: torch.dtype) -> bool:
    """Whether input and state are dense and of `dtype`; c may have the dtype of the cell state.

    Under autocast the dtypes may differ.
    """
    pair = hx if isinstance(hx, (tuple, list)) else ()
    states = [state for state in pair if isinstance(state, Tensor)]
    for tensor in (input, *states):
        if tensor.layout is not torch.strided or tensor.is_nested:
            return False
    if torch._C._is_any_autocast_enabled():
        return True
    dtypes = (dtype,), (dtype,), (dtype, state_dtype(dtype))
    return all(t.dtype in fit for t, fit in zip((input, *states), dtypes, strict=False))


def check_tensor(input: Any) -> None:
    """Raises an AttributeError, as nn.LSTM does, for an input that is no tensor."""
    if not isinstance(input, Tensor):
        raise AttributeError(f"input: expected a tensor, got {type(input).__name__}")


def cell_takes(input: Tensor, hx: tuple[Tensor, Tensor], dtype: torch.dtype, device: Any) -> bool:
    """Whether our engines take these arguments of an LSTMCell, besides their shapes."""
    is_on_device = all(tensor.device == device for tensor in (input, *hx))
    return is_on_device and is_uniform(input, hx, dtype)


def cell_shapes_fit(input: Tensor, hx: tuple[Tensor, Tensor], shapes: list[Any]) -> bool:
    """Whether these are the shapes of an LSTMCell's weights, for this input and state."""
    (_, input_size), (_, hidden_size) = input.shape, hx[1].shape
    layout = "bias" if len(shapes) == 4 else ""
    return shapes == [*weight_shapes(layout, input_size, hidden_size, hidden_size).values()]


def shapes_of(weights: list[Any]) -> list[Any]:
    """The shapes of weights; None for a weight that is no tensor."""
    return [getattr(weight, "shape", None) for weight in weights]


def run_torch_lstm(lstm: Any, input: Any, hx: Any) -> Any:
    """Runs nn.LSTM.forward. Raises a RuntimeError for a matrix that is too small.

    oneDNN compares no shapes, and would read beyond the matrix. Packed input never goes to oneDNN.
    """
    shapes = [] if isinstance(input, PackedSequence) else described_weights(lstm)[1]
    for weight, shape in zip(read_weights(lstm)[0], shapes, strict=False):
        if isinstance(weight, Tensor) and weight.numel() < math.prod(shape) and len(shape) == 2:
            expected = f"expected a weight of shape {shape}, as the attributes describe it"
            raise RuntimeError(f"{type(lstm).__name__}: {expected}, got {tuple(weight.shape)}")
    return run_forward(nn_lstm.forward, lstm, input, hx)


def run_forward(forward: Callable[..., Any], module: Any, input: Any, hx: Any) -> Any:
    """Runs a forward of torch.nn; if hx holds anything but tensors, the error says so."""
    try:
        return forward(module, input, hx)
    except (AttributeError, TypeError) as error:
        if not isinstance(hx, (tuple, list)) or len(hx) != 2 or _are_tensors(hx):
            raise
        kinds = " and ".join(type(state).__name__ for state in hx)
        raise type(error)(f"hx: expected a pair of tensors (h_0, c_0), got {kinds}") from error


def run_as_torch(lstm: Any, input: Any, hx: Any) -> Any:
    """Runs nn.LSTM.forward on arguments that our engines do not take.

    Checks shapes of packed input too, which nn.LSTM does not.
    """
    if isinstance(input, PackedSequence):
        lstm._update_flat_weights()
        data = input.data.to(lstm._flat_weights[0].dtype)  # nn.LSTM does not compare packed dtypes
        nn_lstm.check_input(lstm, data, input.batch_sizes)
        if isinstance(hx, (tuple, list)) and _are_tensors(hx):
            nn_lstm.check_forward_args(lstm, input.data, hx, input.batch_sizes)
    return run_forward(nn_lstm.forward, lstm, input, hx)


def _are_tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values)
