"""The engines: what runs each, what each cannot do, and the choice among them, made once a call.

An engine is a row of `BY_NAME`. A call takes the engine that its caller names, or the one that
`fastlstm.tune` measured, or the first that has no reason against it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from .. import _build
from ..check import gate
from ..check.child import PASSED
from ..interop import onnx, transforms
from . import layers, records, shut_gate
from .call import DTYPES, Call

transforms_active = torch._C._are_functorch_transforms_active


class Engine(NamedTuple):
    """A way to compute a call.

    Attributes:
        name: as `lstm.engine` takes it.
        why_not: the reason why it cannot serve a call, None if it can.
        run: computes a call that it serves.
    """

    name: str
    why_not: Callable[[Call], str | None]
    run: Callable[[Call], layers.Results]


def _why_not_torch(call: Call) -> str | None:
    if lacking := [option for option in call.options() if option != "lengths"]:
        return f"PyTorch's own LSTM has no {', '.join(lacking)}"
    if call.lengths is not None and (reason := shut_gate.why_not(call)):
        return reason
    if call.input.dtype not in (*DTYPES, torch.complex64, torch.complex128):
        return f"PyTorch's own LSTM does not serve an input of {call.input.dtype}"
    if torch.compiler.is_compiling() and not onnx.knows_torch_alone():
        return "torch.compile and torch.export trace our op, and not PyTorch's own LSTM"
    if transforms_active() or forward_ad._current_level >= 0:
        return "PyTorch's own LSTM knows no torch.func transforms and no forward-mode derivatives"
    return None


def _why_not_persistent(call: Call) -> str | None:
    drops = call.regularizers is not None and call.regularizers.recurrent_dropout
    fits = not (drops or "projection" in call.layout or "layer_norm" in call.layout)
    if fits and call.input.is_cuda and not torch.compiler.is_compiling():
        steps, batch = call.steps_and_batch()
        sizes = call.weights[0].size(0) // 4, batch, steps, call.directions
        dtype = str(call.dtype()).removeprefix("torch.")
        sms, capability, _ = _build.gpu(call.input.device.index or 0)
        fits = _build.library.divides(*sizes, dtype, torch.is_grad_enabled(), sms, capability)
    if fits:
        return None
    return (
        "it takes float32, bfloat16 and float16 without proj_size, layer normalization and "
        "recurrent dropout, on sm_80 or newer, where W_hh fits into all shared memory together"
    )


def _why_not_tiled(call: Call) -> str | None:
    drops = call.regularizers is not None and call.regularizers.recurrent_dropout
    has_them = drops or "layer_norm" in call.layout
    return "it has no layer normalization and no recurrent dropout" if has_them else None


def _op(name: str, *device_types: str) -> Engine:
    """An engine of the op, by its name there; "auto" leaves the choice to the device's planner."""

    def why_not(call: Call) -> str | None:
        device, dtype = call.input.device, call.input.dtype
        has_kernels = device.type == "cpu" and "cpu" in _build.kinds
        if not has_kernels and (reason := _build.why_no_kernels(device)):
            return reason
        if device.type not in device_types:
            return f"it runs on {', '.join(device_types)}, and the input is on {device.type}"
        if dtype not in DTYPES:
            return f"it computes {', '.join(map(str, DTYPES))}, and the input is {dtype}"
        if call.regularizers is not None and call.regularizers.zones_out():
            return "zoneout is computed by the reference alone"
        if forward_ad._current_level >= 0 or (transforms_active() and not transforms.serves(call)):
            return (
                "the op has no forward-mode derivatives, and of torch.func no functionalize and no "
                "transform of packed input, masks, projections, autocast and compiled code"
            )
        if name == "persistent":
            return _why_not_persistent(call)
        return _why_not_tiled(call) if name == "tiled" else None

    run = functools.partial(layers.run_op, engine=name)
    return Engine("op" if name == "auto" else name, why_not, run)


def _run_torch(call: Call) -> layers.Results:
    return (layers.run_torch if call.lengths is None else shut_gate.run)(call)


TORCH = Engine("torch", _why_not_torch, _run_torch)
REFERENCE = Engine("reference", lambda call: None, layers.run_reference)
OP = _op("auto", "cpu", "cuda", "meta")
_OF_THE_OP = [_op(name, *types, "meta") for name, types in _build.engines_of_the_op().items()]
BY_NAME = {row.name: row for row in (TORCH, REFERENCE, OP, *_OF_THE_OP)}
#: What users may name; "auto" is no engine, but the choice among them.
ENGINES = ("auto", *(name for name in BY_NAME if name != "op"))


def check_engine(name: Any) -> None:
    """Raises a ValueError unless there is such an engine."""
    if name not in ENGINES:
        raise ValueError(
            f"engine: expected one of {', '.join(ENGINES)}, got {name!r} (the environment variable "
            "FASTLSTM_ENGINE decides where the code does not)"
        )


# What "auto" stands for: the user's FASTLSTM_ENGINE, read once.
DEFAULT = os.environ.get("FASTLSTM_ENGINE") or "auto"


def choose(call: Call, requested: str = "auto") -> Engine:
    """The engine of a call. On a GPU it is one of ours only after that was checked there.

    Raises:
        ValueError: there is no engine called `requested`.
        RuntimeError: it cannot serve this call, or did not pass the check; the message says why.
    """
    name = DEFAULT if requested == "auto" else requested
    if name == "auto":
        is_tuned = records.tuned or records.noted is not None
        row = measured(call) if is_tuned and not torch.compiler.is_compiling() else None
        row = row or unmeasured(call)
    else:
        check_engine(name)
        row = BY_NAME[name]
        if reason := row.why_not(call):
            others = ", ".join(each for each in ENGINES[1:] if not BY_NAME[each].why_not(call))
            raise RuntimeError(
                f"engine {name!r} cannot serve this call: {reason}; use one of auto, {others}"
            )
    device = call.input.device
    if device.type != gate.DEVICE_TYPE:
        return row
    if row.name == "persistent":
        if reason := gate.why_not_persistent(device):
            raise RuntimeError(f"engine 'persistent' cannot run on {device}: {reason}")
    elif row.name in ("op", "stepwise") and gate.stepwise_is_wrong(device, call.dtype()):
        return REFERENCE
    return row


def measured(call: Call) -> Engine | None:
    """The engine that was measured as the fastest, if it serves the call and may run."""
    row = BY_NAME.get(records.engine(call) or "")
    if row is None or row.why_not(call):
        return None
    if row.name == "persistent" and gate.on_record(row.name, call.input.device) != PASSED:
        return None
    return row


def unmeasured(call: Call) -> Engine:
    """The engine that "auto" stands for where nothing was measured: the first that can."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    torch_first = call.input.is_cuda or (is_traced and onnx.knows_torch_alone())
    for row in (TORCH, OP) if torch_first else (OP, TORCH):
        if row.why_not(call) is None:
            return row
    if call.input.is_cuda and not torch.compiler.is_compiling():
        _build.warn_of_no_cuda_kernels(call.input.device)
    return REFERENCE


def is_op_at_once() -> bool:
    """Whether plain calls on a CPU are the op's; the op itself finds out which are plain.

    What `choose` and `run_op` would find, for the shortcuts of the modules.
    """
    nobody_else = DEFAULT == "auto" and not records.tuned and records.noted is None
    return nobody_else and "cpu" in _build.kinds and is_eager()


def is_eager() -> bool:
    """Whether no compiler and no forward-mode derivative has to see a call."""
    return not torch.compiler.is_compiling() and forward_ad._current_level < 0
