"""Checks of arguments, with the messages that csrc/core/checks.cpp has for the op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .call import DTYPES, Call, LstmCall, autocasts, state_dtype, weight_names, weight_shapes

_EXPECTED_SIZES = "batch_sizes of shape (steps), dtype int64, on the CPU, as in a PackedSequence"


def check(condition: bool, expected: str, got: object) -> None:
    """Raises a RuntimeError unless the condition holds."""
    if not condition:
        raise RuntimeError(f"lstm: expected {expected}, got {got}")


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for a message."""
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def check_dense(input: Any, hx: Any, weights: Mapping[str, Any], **optional: Any) -> None:
    """Raises a TypeError for an argument that is no dense tensor, or an hx that is no pair."""
    if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
        got = f"{len(hx)} items" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"hx: expected a pair (h_0, c_0), got {got}")
    states = dict(zip(("h_0", "c_0"), hx or (), strict=False))
    options = {name: value for name, value in optional.items() if value is not None}
    for name, value in {"input": input, **states, **weights, **options}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.is_nested or value.layout is not torch.strided:
            got = "a nested one" if value.is_nested else f"one of layout {value.layout}"
            raise TypeError(f"{name}: expected a dense tensor, got {got}")


def as_lengths(lengths: Any) -> Tensor:
    """Returns a tensor of integers of any dtype as int64."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a tensor of integers, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected a tensor of integers, got dtype {lengths.dtype}")
    return lengths.long()


def lengths_on_device_of(input: Tensor, lengths: Tensor) -> Tensor:
    """Returns lengths on the device of the input."""
    if lengths.is_meta and not input.is_meta:
        check(False, f"lengths with values, for input on {input.device}", describe(lengths))
    return lengths.to(input.device)


def as_reset(reset: Any, shape: torch.Size | None, batch_first: bool) -> Tensor:
    """Returns a reset as bool: any number but 0 is true. Checks the shape if one is given."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset: expected a tensor, got {type(reset).__name__}")
    if shape is not None and reset.shape != shape:
        dims = "(batch, steps)" if batch_first else "(steps, batch)"
        check(False, f"reset of shape {dims} = {tuple(shape)}", describe(reset))
    if reset.is_complex():
        raise TypeError(f"reset: expected a tensor of bool or numbers, got dtype {reset.dtype}")
    if reset.is_floating_point() and _is_readable(reset) and bool(reset.isnan().any()):
        check(False, "reset of true or false, or of numbers", "NaN")
    return reset if reset.dtype == torch.bool else reset != 0


def check_dims(input: Tensor, batch_sizes: Tensor | None, batch_first: bool = False) -> None:
    """Raises a RuntimeError unless the input is 3-D, or 2-D with `batch_sizes` in int64."""
    if batch_sizes is not None:
        check(batch_sizes.dtype == torch.int64, _EXPECTED_SIZES, describe(batch_sizes))
    if input.dim() != (3 if batch_sizes is None else 2):
        expected = "(batch, steps, input_size)" if batch_first else "(steps, batch, input_size)"
        if batch_sizes is not None:
            expected = "(packed rows, input_size), since batch_sizes is given"
        check(False, f"input of shape {expected}", tuple(input.shape))


def check_stack(call: Call) -> None:
    """Checks every layer by `check_layer`, except for the lengths, which `run_torch` checks."""
    input, call = call.input, call._replace(hx=call.state(), lengths=None)
    for k in range(call.num_layers):
        layer = call.layer(k, input)
        check_layer(layer)
        output_size = call.num_directions * layer.h_0.size(-1)
        input = input.new_empty(1).expand(*input.shape[:-1], output_size)


def check_layer(call: LstmCall) -> None:
    """Raises a RuntimeError unless the arguments of one layer agree in shape, dtype and device."""
    input, h_0, batch_sizes = call.input, call.h_0, call.batch_sizes
    *names, last_name = (str(dtype).removeprefix("torch.") for dtype in DTYPES)
    check(input.dtype in DTYPES, f"input of dtype {', '.join(names)} or {last_name}", input.dtype)
    check_dims(input, batch_sizes)
    expected = "h_0 of shape (1 or 2 directions, batch, output size)"
    check(h_0.dim() == 3 and h_0.size(0) in (1, 2), expected, tuple(h_0.shape))
    steps, batch = input.shape[:2] if batch_sizes is None else (batch_sizes.numel(), h_0.size(1))
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if batch_sizes is not None:
        _check_batch_sizes(batch_sizes, batch, input.size(0))
        _refuse_options_if_packed(call)
    directions = h_0.size(0)
    hidden_size, output_size = _check_weights(call)
    _check_tensor(call, "h_0", (directions, batch, output_size))
    c_0_dtypes = input.dtype, state_dtype(input.dtype)
    _check_tensor(call, "c_0", (directions, batch, hidden_size), *c_0_dtypes)
    _check_tensor(call, "reset", (steps, batch), torch.bool)
    _check_tensor(call, "h_mask", (directions, batch, output_size))
    check_lengths(call)


def _check_batch_sizes(batch_sizes: Tensor, batch: int, rows: int) -> None:
    """Checks `batch_sizes`, which is already known to be int64 with at least one element."""
    check(batch_sizes.dim() == 1 and batch_sizes.is_cpu, _EXPECTED_SIZES, describe(batch_sizes))
    sizes = batch_sizes.tolist()
    expected = f"batch_sizes to start with the batch size {batch} and never to grow or fall below 1"
    fit = sizes[0] == batch and sizes[-1] > 0 and sizes == sorted(sizes, reverse=True)
    check(fit, expected, sizes)
    check(sum(sizes) == rows, f"batch_sizes to sum to input.size(0) = {rows}", sum(sizes))


def _check_weights(call: LstmCall) -> tuple[int, int]:
    """Returns hidden_size and output_size."""
    directions, names = call.h_0.size(0), weight_names(call.layout)
    each_direction = f"each of {directions} direction(s) (h_0.size(0))"
    expected = f"weights to hold {', '.join(names)}, as layout says, for {each_direction}"
    check(len(call.weights) == directions * len(names), expected, f"{len(call.weights)} tensors")
    W_ih = call.weights[0]
    expected = "W_ih of shape (4 * hidden_size, input_size)"
    check(W_ih.dim() == 2 and W_ih.size(0) % 4 == 0, expected, tuple(W_ih.shape))
    hidden_size, W_hr = W_ih.size(0) // 4, call.directions[0].W_hr
    output_size = hidden_size if W_hr is None else W_hr.size(0)
    shapes = weight_shapes(call.layout, call.input.size(-1), hidden_size, output_size)
    for direction in call.directions:
        for name, shape in shapes.items():
            _check_tensor(call, name, shape, direction=direction)
    return hidden_size, output_size


def _refuse_options_if_packed(call: Call | LstmCall) -> None:
    """Raises a RuntimeError for an option that packed input does not have."""
    for name in ("lengths", "reset"):
        if call.batch_sizes is not None and getattr(call, name) is not None:
            raise RuntimeError(f"lstm: {name} cannot be combined with batch_sizes (packed input)")


def check_lengths(call: Call | LstmCall) -> None:
    """Raises a RuntimeError unless the lengths fit the input, which passed `check_dims`."""
    if call.lengths is None:
        return
    _refuse_options_if_packed(call)
    steps, batch = call.input.shape[:2]
    _check_tensor(call, "lengths", (batch,), torch.int64)
    if _is_readable(call.lengths):
        outside = (call.lengths < 0) | (call.lengths > steps)
        expected = f"lengths between 0 and the number of steps {steps}"
        check(not bool(outside.any()), expected, call.lengths.tolist())


def _is_readable(tensor: Tensor) -> bool:
    """Whether the values can be read: they are on the CPU, and no tracer or transform is active."""
    is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    is_traced = is_traced or torch._C._is_tracing()
    return type(tensor) is Tensor and tensor.is_cpu and not is_traced


def _check_tensor(
    call: Call | LstmCall, name: str, shape: tuple[int, ...], *dtypes: Any, direction: Any = None
) -> None:
    """Checks a tensor of a call or of a direction. By default its dtype is that of the input."""
    input, tensor = call.input, getattr(direction or call, name)
    if tensor is None:
        return
    check(tuple(tensor.shape) == shape, f"{name} of shape {shape}", tuple(tensor.shape))
    check(tensor.device == input.device, f"{name} on {input.device} like input", tensor.device)
    dtypes = dtypes or (input.dtype,)
    like = " like input" * (dtypes[0] == input.dtype)
    fits = tensor.dtype in dtypes or autocasts(input.device.type)
    check(fits, f"{name} of dtype {dtypes[0]}{like}", tensor.dtype)
