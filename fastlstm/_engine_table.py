"""The table of the engines: why each cannot serve a call, and the function that runs it."""

from __future__ import annotations

import functools

import torch
from torch.autograd import forward_ad

from . import _build
from .check import first_use
from .engine import engines
from .engine.by_reference import run_reference
from .engine.call import DTYPES, Call
from .engine.engines import Engine, transforms_active
from .engine.op import run_op, serves_transforms
from .engine.torch_lstm import run_torch, why_no_lengths


def _why_not_torch(call: Call) -> str | None:
    if lacking := [option for option in call.extra_options() if option != "lengths"]:
        return f"PyTorch's own LSTM has no {', '.join(lacking)}"
    if call.lengths is not None and (reason := why_no_lengths(call)):
        return reason
    if call.input.dtype not in (*DTYPES, torch.complex64, torch.complex128):
        return f"PyTorch's own LSTM does not serve an input of {call.input.dtype}"
    if torch.compiler.is_compiling() and not engines.onnx_export_lacks_op():
        return "torch.compile and torch.export trace our op, and not PyTorch's own LSTM"
    if transforms_active() or forward_ad._current_level >= 0:
        return "PyTorch's own LSTM knows no torch.func transforms and no forward-mode derivatives"
    return None


def _why_not_op(name: str, device_types: tuple[str, ...], call: Call) -> str | None:
    """Why an engine of the op, which has kernels for `device_types`, cannot serve a call."""
    device, dtype = call.input.device, call.input.dtype
    runs_on_cpu = device.type == "cpu" and "cpu" in _build.device_types  # why_no_kernels is slower
    if not runs_on_cpu and (reason := _build.why_no_kernels(device)):
        return reason
    if device.type not in device_types:
        return f"it runs on {', '.join(device_types)}, and the input is on {device.type}"
    if dtype not in DTYPES:
        return f"it computes {', '.join(map(str, DTYPES))}, and the input is {dtype}"
    if call.regularizers is not None and call.regularizers.zones_out():
        return "only the reference computes zoneout"
    if forward_ad._current_level >= 0 or (transforms_active() and not serves_transforms(call)):
        lacks = "packed input, recurrent dropout, proj_size, layer norm, autocast or torch.compile"
        return f"it has no forward-mode derivatives, functionalize, or torch.func with {lacks}"
    drops_h = call.regularizers is not None and bool(call.regularizers.recurrent_dropout)
    needs_stepwise = drops_h or "layer_norm" in call.layout
    if name == "tiled" and needs_stepwise:
        return "it has no layer normalization and no recurrent dropout"
    if name == "persistent" and (needs_stepwise or not _fits_persistent(call)):
        lacks = "float64, proj_size, layer normalization and recurrent dropout"
        return f"it has no {lacks}; W_hh must fit into the shared memory of a GPU from sm_80 on"
    return None


def _fits_persistent(call: Call) -> bool:
    """Whether the persistent engine has a tiling for the sizes of a call and its GPU."""
    if "projection" in call.layout:
        return False
    if not call.input.is_cuda or torch.compiler.is_compiling():
        return True
    (hidden_size, _), (steps, batch) = call.state_sizes(), call.steps_and_batch()
    sizes = hidden_size, batch, steps, call.num_directions
    dtype = str(call.dtype()).removeprefix("torch.")
    sms, capability, _ = _build.gpu_properties(call.input.device.index or 0)
    trains = torch.is_grad_enabled()
    return bool(_build.library.persistent_engine_fits(*sizes, dtype, trains, sms, capability))


def _is_sound(name: str, call: Call) -> bool:
    """Implements `Engine.is_sound`. Raises an error if "persistent" has not passed its check."""
    device = call.input.device
    if device.type != first_use.CHECKED_DEVICE_TYPE or name == "tiled":
        return True  # kernels of the CPU need no check, and "tiled" has no others
    if name != "persistent":
        return not first_use.stepwise_is_wrong(device, call.dtype())
    if reason := first_use.why_not_persistent(device):
        raise RuntimeError(f"engine 'persistent' cannot run on {device}: {reason}")
    return True


def _op_engine(name: str, *device_types: str) -> Engine:
    why_not = functools.partial(_why_not_op, name, device_types)
    run, is_sound = functools.partial(run_op, engine=name), functools.partial(_is_sound, name)
    return Engine("op" if name == "auto" else name, why_not, run, is_sound)


_ENGINES = (
    Engine("torch", _why_not_torch, run_torch),
    Engine("reference", lambda call: None, run_reference),
    _op_engine("auto", "cpu", "cuda", "meta"),  # the engine "op": the op's planner chooses
    *(_op_engine(name, *types, "meta") for name, types in _build.engines_of_the_op().items()),
)
engines.BY_NAME |= {engine.name: engine for engine in _ENGINES}
