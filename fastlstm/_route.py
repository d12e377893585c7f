"""Who computes a call, decided once: where a module or a function is called.

What stays to be chosen for a plain call that both could serve is in `_choice`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_variadic

from . import _build, _choice, _measured, _transforms, onnx
from ._call import DTYPES, LstmCall, weight_shapes
from ._checks import check_batch_sizes
from ._choice import Choice as Route
from ._regularize import Regularizers

# What each is says fastlstm.functional.
ENGINES = ("auto", "torch", "reference", "stepwise", "tiled", "persistent")

_OP_DEVICES = tuple(device for device in ("cpu", "cuda") if _build.has_kernels(device))
if _OP_DEVICES:
    _OP_DEVICES += ("meta",)

# Whether "auto" on a CPU does not consider PyTorch's own, unless fastlstm.tune has measured.
_ALWAYS_OURS = _build.has_kernels("cpu")

# What "auto" stands for: the user's FASTLSTM_ENGINE, read once.
_DEFAULT_ENGINE = os.environ.get("FASTLSTM_ENGINE") or "auto"

# Asked once: torch 2.11 cannot trace the question.
_AUTOCAST_DEVICES = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)

_OURS = Route("auto", "measured ahead on two processors")
_ONNX = Route("torch", "the exporter knows nn.LSTM's op, and not ours")

transforms_active = torch._C._are_functorch_transforms_active


def is_transformed() -> bool:
    """Whether a call is compiled, differentiated forward or under a transform of torch.func."""
    return torch.compiler.is_compiling() or transforms_active() or forward_ad._current_level >= 0


def autocasts(device: str) -> bool:
    """Whether autocast is on for a device type."""
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def traces() -> bool:
    """Whether torch.jit.trace or torch.onnx.export(dynamo=False) runs."""
    return torch._C._get_tracing_state() is not None


def exports_for_onnx() -> bool:
    """Whether torch.onnx.export runs and knows nn.LSTM's op alone: where our table is not used."""
    if traces():
        return torch.onnx.is_in_onnx_export()
    if not torch.compiler.is_compiling() or torch.compiler.is_dynamo_compiling():
        return False
    return torch.onnx.is_in_onnx_export() and not onnx.were_made


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


_GPU = "cuda"  # tests, which have none, say "cpu"


def leaves_to_torch(lstm: Any, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> bool:
    """Whether nn.LSTM's forward is all that a plain call of a module needs.

    On a GPU it is remembered for each kind of call, so that what goes to cuDNN costs as much as
    nn.LSTM.
    """
    asked = lstm._fastlstm_options.engine
    engine = _DEFAULT_ENGINE if asked == "auto" else asked
    if engine not in ("auto", "torch") or is_transformed() or torch._C._is_tracing():
        return False
    if input.device.type != _GPU:
        return input.is_cpu and (engine == "torch" or not _ALWAYS_OURS)
    dims = input.dim() if batch_sizes is None else 3
    # In eval mode `_aten.lstm` tells cuDNN to keep what backward needs; it also copies states.
    if (torch.is_grad_enabled() and not lstm.training) or dims not in (2, 3):
        return False
    states: Any = () if hx is None else hx if type(hx) is tuple else (None,)
    if not all(type(h) is Tensor and h.is_contiguous() for h in states):
        return False
    if batch_sizes is not None:
        rows: tuple[int, ...] = len(batch_sizes), int(batch_sizes[0]) if len(batch_sizes) else 0
    else:
        rows = (len(input), 1) if dims == 2 else input.shape[:2]
    steps, batch = reversed(rows) if lstm.batch_first and input.dim() == 3 else rows
    if steps == 0:
        return False
    sizes = lstm.input_size, lstm.hidden_size, batch, steps, lstm.proj_size, lstm.num_layers
    layout = 1 + lstm.bidirectional, lstm.bias, batch_sizes is not None
    return _gpu_leaves_call(engine, input, lstm._flat_weights[0], *sizes, *layout)


def gpu_leaves_step_to_torch(cell: Any, input: Tensor) -> bool:
    """The same for nn.LSTMCell's forward, of which a layer of one step says which is faster."""
    asked = cell._fastlstm_options.engine
    engine = _DEFAULT_ENGINE if asked == "auto" else asked
    if input.device.type != _GPU or engine not in ("auto", "torch"):
        return False
    if is_transformed() or torch._C._is_tracing():
        return False
    batch = len(input) if input.dim() == 2 else 1
    sizes = cell.input_size, cell.hidden_size, batch, 1, 0, 1, 1, cell.bias, False
    return _gpu_leaves_call(engine, input, cell.weight_ih, *sizes)


def _gpu_leaves_call(engine: str, input: Tensor, weight: Tensor, *sizes: Any) -> bool:
    if _measured.forced is not None or input.dtype not in DTYPES:
        return False  # fastlstm.tune looks for calls to measure, or measures one
    if engine == "torch" or not _OP_DEVICES:
        return True
    dtype = _choice.dtype_of(input)
    precisions = (_measured.rnn_precision(_GPU), _measured.matmul_precision())
    training = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    told = precisions if dtype == "float32" else None, _measured.generation
    return _gpu_leaves(told, input.device.index or 0, dtype, *sizes, training)


@functools.lru_cache(maxsize=4096)
def _gpu_leaves(told: tuple[Any, int], index: int, *of_stack: Any) -> bool:
    choice = _gpu_choice(_choice.Stack(*of_stack), index)
    return choice is None or choice.engine == "torch"


def _gpu_choice(stack: _choice.Stack, index: int) -> _choice.Choice | None:
    """That of "auto"; None, after a warning, where a GPU has no kernels of ours."""
    _, capability, error = _build.gpu(index) if _GPU in _OP_DEVICES else (0, 0, "")
    if capability:
        return _choice.of_stack(stack, torch.device("cuda", index))
    _build.warn_of_no_cuda_kernels(error)
    return None


def is_ours_at_once(engine: str, input: Tensor, *others: Tensor) -> bool:
    """Whether the op serves a call with this input on the CPU, and nothing has to see `others`.

    What is found without it, in a third of the time.
    """
    if torch.compiler.is_compiling() or not engine == _DEFAULT_ENGINE == "auto":
        return False
    differentiates = transforms_active() or forward_ad._current_level >= 0
    chooses = _measured.active or traces()
    is_known = _ALWAYS_OURS and input.is_cpu and input.dtype in DTYPES
    return is_known and not (differentiates or chooses or has_torch_function_variadic(*others))


def of_stack(
    call: LstmCall,
    engine: str,
    num_layers: int,
    directions: int,
    regularizers: Regularizers | None,
    return_cell_states: bool,
) -> Route:
    """Of a stack of layers that is given together as `call`, with these options."""
    zones_out = regularizers is not None and regularizers.zone_out()
    if not zones_out and is_ours_at_once(engine, call.input):
        return _OURS  # what the rest would say
    name = _DEFAULT_ENGINE if engine == "auto" else engine
    is_ours = name == "auto" and _is_ours(call.input)
    if name == "torch" or (name == "auto" and not is_ours):
        lacking = _lacking_in_torch(call, return_cell_states, regularizers)
        if name == "torch" and lacking:
            raise RuntimeError(
                f"engine 'torch' cannot serve this call: PyTorch's own LSTM has no "
                f"{', '.join(lacking)}; use 'auto'"
            )
        if exports_for_onnx():
            if not lacking:
                return _ONNX
            if traces():  # else run_layer warns
                raise RuntimeError(
                    "onnx: with dynamo=False only plain calls can be exported, got "
                    f"{', '.join(lacking)}; use {onnx.REMEDY}"
                )
        traced_in_symbols = isinstance(call.input.numel(), torch.SymInt)
        if not (lacking or traced_in_symbols or is_transformed()):
            return _of_plain_stack(call, name, num_layers, directions)
        name = "auto"
    if zones_out:
        return _of_zoneout(name)
    return of_op(call, name, bool(regularizers and regularizers.recurrent_dropout))


def _of_zoneout(engine: str) -> Route:
    check_engine(engine)
    if engine not in ("auto", "reference"):
        raise RuntimeError(
            f"engine {engine!r} cannot serve this call: zoneout_h and zoneout_c are options of "
            "'reference' alone; use 'auto'"
        )
    return Route("reference", "zoneout is its own")


def of_op(call: LstmCall, engine: str, has_mask: bool = False) -> Route:
    """Of one layer or more by the op, or by the reference where the op cannot go.

    `has_mask`: whether a layer will have an `h_mask` that `call` does not have yet.
    """
    transformed = False
    if transforms_active():
        folds = not (torch.compiler.is_compiling() or autocasts(call.input.device.type))
        transformed = not (folds and not has_mask and _transforms.serves(call))
    return of_input(call.input, engine, transformed)


def _is_ours(input: Tensor) -> bool:
    """Whether PyTorch's own is not considered, so that no time is spent on a choice."""
    if not (_ALWAYS_OURS and (input.is_cpu or input.is_meta)):
        return False
    return not (_measured.active or exports_for_onnx())


def _lacking_in_torch(
    call: LstmCall, return_cell_states: bool, regularizers: Regularizers | None
) -> list[str]:
    """The options of a call that nn.LSTM lacks."""
    used = {
        "lengths": call.lengths is not None,
        "reset": call.reset is not None,
        "return_cell_states": return_cell_states,
        "layer normalization": "layer_norm" in call.layout,
        **(regularizers._asdict() if regularizers else {}),
    }
    return [name for name, is_used in used.items() if is_used]


def _of_plain_stack(call: LstmCall, engine: str, num_layers: int, directions: int) -> Route:
    """Of a call without options and transforms, by "auto" or "torch"."""
    route = of_input(call.input, engine, plain=True)
    if route.engine == "reference":
        return route
    if not _fits(call, num_layers, directions):  # for the checks of our own
        return of_input(call.input, "auto")
    return route if route.engine == "torch" else _choice.of(call, num_layers, directions)


def of_input(input: Tensor, engine: str, transformed: bool = False, plain: bool = False) -> Route:
    """Of a call with this input; for `transformed` and `plain` see `route_for`."""
    transformed = transformed or forward_ad._current_level >= 0
    if engine == "auto":
        engine = _DEFAULT_ENGINE
        op_serves = engine == "auto" and input.dtype in DTYPES and not transformed
        if op_serves and _ALWAYS_OURS and input.is_cpu:
            return _OURS  # as route_for says, in a third of the time
    device, served = input.device.type, _OP_DEVICES
    on_gpu = device == "cuda" and served and not torch.compiler.is_compiling()
    error = ""
    if on_gpu and device in served:
        _, capability, error = _build.gpu(input.device.index)
        if not capability:
            served = tuple(name for name in served if name != device)
    route = route_for(engine, device, input.dtype, transformed, served, plain)
    if on_gpu and device not in served and route.engine != engine:
        _build.warn_of_no_cuda_kernels(error)
    return route


def route_for(
    engine: str,
    device: str,
    dtype: torch.dtype,
    transformed: bool,
    op_devices: Sequence[str],
    plain: bool,
) -> Route:
    """What computes a call: "torch", "reference", or the engine that the op is called with; why.

    `device` and `dtype` are those of the input, `op_devices` the device types that the compiled op
    serves. `transformed`: under forward-mode differentiation, or a `torch.func` transform that the
    op cannot serve. `plain`: without an option that nn.LSTM lacks; "torch" serves no other call,
    and none that is transformed, so "auto" decides there. Raises a ValueError if there is no such
    engine, a RuntimeError if one of the op was requested and cannot serve this call.
    """
    check_engine(engine)
    if engine == "reference":
        return Route(engine, "requested")
    served = dtype in DTYPES and not transformed
    if engine == "torch":
        if plain and served:
            return Route(engine, "requested")
        engine = "auto"
    if device in op_devices and served:
        return Route(engine, "the op serves it")
    why = _why_not_the_op(device, dtype, transformed, op_devices)
    if engine == "auto":
        return Route("torch" if plain and served else "reference", why)
    raise RuntimeError(f"engine {engine!r} cannot serve this call: {why}; use 'auto'")


def _why_not_the_op(
    device: str, dtype: torch.dtype, transformed: bool, op_devices: Sequence[str]
) -> str:
    if not op_devices:
        return f"the extension is not available ({_build.unavailable_reason()})"
    if device not in op_devices:
        return f"it is built for {', '.join(op_devices)}, and the input is on {device}"
    if transformed:
        return (
            "the op does not support forward-mode differentiation, torch.func.functionalize, nor "
            "torch.func transforms of packed input, of projections, under autocast and in compiled "
            "code"
        )
    return f"it serves {', '.join(map(str, DTYPES))}, and the input is {dtype}"


def _fits(call: LstmCall, num_layers: int, directions: int) -> bool:
    """Whether the tensors agree in shape, device and dtype, which aten does not always check."""
    input, h_0, c_0, weights, layout, batch_sizes = call[:6]
    states = num_layers * directions, input.size(1) if batch_sizes is None else h_0.size(1)
    gates, output_size = weights[0].size(0), weights[1].size(-1)
    # torch.compile warns of a cache.
    shapes = _shapes_of_stack if torch.compiler.is_compiling() else _known_shapes_of_stack
    sizes = layout, num_layers, directions, input.size(-1), gates // 4, output_size
    if (
        h_0.shape != (*states, output_size)
        or c_0.shape != (*states, gates // 4)
        or tuple([weight.shape for weight in weights]) != shapes(*sizes)
    ):
        return False
    device, dtype = input.device, input.dtype
    for tensor in (h_0, c_0, *weights):
        if tensor.device != device:
            return False
        if tensor.dtype is not dtype and not torch.is_autocast_enabled(device.type):
            return False
    if batch_sizes is not None:
        check_batch_sizes(batch_sizes, states[-1], input.size(0))
    return True


def _shapes_of_stack(
    layout: str, num_layers: int, directions: int, input_size: int, hidden: int, output_size: int
) -> tuple[tuple[int, ...], ...]:
    """The shapes of all weights, in their order."""
    if "projection" not in layout:
        output_size = hidden
    first = weight_shapes(layout, input_size, hidden, output_size)
    others = weight_shapes(layout, directions * output_size, hidden, output_size)
    return first * directions + others * (directions * (num_layers - 1))


_known_shapes_of_stack = functools.lru_cache(maxsize=256)(_shapes_of_stack)
