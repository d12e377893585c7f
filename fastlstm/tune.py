"""`tune` measures on the user's machine which engine is the fastest for the calls of a model."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from . import _measured, engines
from ._call import Call
from .convert import check_model
from .engines import Engine

MARGIN = 1.03  # how many times as fast another engine must be to be chosen
LEAST_ROUNDS, MOST_ROUNDS = 3, 1000
_NOTHING = "tune: there are no kernels for the device, so PyTorch's own LSTM runs anyway"

Run = Callable[[], object]


class Measurement(NamedTuple):
    """What `tune` found for one kind of call.

    Attributes:
        call: what it is; calls of the same name are alike.
        chosen: the engine: "op" (ours, as the device's planner chooses it), "torch" (PyTorch's own
            LSTM) or, on a GPU, one of ours by name.
        microseconds: median time of a call by each of them; with its gradients in training.
    """

    call: str
    chosen: str
    microseconds: dict[str, float]


def seconds_of(run: Run, device: torch.device) -> float:
    """Seconds of one call: by events on a GPU, by the clock elsewhere."""
    if device.type == "cuda":
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def tune(
    model: nn.Module, *example: Any, seconds: float = 1.0, quiet: bool = False
) -> list[Measurement]:
    """Measures which engine is the fastest for the LSTM calls of a model, and remembers it.

    The model runs once, in its mode and under the gradient mode of the caller. For each kind of
    plain call of a `fastlstm.LSTM` with engine "auto" the engines that can serve it take turns,
    without dropout. Where one that "auto" would not have chosen is at least 3 % faster, twice in a
    row, that is stored for this machine, these threads and these versions, and "auto" follows it,
    here and in every later process. Batch sizes and numbers of steps up to the same power of two
    count as alike.

    Under `torch.use_deterministic_algorithms(True)` only later processes follow it, so that no run
    depends on its own measurement.

    Args:
        model: any module with a `fastlstm.LSTM`.
        example: the arguments of a call of it.
        seconds: how long each kind of call is measured.
        quiet: whether to print nothing; else a table, a row as soon as it is measured.

    Returns:
        What was measured; empty where there is no choice, as without kernels for the device.

    Raises:
        TypeError: `model` is no module.
        ValueError: no plain call of a `fastlstm.LSTM` was made.
        RuntimeError: torch.distributed is initialized: every process reads what one has measured
            before.

    Warns:
        RuntimeWarning: the file cannot be written; then only this process follows it.
    """
    check_model(model)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RuntimeError("tune: expected to run before torch.distributed is initialized")
    with _measured.note() as calls:
        model(*example)
    if not calls:
        raise ValueError(
            "tune: expected a model that makes a plain call of a fastlstm.LSTM (fastlstm.convert "
            "makes them of each nn.LSTM; an LSTMCell has no choice)"
        )
    found: list[Measurement] = []
    for kind, call in calls.items():
        candidates = [row for row in engines.candidates(call) if _runs(call, row)]
        if len(candidates) == 1:
            continue
        if not quiet and not found:
            print("".join(f"{row.name + ', us':>14}" for row in candidates), " chosen      call")
        default = engines.unmeasured(call)
        found.append(_measure(kind, call, candidates, default, seconds))
        _remember(_measured.machine(call.input.device), found[-1], default)
        if not quiet:
            print(_row(found[-1]), flush=True)
    if not quiet and not found:
        print(_NOTHING)
    return found


def _runs(call: Call, row: Engine) -> bool:
    """Whether an engine serves a call; a GPU may refuse to launch the persistent one."""
    if row.name != "persistent" or row.why_not(call) is not None:
        return row.why_not(call) is None
    try:
        _runner(call, row)()
    except RuntimeError as error:
        warnings.warn(f"tune leaves out {row.name!r}: {error}", RuntimeWarning, stacklevel=3)
        return False
    return True


def _measure(
    kind: str, call: Call, candidates: Sequence[Engine], default: Engine, seconds: float
) -> Measurement:
    """Times the candidates, then the best of them once more against the default alone."""
    device = call.input.device
    runs = {row.name: _runner(call, row) for row in candidates}
    times = _alternate(runs, device, seconds)
    others = [name for name in runs if name != default.name]
    best = max(others, key=lambda name: _ratio(times, default.name, name))
    if _ratio(times, default.name, best) >= MARGIN:
        times |= _alternate({name: runs[name] for name in (default.name, best)}, device, seconds)
    chosen = best if _ratio(times, default.name, best) >= MARGIN else default.name
    microseconds = {n: round(1e6 * statistics.median(each), 1) for n, each in times.items()}
    return Measurement(kind, chosen, microseconds)


def _ratio(times: dict[str, list[float]], default: str, engine: str) -> float:
    """How many times as fast as the default an engine is."""
    return statistics.median(a / b for a, b in zip(times[default], times[engine], strict=True))


def _alternate(
    runs: dict[str, Run], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Seconds of calls by each engine in turn, in one order and in the other."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        seconds_of(run, device)  # memory, plans and caches
    start = time.monotonic()
    for rounds in range(MOST_ROUNDS):
        if rounds >= LEAST_ROUNDS and time.monotonic() - start >= seconds:
            break
        for name in sorted(times, reverse=rounds % 2 == 1):
            times[name].append(seconds_of(runs[name], device))
    return times


def _runner(call: Call, row: Engine) -> Run:
    """The call without its graph, in training with its gradients."""
    given = (call.input, *call.state(), *call.weights)
    tensors = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in given]
    needed = [tensor for tensor in tensors if tensor.requires_grad]
    own = call._replace(
        input=tensors[0], hx=(tensors[1], tensors[2]), weights=tensors[3:], dropout=0.0
    )

    def run() -> object:
        output, *_ = row.run(own)
        if not output.requires_grad:
            return output
        return torch.autograd.grad(output, needed, torch.ones_like(output), allow_unused=True)

    return run


def _remember(machine: str, found: Measurement, default: Engine) -> None:
    """Stores an engine that is not the default, or that there is none."""
    entry = {"engine": found.chosen, "microseconds": found.microseconds}
    entries = {found.call: None if found.chosen == default.name else entry}
    if not torch.are_deterministic_algorithms_enabled():
        _measured.update(machine, entries)
    try:
        _measured.store(machine, entries)
    except OSError as error:
        problem = f"tune: the file of FASTLSTM_TUNE cannot be written ({error})"
        text = f"{problem}; only this process follows what was measured"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _row(measured: Measurement) -> str:
    times = "".join(f"{us:>14.1f}" for us in measured.microseconds.values())
    return f"{times}  {measured.chosen:<12}{measured.call}"
