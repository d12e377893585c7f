"""The functional interface: `lstm` walks the layers, `lstm_cell` makes one step.

Each layer is one call of the compiled op `torch.ops.fastlstm.lstm`, or of `reference.lstm_layer`
where the op cannot go; or all layers are one call of PyTorch's own LSTM. `choose_engine` says
which.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_variadic

from . import _aten, _build, _choice, _measured, _transforms, onnx, reference
from ._call import LstmCall, layout_of, weight_names
from ._checks import (
    as_lengths,
    as_reset,
    check_dims,
    check_flags,
    check_kinds,
    check_layer,
    check_num_layers,
)
from ._regularize import Regularizers, check_probabilities, regularize

__all__ = ["ENGINES", "choose_engine", "lstm", "lstm_cell"]

#: "auto" leaves the choice to the planner of the device, "torch" is PyTorch's own LSTM, "reference"
#: the equations in Python, the others are engines of the op (csrc/<device>/).
ENGINES = ("auto", "torch", "reference", "stepwise", "tiled", "persistent")

_OP_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_OP_DEVICES = tuple(device for device in ("cpu", "cuda") if _build.has_kernels(device))
if _OP_DEVICES:
    _OP_DEVICES += ("meta",)

# Whether "auto" on a CPU does not consider PyTorch's own, unless fastlstm.tune has measured.
_ALWAYS_OURS = _build.has_kernels("cpu")
_LEAST_OF_A_LARGE_STEP = 1 << 17  # numbers of input: below it nobody asks which engine is faster

# What "auto" stands for: the user's FASTLSTM_ENGINE, read once.
_DEFAULT_ENGINE = os.environ.get("FASTLSTM_ENGINE") or "auto"

# Asked once: torch 2.11 cannot trace the question.
_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)

_transforms_active = torch._C._are_functorch_transforms_active


def is_transformed() -> bool:
    """Whether a call is compiled, differentiated forward or under a transform of torch.func."""
    return torch.compiler.is_compiling() or _transforms_active() or forward_ad._current_level >= 0


def check_engine(engine: Any) -> None:
    """Raises a ValueError unless there is such an engine."""
    if engine not in ENGINES and not str(engine).startswith(("persistent:", "tiled:")):
        raise ValueError(
            f"engine: expected one of {', '.join(ENGINES)}, got {engine!r} (the environment "
            "variable FASTLSTM_ENGINE decides where the code does not)"
        )


try:
    check_engine(_DEFAULT_ENGINE)
except ValueError as error:  # of the calls too, but an import never fails
    warnings.warn(str(error), RuntimeWarning, stacklevel=3)


def choose_engine(
    engine: str,
    device: str,
    dtype: torch.dtype,
    transformed: bool = False,
    op_devices: Sequence[str] = _OP_DEVICES,
    plain: bool = False,
) -> str:
    """Decides what computes a call: "torch", "reference", or the engine that the op is called with.

    `device` and `dtype` are those of the input, `op_devices` the device types that the compiled op
    serves. `transformed`: under forward-mode differentiation, or a `torch.func` transform that the
    op cannot serve. `plain`: without an option that nn.LSTM lacks; "torch" serves no other call,
    and none that is transformed, so "auto" decides there. Raises a ValueError if there is no such
    engine, a RuntimeError if one of the op was requested and cannot serve this call.
    """
    check_engine(engine)
    if engine == "reference":
        return engine
    served = dtype in _OP_DTYPES and not transformed
    if engine == "torch":
        if plain and served:
            return engine
        engine = "auto"
    if device in op_devices and served:
        return engine
    if engine == "auto":
        return "torch" if plain and served else "reference"
    if not op_devices:
        why = f"the extension is not available ({_build.unavailable_reason()})"
    elif device not in op_devices:
        why = f"it is built for {', '.join(op_devices)}, and the input is on {device}"
    elif transformed:
        why = (
            "the op does not support forward-mode differentiation, torch.func.functionalize, nor "
            "torch.func transforms of packed input, of projections, under autocast and in compiled "
            "code"
        )
    else:
        why = f"it serves {', '.join(map(str, _OP_DTYPES))}, and the input is {dtype}"
    raise RuntimeError(f"engine {engine!r} cannot serve this call: {why}; use 'auto'")


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    layout: str | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_cell_states: bool = False,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    weight_dropout: float = 0.0,
    recompute: bool = False,
    engine: str = "auto",
) -> tuple[Any, ...]:
    """Applies a multi-layer LSTM to a batch of sequences; the equations are those of nn.LSTM.

    Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size, or H
    without a projection), L num_layers, D = 2 if bidirectional else 1. All floating tensors are of
    one dtype and on one device. It can be differentiated, twice too, by every floating tensor.

    Args:
        input: [T,B,I]; [B,T,I] if `batch_first`; the data [N,I] of a PackedSequence if
            `batch_sizes` is given. T >= 1; B may be 0.
        hx: (h_0 [L*D,B,P], c_0 [L*D,B,H]), zeros if None. For packed data its rows are in the
            sorted order of the data.
        weights: for each layer, for each direction: W_ih [4H,I] ([4H,D*P] above the first layer),
            W_hh [4H,P], then b_ih and b_hh [4H] if there are biases, then W_hr [P,H] if there is a
            projection (so far the order of `nn.LSTM`'s parameters), then gain_ih, gain_hh [4H],
            gain_c, bias_c [H] if there is layer normalization (see `fastlstm.LayerNormLSTM`).
            Gate order i, f, g, o.
        layout: which of these there are, as in `reference.lstm_layer`. None stands for an LSTM of
            torch.nn, where 2 to 5 weights tell.
        num_layers: number of stacked layers.
        bidirectional: whether each layer also walks from the last step to the first.
        batch_first: whether `input`, `reset` and the output put the batch before the steps. `hx`
            never does. Ignored for packed data.
        dropout: probability of zeroing an element of the output of each layer but the last.
        training: whether `dropout` and the regularizers below are applied.
        batch_sizes: [T] int64 on the CPU, the rows alive at each step, as in a PackedSequence.
        lengths: [B] integers from 0 to T, in any order and on any device (moved to the input's).
            The number of real steps of each row: after them the output is zero, and h_n, c_n are
            those of the last real step (h_0, c_0 for length 0). The second direction starts at
            that step. Unlike packing, compiles with `fullgraph=True`. Values are checked on the
            CPU only. Not with `batch_sizes`.
        reset: [T,B] bool or numbers ([B,T] if `batch_first`). Where true, or not 0, h and c are
            zeroed before that step, in walking order in each direction, and no gradient passes. A
            NaN is an error, looked for on the CPU only. Not with `batch_sizes`.
        return_cell_states: whether to return every cell state as well.
        input_dropout: probability p of dropping a feature of each layer's input, the same features
            at every step of a row: x_t becomes m * x_t with m [B,I] zero with probability p, else
            1 / (1 - p) (variational dropout, Gal & Ghahramani, 2016).
        recurrent_dropout: the same for h_{t-1} on its way into W_hh: one m [B,P] for each layer,
            direction and call.
        zoneout_h: probability that a unit of h keeps its value over a step, drawn for every step:
            h_t = z * h_{t-1} + (1 - z) * o * tanh(f * c_{t-1} + i * g), z zero or one (zoneout,
            Krueger et al., 2017). With a projection, of the projected h.
        zoneout_c: the same for c: c_t = z * c_{t-1} + (1 - z) * (f * c_{t-1} + i * g). Without
            `training` neither acts, whereas the paper then mixes old and new by the probability.
        weight_dropout: probability of dropping a weight of W_hh for the whole call; the others are
            divided by 1 - p (DropConnect as in AWD-LSTM, Merity et al., 2018).
        recompute: keep only the outputs and the cell states for backward, which recomputes the
            gates: a third of the memory (2H values instead of 6H for a row and step) for two more
            matrix products.
        engine: one of `ENGINES`. "auto" stands for the environment variable FASTLSTM_ENGINE (read
            at import) if it is set, and else for the fastest engine that can serve the call. For
            measurements on a GPU "persistent:UNITSxROW_TILExROW_GROUPS" too (docs/cuda.md), on a
            CPU "tiled:UNIT_GROUPSxROW_GROUPSxDIRECTIONS" (docs/cpu.md).

    Returns:
        `(output, (h_n, c_n))`, or `(output, (h_n, c_n), cell_states)` if `return_cell_states`:

        - output [T,B,D*P] ([B,T,D*P] if `batch_first`, [N,D*P] packed), of the last layer;
        - h_n [L*D,B,P] and c_n [L*D,B,H];
        - cell_states [L,T,B,D*H] ([L,B,T,D*H] if `batch_first`, [L,N,D*H] packed), c_t of every
          layer, zero after the end of each row.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or device, or T = 0.
        TypeError: an argument is not a tensor where one is expected, or `lengths` does not hold
            integers.
        ValueError: `engine` is unknown, `num_layers` is not a positive integer, `reset` has a NaN,
            or a probability is not between 0 and 1.
    """
    try:
        directions = 2 if bidirectional else 1
        layout = _layout(layout, weights, num_layers, directions)
        check_dims(input, batch_sizes, batch_first)
        input, lengths, reset, batch_first = steps_first(
            input, batch_sizes, lengths, reset, batch_first
        )
        if hx is None:
            sizes = weights[1].size(-1), weights[0].size(0) // 4
            h_0, c_0 = zero_states(input, num_layers * directions, *sizes, batch_sizes)
        else:
            h_0, c_0 = hx
            check_states(h_0, c_0, num_layers * directions)
        drawn = input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout
        regularizers = None
        if training and (dropout or any(drawn)):
            regularizers = Regularizers(*drawn)
            check_probabilities(dropout=dropout, **regularizers._asdict())
        call = LstmCall(input, h_0, c_0, weights, layout, batch_sizes, lengths, reset)
        found = None
        if _considers_torch(input, engine):
            lacking = _lacking_in_torch(call, return_cell_states, recompute, regularizers)
            engine = _engine_of_stack(call, engine, num_layers, directions, lacking)
            if engine == "torch":
                found = _aten.lstm(call, num_layers, directions, dropout, training)
        if found is None and num_layers == 1 and not regularizers:  # spares a small step the loop
            output, h_n, c_n, cells = _layer(call, engine, return_cell_states, recompute)
            found = output, (h_n, c_n), [cells]
        elif found is None:

            def run(call: LstmCall, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
                if regularizers:
                    if layer > 0:
                        call = call._replace(input=F.dropout(call.input, dropout))
                    call = regularize(call, regularizers)
                return _layer(call, engine, return_cell_states, recompute)

            found = by_layers(call, num_layers, run)
        return results(found, lengths, batch_first, return_cell_states)
    except (
        AttributeError,
        NotImplementedError,
        TypeError,
        ValueError,
    ):  # not before: it takes time
        named = {f"weights[{k}]": weight for k, weight in enumerate(weights)}
        check_kinds(input, hx, named, batch_sizes=batch_sizes, reset=reset)
        check_num_layers(num_layers)
        check_flags(return_cell_states=return_cell_states, recompute=recompute)
        raise


def steps_first(
    input: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    batch_first: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, bool]:
    """input, lengths and reset as the op takes them, and whether the batch was first."""
    batch_first = batch_first and batch_sizes is None
    if reset is not None and batch_sizes is None:
        reset = as_reset(reset, input, batch_first)
    if batch_first:
        input = input.transpose(0, 1)
    return input, lengths if lengths is None else as_lengths(lengths, input), reset, batch_first


# output, (h_n, c_n) and the cell states of each layer.
_Stack = tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]


def by_layers(
    whole: LstmCall, num_layers: int, run: Callable[[LstmCall, int], tuple[Tensor, ...]]
) -> _Stack:
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


def results(
    stack: _Stack, lengths: Tensor | None, batch_first: bool, return_cell_states: bool
) -> tuple[Any, ...]:
    """What `lstm` returns."""
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


def _considers_torch(input: Tensor, engine: str) -> bool:
    """Whether PyTorch's own LSTM may be chosen: where it never is, no time is spent on a choice."""
    engine = _DEFAULT_ENGINE if engine == "auto" else engine
    if engine != "auto":
        return engine == "torch"
    ours = _ALWAYS_OURS and (input.is_cpu or input.is_meta)
    if not ours or _measured.active or _traces_for_onnx():
        return True
    is_large = isinstance(n := input.numel(), int) and n >= _LEAST_OF_A_LARGE_STEP
    return is_large and not torch.compiler.is_compiling() and _choice.this_cpu().is_intel


def _traces_for_onnx() -> bool:
    """Whether torch.onnx.export(dynamo=False) runs, which knows nn.LSTM's op and not ours."""
    return torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export()


def _lacking_in_torch(
    call: LstmCall, return_cell_states: bool, recompute: bool, regularizers: Regularizers | None
) -> list[str]:
    """The options of a call that nn.LSTM lacks."""
    used = {
        "lengths": call.lengths is not None,
        "reset": call.reset is not None,
        "return_cell_states": return_cell_states,
        "recompute": recompute,
        "layer normalization": "layer_norm" in call.layout,
        **(regularizers._asdict() if regularizers else {}),
    }
    return [name for name, is_used in used.items() if is_used]


def _engine_of_stack(
    call: LstmCall, engine: str, num_layers: int, directions: int, lacking: list[str]
) -> str:
    """The engine of a stack of layers: "torch", or that of each layer."""
    if lacking and "torch" in (engine, _DEFAULT_ENGINE if engine == "auto" else ""):
        raise RuntimeError(
            f"engine 'torch' cannot serve this call: PyTorch's own LSTM has no "
            f"{', '.join(lacking)}; use 'auto'"
        )
    if _traces_for_onnx():
        if lacking:
            raise RuntimeError(
                "onnx: with dynamo=False only plain calls can be exported, got "
                f"{', '.join(lacking)}; use {onnx.REMEDY}"
            )
        return "torch"
    traced_in_symbols = isinstance(call.input.numel(), torch.SymInt)
    if lacking or traced_in_symbols or is_transformed():
        return "auto" if engine == "torch" else engine
    chosen = _engine_for(call.input, engine, plain=True)
    packed = call.batch_sizes is not None
    states = num_layers * directions, call.h_0.size(1) if packed else call.input.size(1)
    if chosen not in ("auto", "torch") or not _aten.fits(call, num_layers, directions, states):
        return "auto" if chosen == "torch" else chosen
    return chosen if chosen == "torch" else _choice.of(call, num_layers, directions).engine


def _layout(layout: str | None, weights: Sequence[Tensor], num_layers: int, directions: int) -> str:
    """The layout of a list of weights, which has to be as long as it says."""
    count = num_layers * directions
    if layout is None and num_layers >= 1:  # by the length of the list, as of nn.LSTM's
        each = len(weights) // count
        layout = layout_of(each >= 4, each in (3, 5))
    if not num_layers >= 1 or layout is None or len(weights) != count * len(weight_names(layout)):
        check_num_layers(num_layers)
        raise RuntimeError(
            f"lstm: expected weights to hold 2 to 5 tensors, or what layout says, for each of "
            f"{num_layers} layer(s) and {directions} direction(s), got {len(weights)} tensors"
        )
    return layout


def zero_states(
    input: Tensor, count: int, output_size: int, hidden_size: int, batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h_0 and c_0 where none are given, of `count` layers and directions."""
    batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
    c_0 = input.new_zeros(count, batch, hidden_size)
    h_0 = c_0 if output_size == hidden_size else input.new_zeros(count, batch, output_size)
    return h_0, c_0


def check_states(h_0: Tensor, c_0: Tensor, count: int) -> None:
    """Raises a RuntimeError unless they are of `count` layers and directions."""
    if h_0.size(0) != count or c_0.size(0) != count:
        raise RuntimeError(
            f"lstm: expected h_0 and c_0 of size(0) = layers * directions = {count}, got "
            f"{tuple(h_0.shape)} and {tuple(c_0.shape)}"
        )


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Makes one step of an LSTM, as `torch.lstm_cell` does.

    Args:
        input: [B,I].
        hx: (h [B,H], c [B,H]).
        w_ih: [4H,I], gate order i, f, g, o.
        w_hh: [4H,H].
        b_ih: [4H]; either both biases or none.
        b_hh: [4H].
        engine: as in `lstm`.

    Returns:
        The next (h [B,H], c [B,H]).
    """
    if (b_ih is None) != (b_hh is None):
        raise RuntimeError("lstm_cell: expected both b_ih and b_hh or neither, got one of them")
    weights: tuple[Tensor, ...] = (w_ih, w_hh)
    layout = ""
    if b_ih is not None and b_hh is not None:
        weights, layout = (w_ih, w_hh, b_ih, b_hh), "bias"
    try:
        h, c = hx
        if not (is_transformed() or has_torch_function_variadic(input, h, c, *weights)):
            chosen = _engine_for(input, engine, plain=True)
            if chosen == "auto" and input.is_cuda:
                chosen = "torch"  # ours has as many kernels
            if chosen not in ("torch", "reference"):
                run = _build.library.lstm_cell
                step: tuple[Tensor, Tensor] = run(input, h, c, weights, layout, chosen)
                return step if step[1].dtype == c.dtype else _as_state(step, c)
            if chosen == "torch":
                by_torch = _aten.lstm_cell(input, h, c, weights)
                if by_torch is not None:
                    return by_torch
        call = LstmCall(input.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), weights, layout)
        _, h_n, c_n, _ = _layer(call, engine)
        return _as_state((h_n.squeeze(0), c_n.squeeze(0)), c)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        check_kinds(input, hx, dict(zip(names, weights, strict=False)))
        raise


def _as_state(step: tuple[Tensor, Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    """The dtype of torch.lstm_cell under CPU autocast, which leaves the state in its own."""
    return (step[0].to(c.dtype), step[1].to(c.dtype)) if c.is_cpu else step


def _engine_for(input: Tensor, engine: str, transformed: bool = False, plain: bool = False) -> str:
    transformed = transformed or forward_ad._current_level >= 0
    if engine == "auto":
        engine = _DEFAULT_ENGINE
        op_serves = engine == "auto" and input.dtype in _OP_DTYPES and not transformed
        if op_serves and _ALWAYS_OURS and input.is_cpu:
            return engine  # as choose_engine says, in a third of the time
    device, served = input.device.type, _OP_DEVICES
    on_gpu = device == "cuda" and served and not torch.compiler.is_compiling()
    if on_gpu and device in served:
        if _build.has_code_for_gpu(input.device.index):
            _build.leave_sms_to_other_processes()
        else:
            served = tuple(name for name in served if name != device)
    chosen = choose_engine(engine, device, input.dtype, transformed, served, plain)
    if on_gpu and device not in served and chosen != engine:
        _build.warn_of_no_cuda_kernels()
    return chosen


def _autocasts(device: str) -> bool:
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def _layer(
    call: LstmCall, engine: str, save_cells: bool = False, recompute: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, h_n, c_n and, if they are to be saved, every cell state."""
    compiles = torch.compiler.is_compiling()
    transformed = _transforms_active()
    folds = (
        transformed
        and not compiles
        and not _autocasts(call.input.device.type)
        and _transforms.serves(call)
    )
    engine = _engine_for(call.input, engine, transformed and not folds)
    if engine == "reference":
        return _by_reference(call)
    if folds:
        return _transforms.lstm_layer(call, engine)
    # Dynamo and tensor subclasses know torch.ops; other calls go the short way.
    exports = compiles and not torch.compiler.is_dynamo_compiling()
    if exports and torch.onnx.is_in_onnx_export():
        onnx.recommend_translations()
    if compiles or has_torch_function_variadic(call.input, call.h_0, call.c_0, *call.weights):
        results = torch.ops.fastlstm.lstm(*call, save_cells, False, recompute, engine)
        output, h_n, c_n, cells, _ = results
        return output, h_n, c_n, cells
    short: tuple[Tensor, Tensor, Tensor, Tensor] = _build.library.lstm(
        *call, save_cells, recompute, engine
    )
    return short


def _by_reference(call: LstmCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = call.input.device.type
    if _autocasts(device):
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
