"""`tune` measures on the user's machine which engine is the fastest for the calls of a model."""

from __future__ import annotations

import statistics
from operator import truediv
from typing import Any

from torch import nn

from .check import first_use
from .engine import engines, records
from .engine.call import Call
from .engine.engines import Engine
from .engine.timing import runner, times_of
from .modules.options import check_model

MARGIN = 1.03  # another engine is chosen only if its speedup over the default is at least this


def tune(model: nn.Module, *example: Any, seconds: float = 1.0) -> dict[str, dict[str, float]]:
    """Measures which engine is the fastest for the LSTM calls of a model, and remembers it.

    The model runs once, in its present training or eval mode and the caller's gradient mode. Its
    calls of a `fastlstm.LSTM` are measured if they have engine "auto" and no option that nn.LSTM
    lacks. The engines take turns. One that is at least 3 % faster than the choice of "auto", twice
    in a row, is stored for this machine, number of threads and versions. "auto" then follows it.
    Batch sizes and steps round up to powers of two, so that similar calls are of one kind.

    Args:
        model: any module with a `fastlstm.LSTM`.
        example: the arguments with which the model is called.
        seconds: how long each kind of call is measured; twice as long if another engine wins.

    Returns:
        For each kind of call the median microseconds (in training with gradients) by engine:
        "op" (the op, whose planner chooses an engine), "torch" (PyTorch's own LSTM) and, on a GPU
        where it passed `fastlstm.check`, "persistent". The first is what "auto" uses from now on.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model makes no call that can be measured.
        OSError: the file of FASTLSTM_TUNE cannot be written; this process still uses the result.
    """
    check_model(model)
    records.calls_to_tune = calls = dict[str, Call]()
    try:
        model(*example)
    finally:
        records.calls_to_tune = None
    if not calls:
        names = [getattr(module, "_fastlstm_engine", "auto") for module in model.modules()]
        engine = next((name for name in (*names, engines.DEFAULT) if name != "auto"), None)
        expected = "a model that calls a fastlstm.LSTM of engine 'auto' without options of fastlstm"
        note = "fastlstm.convert turns each nn.LSTM into one; LSTMCells are not measured"
        got = f"engine {engine!r}" if engine else f"no such call ({note})"
        raise ValueError(f"tune: expected {expected}, got {got}")
    times_by_call = {}
    for key, call in calls.items():
        default = engines.default_engine(call).name
        times = _measure(call, default, seconds)
        chosen = next(iter(times))
        records.store(key, None if chosen == default else chosen)
        times_by_call[call.describe()] = times
    return times_by_call


def _measure(call: Call, default: str, seconds: float) -> dict[str, float]:
    """Microseconds by engine. The first is `default`, or another that was faster in both series."""
    candidates = (engines.BY_NAME.get(name) for name in ("torch", "op", "persistent"))
    runs = {e.name: runner(call, e) for e in candidates if e and _may_run(e, call)}
    times: dict[str, list[float]] = {}
    names = list(runs)
    for _ in range(2):
        series = times_of([runs[name] for name in names], call.input.device, seconds)
        times |= dict(zip(names, series, strict=True))
        ratios = {n: statistics.median(map(truediv, times[default], times[n])) for n in names}
        chosen = max(names, key=ratios.__getitem__)
        if ratios[chosen] < MARGIN:
            chosen = default
            break
        names = [default, chosen]
    names = sorted(times, key=lambda name: name != chosen)
    return {name: 1e6 * statistics.median(times[name]) for name in names}


def _may_run(engine: Engine, call: Call) -> bool:
    """Whether an engine serves a call, and if it is the persistent one, passed its check."""
    if engine.why_not(call):
        return False
    return engine.name != "persistent" or not first_use.why_not_persistent(call.input.device)
