"""A layer, and a stack of layers, by what `_route` has chosen; and the call around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from . import _build, _route, _transforms, onnx, reference
from ._call import LstmCall
from ._checks import as_lengths, as_reset, check_layer

# output, (h_n, c_n) and the cell states of each layer.
Stack = tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]


def as_call(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    layout: str,
    count: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    sizes: tuple[int, int] | None = None,
) -> tuple[tuple[Any, ...], Tensor | None, bool]:
    """The start of a `LstmCall` of all layers, steps first; lengths; whether the batch was first.

    `count` is that of layers and directions, `sizes` are those of h and c if no weight has them.
    """
    batch_first = batch_first and batch_sizes is None
    if reset is not None and batch_sizes is None:
        reset = as_reset(reset, input, batch_first)
    if batch_first:
        input = input.transpose(0, 1)
    if lengths is not None:
        lengths = as_lengths(lengths, input)
    if hx is None:
        output_size, hidden_size = sizes or (weights[1].size(-1), weights[0].size(0) // 4)
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        c_0 = input.new_zeros(count, batch, hidden_size)
        h_0 = c_0 if output_size == hidden_size else input.new_zeros(count, batch, output_size)
    else:
        h_0, c_0 = hx
        if h_0.size(0) != count or c_0.size(0) != count:
            raise RuntimeError(
                f"lstm: expected h_0 and c_0 of size(0) = layers * directions = {count}, got "
                f"{tuple(h_0.shape)} and {tuple(c_0.shape)}"
            )
    call = (input, h_0, c_0, weights, layout, batch_sizes, lengths, reset)
    return call, lengths, batch_first


def results(
    stack: Stack, lengths: Tensor | None, batch_first: bool, return_cell_states: bool
) -> tuple[Any, ...]:
    """What `functional.lstm` returns."""
    output, state, layers = stack
    if batch_first:
        output = output.transpose(0, 1)
    if not return_cell_states:
        return output, state
    cells = torch.stack([c.movedim(0, -2).flatten(-2) for c in layers]).to(state[1].dtype)
    if lengths is not None:
        steps = torch.arange(cells.size(1), device=cells.device).unsqueeze(1)
        cells = torch.where((steps < lengths).unsqueeze(-1), cells, 0.0)
    return output, state, cells.transpose(1, 2) if batch_first else cells


def by_layers(
    whole: LstmCall, num_layers: int, run: Callable[[LstmCall, int], tuple[Tensor, ...]]
) -> Stack:
    """The layers of a stack that is given together, by a call of `run` for each."""
    each, directions = len(whole.weights) // num_layers, whole.h_0.size(0) // num_layers
    output, h_n, c_n, cells = whole.input, [], [], []
    for layer in range(num_layers):
        states = slice(layer * directions, (layer + 1) * directions)
        own = whole.weights[layer * each : (layer + 1) * each]
        h_0, c_0 = whole.h_0[states], whole.c_0[states]
        call = whole._replace(input=output, h_0=h_0, c_0=c_0, weights=own)
        output, h, c, of_layer = run(call, layer)
        h_n.append(h)
        c_n.append(c)
        cells.append(of_layer)
    return output, (torch.cat(h_n), torch.cat(c_n)), cells


def run_layer(
    call: LstmCall, engine: str, save_cells: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, h_n, c_n and, if they are to be saved, every cell state.

    `engine`: that of a Route, but "torch".
    """
    if engine == "reference":
        return _by_reference(call)
    compiles = torch.compiler.is_compiling()
    if not compiles and _route.transforms_active():
        return _transforms.lstm_layer(call, engine)
    # Dynamo and tensor subclasses know torch.ops; other calls go the short way.
    exports = compiles and not torch.compiler.is_dynamo_compiling()
    if exports and torch.onnx.is_in_onnx_export():
        onnx.recommend_translations()
    if compiles or has_torch_function_variadic(call.input, call.h_0, call.c_0, *call.weights):
        output, h_n, c_n, cells, _ = torch.ops.fastlstm.lstm(
            *call.of_op(), save_cells, False, engine
        )
    else:
        output, h_n, c_n, cells = _build.library.lstm(*call.of_op(), save_cells, engine)
    return output, h_n, c_n, cells


def _by_reference(call: LstmCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = call.input.device.type
    if _route.autocasts(device):
        call = _as_autocast(call, torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return _by_reference(call)
    check_layer(call)
    return reference.lstm_layer(*call)


def _as_autocast(call: LstmCall, dtype: torch.dtype) -> LstmCall:
    """The autocast rule of the op: 16 bits at the border, the cell state inside is float32."""

    def cast(value: Any) -> Any:
        is_floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_floating and value.dtype != torch.float64 else value

    c_0, weights = call.c_0, [cast(weight) for weight in call.weights]
    keeps_c_0 = c_0.dtype == torch.float32 and c_0.is_cpu and "projection" in call.layout
    cast_call = LstmCall(*map(cast, call))._replace(weights=weights)
    return cast_call._replace(c_0=c_0) if keeps_c_0 else cast_call
