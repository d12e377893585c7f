"""`tune` measures on the user's machine which engine is the fastest for the calls of a model."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from . import _build, _choice, _measured, functional
from ._call import LstmCall
from ._choice import Stack
from .convert import check_model

MARGIN = 1.03  # how many times as fast another engine must be to be chosen
LEAST_ROUNDS, MOST_ROUNDS = 3, 1000
_HEADER = f"{'fastlstm, us':>14}{'torch, us':>12}{'chosen, us':>12}  {'chosen':<12}  call"
_NOTHING = "tune: there are no kernels for the device, so PyTorch's own LSTM runs anyway"

Run = Callable[[], object]


class Measurement(NamedTuple):
    """What `tune` found for one kind of call.

    Attributes:
        call: what it is; calls of the same name are alike.
        chosen: "auto" (on a GPU the stepwise engine), "torch" (PyTorch's own LSTM) or on a GPU
            "persistent".
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
    model: nn.Module,
    *example: Any,
    seconds: float = 1.0,
    quiet: bool = False,
) -> list[Measurement]:
    """Measures which engine is the fastest for the LSTM calls of a model, and remembers it.

    The model runs once, in its mode and under the gradient mode of the caller. For each kind of
    plain call of a `fastlstm.LSTM` with engine "auto", fastlstm's engine and PyTorch's own take
    turns, without dropout. Where one that "auto" would not have chosen is at least 3 % faster,
    twice in a row, that is stored for this machine, these threads and these versions, and "auto"
    follows it, here and in every later process. Batch sizes and numbers of steps up to the same
    power of two count as alike.

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
    calls = _plain_calls(model, example)
    found = []
    if not quiet:
        print(_HEADER if calls else _NOTHING)
    for run, stack, device in calls:
        default = _choice.unmeasured(device).engine
        found.append(_measure(run, stack, device, default, seconds))
        _remember(_measured.machine(device), found[-1], default)
        if not quiet:
            print(_row(found[-1]), flush=True)
    return found


def _plain_calls(model: nn.Module, example: Sequence[Any]) -> list[tuple[Run, Stack, torch.device]]:
    """Runs the model once; its calls that have a choice, one of each kind."""
    calls = _choice.noted = {}
    try:
        with _measured.force("auto"):  # so that every such call asks _choice.of
            model(*example)
    finally:
        _choice.noted = None
    if not calls and any(_build.has_kernels(p.device.type) for p in model.parameters()):
        raise ValueError(
            "tune: expected a model that makes a plain call of a fastlstm.LSTM "
            "(fastlstm.convert makes them of each nn.LSTM)"
        )
    return [(_runner(call, stack), stack, call.input.device) for call, stack in calls.values()]


def _candidates(run: Run, stack: Stack, device: torch.device) -> list[str]:
    """The engines that run a call; a GPU may refuse to launch the persistent one."""
    engines = ["auto", "torch"]
    if device.type == "cuda" and _choice.fits(stack, _choice.this_gpu(device.index)):
        try:
            with _measured.force("persistent"):
                run()
            engines.append("persistent")
        except RuntimeError as error:
            warnings.warn(f"tune leaves out an engine: {error}", RuntimeWarning, stacklevel=4)
    return engines


def _measure(
    run: Run, stack: Stack, device: torch.device, default: str, seconds: float
) -> Measurement:
    """Times the candidates, then the best of them once more against the default alone."""
    times = _alternate(run, device, _candidates(run, stack, device), seconds)
    others = [engine for engine in times if engine != default]
    best = max(others, key=lambda engine: _ratio(times, default, engine))
    if _ratio(times, default, best) >= MARGIN:
        times |= _alternate(run, device, [default, best], seconds)
    chosen = best if _ratio(times, default, best) >= MARGIN else default
    microseconds = {n: round(1e6 * statistics.median(each), 1) for n, each in times.items()}
    return Measurement(stack.key(), chosen, microseconds)


def _ratio(times: dict[str, list[float]], default: str, engine: str) -> float:
    """How many times as fast as the default an engine is."""
    return statistics.median(a / b for a, b in zip(times[default], times[engine], strict=True))


def _alternate(
    run: Run, device: torch.device, engines: list[str], seconds: float
) -> dict[str, list[float]]:
    """Seconds of calls by each engine in turn, in one order and in the other."""
    times: dict[str, list[float]] = {engine: [] for engine in engines}

    def sample(engine: str) -> float:
        with _measured.force(engine):
            return seconds_of(run, device)

    for engine in times:
        sample(engine)  # memory, plans and caches
    start = time.monotonic()
    for rounds in range(MOST_ROUNDS):
        if rounds >= LEAST_ROUNDS and time.monotonic() - start >= seconds:
            break
        for engine in sorted(times, reverse=rounds % 2 == 1):
            times[engine].append(sample(engine))
    return times


def _runner(call: LstmCall, stack: Stack) -> Run:
    """The call without its graph, in training with its gradients."""
    given = (call.input, call.h_0, call.c_0, *call.weights)
    tensors = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in given]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    input, h_0, c_0, *weights = tensors
    layout, batch_sizes = call.layout, call.batch_sizes  # not the call, which holds the graph

    def run() -> object:
        output, _ = functional.lstm(
            input,
            (h_0, c_0),
            weights,
            layout=layout,
            num_layers=stack.num_layers,
            bidirectional=stack.directions == 2,
            batch_sizes=batch_sizes,
        )
        if not stack.training:
            return output
        return torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    return run


def _remember(machine: str, measured: Measurement, default: str) -> None:
    """Keeps what was measured to be faster than the default, which stands beside it."""
    entry = {"engine": measured.chosen, "microseconds": measured.microseconds}
    entries = {measured.call: entry if measured.chosen != default else None}
    if not torch.are_deterministic_algorithms_enabled():
        _measured.update(machine, entries)
    try:
        _measured.store(machine, entries)
    except OSError as error:
        problem = f"tune: the file of FASTLSTM_TUNE cannot be written ({error})"
        text = f"{problem}; only this process follows what was measured"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _row(measured: Measurement) -> str:
    call, chosen, us = measured
    name = "fastlstm" if chosen == "auto" else chosen
    return f"{us['auto']:>14.1f}{us['torch']:>12.1f}{us[chosen]:>12.1f}  {name:<12}  {call}"
