"""What runs a call: layer by layer the op or the reference, or PyTorch's own LSTM as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _build
from ..interop import transforms
from . import reference
from .call import Call, LstmCall, autocasts
from .checks import check, check_layer, describe
from .regularizers import regularize

# output, (h_n, c_n), and the cell states of each layer if they are requested
Results = tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]


def run_op(call: Call, engine: str) -> Results:
    """By `torch.ops.fastlstm.lstm`, an op for each layer; `engine` is a name that it knows."""
    compiles, saves = torch.compiler.is_compiling(), call.return_cell_states
    if not compiles and torch._C._are_functorch_transforms_active():
        call = call._replace(hx=call.state())
        return by_layers(call, transforms.lstm_layer, engine)
    # Dynamo and tensor subclasses know torch.ops; other calls go the short way.
    if compiles or has_torch_function_variadic(call.input, *(call.hx or ()), *call.weights):
        call = call._replace(hx=call.state())
        return by_layers(call, torch.ops.fastlstm.lstm, saves, False, engine)
    if call.is_cell:
        h_0, c_0 = call.hx or (None, None)
        state = _build.library.lstm_cell(call.input, h_0, c_0, call.weights, call.layout, engine)
        return state[0], state, []
    return by_layers(call, _build.library.lstm, saves, engine)


def run_prepacked(call: Call) -> Results:
    """By `torch.ops.fastlstm.lstm_prepacked`, with weights that `prepack` put into panels."""
    # A compiler, a tracer, a dispatch mode or a tensor subclass has to see the op.
    seen = (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or has_torch_function_variadic(call.input, *call.state())
    )
    saves = call.return_cell_states
    if seen:
        return by_layers(call, torch.ops.fastlstm.lstm_prepacked, saves)
    if call.is_cell:
        options = call.weights, call.layout, "auto"
        state = _build.library.lstm_cell(call.input, *call.state(), *options)
        return state[0], state, []
    return by_layers(call, _build.library.lstm, saves, "auto")


def run_reference(call: Call) -> Results:
    """By the equations in Python, under autocast with the op's rule for it."""
    return by_layers(call._replace(hx=call.state()), _reference_layer)


def run_torch(call: Call) -> Results:
    """By aten, as nn.LSTM and nn.LSTMCell call it: results and gradients have their bits."""
    input, (h_0, c_0), weights = call.input, call.state(), call.weights
    aten: Any = torch._VF
    if call.is_cell:
        h, c = aten.lstm_cell(input, (h_0, c_0), *weights)
        return h, (h, c), []
    training, dropout = call.training, call.dropout
    if not input.is_cpu:
        h_0, c_0 = h_0.contiguous(), c_0.contiguous()
        if not training and torch.is_grad_enabled():
            # cuDNN keeps what backward needs only if this is said to be training.
            training = any(t.requires_grad for t in (input, h_0, c_0, *weights))
    options = "bias" in call.layout, call.num_layers, dropout, training, call.directions == 2
    if call.batch_sizes is None:
        output, h_n, c_n = aten.lstm(input, (h_0, c_0), weights, *options, False)  # steps first
    else:
        output, h_n, c_n = aten.lstm(input, call.batch_sizes, (h_0, c_0), weights, *options)
    return output, (h_n, c_n), []


def by_layers(call: Call, run: Callable[..., Any], *rest: Any) -> Results:
    """The layers one after the other, each by `run`, which takes a LstmCall one by one and `rest`.

    It gives output, h_n, c_n, cells, and may give more.
    """
    output, options = call.input, (call.batch_sizes, call.lengths, call.reset)
    h_0: Any = None
    c_0: Any = None
    if call.is_cell:
        h_0, c_0 = call.state()
        state = h_0.unsqueeze(0), c_0.unsqueeze(0)
        layer = LstmCall(output.unsqueeze(0), *state, call.weights, call.layout)
        _, h_n, c_n, *_ = run(*layer, *rest)
        return h_n[0], (h_n[0], c_n[0]), []
    each = len(call.weights) // call.num_layers
    all_h, all_c, all_cells = [], [], []
    for k in range(call.num_layers):
        if k > 0 and call.dropout:
            output = F.dropout(output, call.dropout)
        if call.hx is not None:
            h_0, c_0 = call.hx
            if call.num_layers > 1:
                states = slice(k * call.directions, (k + 1) * call.directions)
                h_0, c_0 = h_0[states], c_0[states]
        weights = call.weights[k * each : (k + 1) * each]
        layer = LstmCall(output, h_0, c_0, weights, call.layout, *options)
        zones: list[Tensor | None] = []
        if call.regularizers is not None:
            layer, zones = regularize(layer, call.regularizers)
        output, h_n, c_n, cells, *_ = run(*layer, *rest, *zones)
        all_h.append(h_n)
        all_c.append(c_n)
        all_cells.append(cells)
    if call.num_layers == 1:
        return output, (h_n, c_n), [cells]
    return output, (torch.cat(all_h), torch.cat(all_c)), all_cells


def run_stack(
    compute: Callable[[Call], Results],
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    layout: str,
    num_layers: int,
    directions: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_cell_states: bool,
    training: bool,
) -> tuple[Any, ...]:
    """What `functional.lstm` returns, of a call of a stack that `compute` takes steps first."""
    if reset is not None and batch_sizes is None and reset.shape != input.shape[:2]:
        names = "(batch, steps)" if batch_first else "(steps, batch)"
        check(False, f"reset of shape {names} = {tuple(input.shape[:2])}", tuple(reset.shape))
    batch_first = batch_first and batch_sizes is None
    if batch_first:
        input = input.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    if lengths is not None:
        if lengths.is_meta and not input.is_meta:
            check(False, f"lengths with values, for input on {input.device}", describe(lengths))
        lengths = lengths.to(input.device)
    options = batch_sizes, lengths, reset, training, 0.0, None, bool(return_cell_states)
    call = Call(input, hx, weights, layout, num_layers, directions, *options)
    output, state, layers = compute(call)
    if batch_first:
        output = output.transpose(0, 1)
    if not return_cell_states:
        return output, state
    cells = torch.stack([c.movedim(0, -2).flatten(-2) for c in layers]).to(state[1].dtype)
    if lengths is not None:
        steps = torch.arange(cells.size(1), device=cells.device).unsqueeze(1)
        cells = torch.where((steps < lengths).unsqueeze(-1), cells, 0.0)
    return output, state, cells.transpose(1, 2) if batch_first else cells


def run_cell(compute: Callable[[Call], Results], call: Call) -> tuple[Tensor, Tensor]:
    """The next h and c [B,H] of a cell's call."""
    _, (h, c), _ = compute(call)
    state = call.input.dtype if call.hx is None else call.hx[1].dtype
    if c.dtype != state and c.is_cpu:  # as torch.lstm_cell has it under CPU autocast
        return h.to(state), c.to(state)
    return h, c


def _reference_layer(*layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = len(LstmCall._fields)
    call, zones = LstmCall(*layer[:count]), layer[count:]
    device = call.input.device.type
    if not autocasts(device):
        check_layer(call)
        return reference.lstm_layer(*call, *zones)
    call = _as_autocast(call, torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _reference_layer(*call, *zones)


def _as_autocast(call: LstmCall, dtype: torch.dtype) -> LstmCall:
    """The autocast rule of the op: 16 bits at the border, the cell state inside is float32."""

    def cast(value: Any) -> Any:
        is_floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_floating and value.dtype != torch.float64 else value

    c_0, weights = call.c_0, [cast(weight) for weight in call.weights]
    keeps_c_0 = c_0.dtype == torch.float32 and c_0.is_cpu and "projection" in call.layout
    cast_call = LstmCall(*map(cast, call))._replace(weights=weights)
    return cast_call._replace(c_0=c_0) if keeps_c_0 else cast_call
