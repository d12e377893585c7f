"""Chooses the engine of each call.

The caller names it, or it is the first engine that serves the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import _build
from .call import Call, Results

transforms_active = torch._C._are_functorch_transforms_active
has_onnx_translations = False  # whether `onnx.translations` was called


class Engine(NamedTuple):
    """A way to compute a call."""

    name: str  # the value of `lstm.engine` that requests it; "op" cannot be requested
    why_not: Callable[[Call], str | None]  # why the engine cannot serve a call, None if it can
    run: Callable[[Call], Results]  # computes a call that the engine serves
    # False if a check found wrong kernels on the call's device: then the reference serves the call.
    # Raises a RuntimeError if the engine is "persistent" and has passed no check on that device.
    is_sound: Callable[[Call], bool] = lambda call: True


# "torch", "reference", "op" (the op, whose planner chooses an engine), and each engine of the op.
BY_NAME: dict[str, Engine] = {}  # filled by fastlstm/_engine_table.py
# What users may name; "auto" is no engine, but the choice among them.
ENGINES = ("auto", "torch", "reference", *_build.engines_of_the_op())
# `choose` takes this for "auto": the value of FASTLSTM_ENGINE at import, or "auto" if it is unset.
DEFAULT = os.environ.get("FASTLSTM_ENGINE") or "auto"


def check_engine(name: Any) -> None:
    """Raises a ValueError unless there is such an engine."""
    if name not in ENGINES:
        note = "the environment variable FASTLSTM_ENGINE is used if the code names no engine"
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r} ({note})")


def choose(call: Call, requested: str = "auto") -> Engine:
    """Returns the engine of a call, or the reference if the engine's kernels are wrong.

    Raises a RuntimeError if a requested engine cannot serve the call; see also `Engine.is_sound`.
    """
    name = DEFAULT if requested == "auto" else requested
    if name == "auto":
        engine = default_engine(call)
    else:
        check_engine(name)
        engine = BY_NAME[name]
        if reason := engine.why_not(call):
            serving = ", ".join(each for each in ENGINES[1:] if not BY_NAME[each].why_not(call))
            problem = f"engine {name!r} cannot serve this call: {reason}"
            raise RuntimeError(f"{problem}; use one of auto, {serving}")
    return engine if engine.is_sound(call) else BY_NAME["reference"]


def default_engine(call: Call) -> Engine:
    """Returns the engine of "auto": the first that serves the call."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    torch_first = call.input.is_cuda or (is_traced and onnx_export_lacks_op())
    for name in ("torch", "op") if torch_first else ("op", "torch"):
        if BY_NAME[name].why_not(call) is None:
            return BY_NAME[name]
    if call.input.is_cuda and not torch.compiler.is_compiling():
        _build.warn_of_no_cuda_kernels(call.input.device)
    return BY_NAME["reference"]


def auto_means_op() -> bool:
    """Whether an eager call on a CPU with engine "auto" can go to the op without `choose`."""
    return DEFAULT == "auto" and "cpu" in _build.device_types


def onnx_export_lacks_op() -> bool:
    """Whether torch.onnx.export runs and cannot translate our op, only PyTorch's own LSTM."""
    if torch._C._get_tracing_state() is not None:  # the exporter with dynamo=False
        return torch.onnx.is_in_onnx_export()
    if not torch.compiler.is_compiling() or torch.compiler.is_dynamo_compiling():
        return False
    return torch.onnx.is_in_onnx_export() and not has_onnx_translations  # dynamo=True
