"""`tune` measures on the user's machine which engine is the fastest for the calls of a model."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _build, _choice, _measured, functional
from ._choice import Choice, Stack
from .convert import check_model
from .modules import _OPTIONS, LSTM

MARGIN = 1.03  # how many times as fast another engine must be to be chosen
LEAST_ROUNDS, MOST_ROUNDS = 3, 1000

Run = Callable[[], object]
Clock = Callable[[Run, torch.device], float]  # seconds of one call


class Measurement(NamedTuple):
    """What `tune` found for one kind of call.

    Attributes:
        call: what it is; calls of the same name are alike.
        chosen: "auto" (an engine of fastlstm), "torch" (PyTorch's own LSTM), or on a CPU
            "tiled:UNIT_GROUPSxROW_GROUPSxDIRECTIONS", a division of each step among threads.
        microseconds: median time of a call by each of them; with its gradients in training.
    """

    call: str
    chosen: str
    microseconds: dict[str, float]


class _Call(NamedTuple):
    module: LSTM
    input: Any
    hx: Any
    stack: Stack
    device: torch.device


def seconds_of(run: Run, device: torch.device) -> float:
    """Seconds of one call: by events on a GPU, by the clock elsewhere."""
    if device.type == "cuda":
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def tune(
    model: nn.Module,
    *example: Any,
    seconds: float = 1.0,
    quiet: bool = False,
    clock: Clock = seconds_of,
) -> list[Measurement]:
    """Measures which engine is the fastest for the LSTM calls of a model, and remembers it.

    The model runs once, in its mode and under the gradient mode of the caller. For each kind of
    plain call of a `fastlstm.LSTM` with engine "auto", fastlstm's engine and PyTorch's own take
    turns, and on a CPU the ways to divide a step among the threads. Where one that "auto" would not
    have chosen is at least 3 % faster, twice in a row, that is stored for this machine, these
    threads and these versions, and "auto" follows it, here and in every later process. Batch sizes
    and numbers of steps up to the same power of two count as alike.

    Under `torch.use_deterministic_algorithms(True)` only later processes follow it, so that no run
    depends on its own measurement.

    Args:
        model: any module with a `fastlstm.LSTM`.
        example: the arguments of a call of it.
        seconds: how long each kind of call is measured.
        quiet: whether to print nothing; else there is progress on stderr and a table on stdout.
        clock: times a call of a function on a device, in seconds.

    Returns:
        What was measured; empty where there is no choice, as without kernels for the device.

    Raises:
        TypeError: `model` is no module.
        ValueError: no plain call of a `fastlstm.LSTM` was made.
        RuntimeError: torch.distributed is initialised: every process reads what one has measured
            before.

    Warns:
        RuntimeWarning: the file cannot be written; then only this process follows it.
    """
    check_model(model)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RuntimeError("tune: expected to run before torch.distributed is initialised")
    calls = _note_calls(model, example)
    found: dict[str, list[tuple[Measurement, str]]] = {}
    for number, call in enumerate(calls):
        if not quiet:
            _show_progress(number, len(calls))
        if _build.has_kernels(call.device.type):
            name = _measured.machine(call.device)
            default = _default(call).engine
            measured = _measure(call, default, seconds, clock)
            found.setdefault(name, []).append((measured, default))
    if not quiet:
        _show_progress(len(calls), len(calls))
    for name, measurements in found.items():
        _remember(name, measurements)
    every = [measured for measurements in found.values() for measured, _ in measurements]
    if not quiet:
        print(_table(every))
    return every


def _note_calls(model: nn.Module, example: Sequence[Any]) -> list[_Call]:
    """Runs the model once; its plain calls, one of each kind."""
    calls: dict[tuple[str, str], _Call] = {}

    def note(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = dict(zip(("input", "hx"), args, strict=False)) | options
        input, hx = given.pop("input"), given.pop("hx", None)
        others = any(value is not None and value is not False for value in given.values())
        acts = module.training and any(getattr(module, name) for name in _OPTIONS)
        by_name = (module.engine, functional._DEFAULT_ENGINE) != ("auto", "auto")
        if others or acts or module.recompute or by_name:
            return
        data = input.data if isinstance(input, PackedSequence) else input
        stack = _stack(module, input, hx)
        call = _Call(module, _detached(input), _detached(hx), stack, data.device)
        calls.setdefault((str(data.device), stack.key()), call)

    lstms = [m for m in model.modules() if type(m) is LSTM]
    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in lstms]
    try:
        model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ValueError("tune: expected a model that makes a plain call of a fastlstm.LSTM")
    return list(calls.values())


def _stack(module: LSTM, input: Any, hx: Any) -> Stack:
    data = input
    if isinstance(input, PackedSequence):
        data, steps, batch = input.data, len(input.batch_sizes), int(input.batch_sizes[0])
    elif input.dim() == 2:
        steps, batch = len(input), 1
    else:
        batch, steps = input.shape[:2] if module.batch_first else input.shape[1::-1]
    tensors = (data, *(hx or ()), *module.parameters())
    return Stack(
        dtype=str(data.dtype).removeprefix("torch."),
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        batch=batch,
        steps=steps,
        proj_size=module.proj_size,
        num_layers=module.num_layers,
        directions=1 + module.bidirectional,
        bias=module.bias,
        packed=isinstance(input, PackedSequence),
        training=torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
    )


def _detached(value: Any) -> Any:
    """The same values without their graph; they require a gradient if they did."""
    if isinstance(value, PackedSequence):
        return value._replace(data=_detached(value.data))
    if isinstance(value, (tuple, list)):
        return tuple(map(_detached, value))
    is_tensor = isinstance(value, Tensor)
    return value.detach().requires_grad_(value.requires_grad) if is_tensor else value


def _default(call: _Call) -> Choice:
    """What "auto" would choose without measurements."""
    if call.device.type == "cuda":
        return _choice.on_gpu(call.stack, _choice.this_gpu(call.device.index))
    return _choice.on_cpu(call.stack)


def _candidates(call: _Call) -> list[str]:
    """The op ("auto"), "torch", and on a CPU the divisions of a step among its threads."""
    threads = torch.get_num_threads()
    if call.device.type != "cpu" or threads == 1:
        return list(_measured.ENGINES)
    grids = {(1, 1, 1)}
    for directions in range(1, call.stack.directions + 1):
        each = threads // directions
        unit_groups = [1 << k for k in range(each.bit_length())]
        grids |= {(units, each // units, directions) for units in unit_groups}
    return [*_measured.ENGINES, *("tiled:{}x{}x{}".format(*grid) for grid in sorted(grids))]


def _measure(call: _Call, default: str, seconds: float, clock: Clock) -> Measurement:
    """Times the candidates, then the best of them once more against the default alone."""
    times = _alternate(call, _candidates(call), seconds, clock)
    others = [engine for engine in times if engine != default]
    best = max(others, key=lambda engine: _ratio(times, default, engine))
    if _ratio(times, default, best) >= MARGIN:
        times |= _alternate(call, [default, best], seconds, clock)
    chosen = best if _ratio(times, default, best) >= MARGIN else default
    microseconds = {n: round(1e6 * statistics.median(each), 1) for n, each in times.items()}
    return Measurement(call.stack.key(), chosen, microseconds)


def _ratio(times: dict[str, list[float]], default: str, engine: str) -> float:
    """How many times as fast as the default an engine is."""
    return statistics.median(a / b for a, b in zip(times[default], times[engine], strict=True))


def _alternate(
    call: _Call, engines: list[str], seconds: float, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of calls by each engine in turn, in one order and in the other."""
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    run = _runner(call)

    def sample(engine: str) -> float:
        with _measured.force(engine):
            return clock(run, call.device)

    for engine in times:
        sample(engine)  # memory, plans and caches
    start = time.monotonic()
    for rounds in range(MOST_ROUNDS):
        if rounds >= LEAST_ROUNDS and time.monotonic() - start >= seconds:
            break
        for engine in sorted(times, reverse=rounds % 2 == 1):
            times[engine].append(sample(engine))
    return times


def _runner(call: _Call) -> Run:
    """The call, in training with its gradients."""
    module, input, hx, stack, _ = call
    data = input.data if isinstance(input, PackedSequence) else input
    leaves = [t for t in (data, *(hx or ()), *module.parameters()) if t.requires_grad]

    def run() -> object:
        output = module(input, hx)[0]
        if not stack.training:
            return output
        output = output.data if isinstance(output, PackedSequence) else output
        return torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    return run


def _remember(machine: str, found: list[tuple[Measurement, str]]) -> None:
    """Keeps what was measured to be faster than the default, which stands beside it."""
    entries = {
        measured.call: {"engine": measured.chosen, "microseconds": measured.microseconds}
        if measured.chosen != default
        else None
        for measured, default in found
    }
    if not torch.are_deterministic_algorithms_enabled():
        _measured.update({machine: entries})
    try:
        _measured.store(machine, entries)
    except OSError as error:
        warnings.warn(
            f"tune: {_measured.path()} cannot be written ({error}); only this process follows what "
            "was measured",
            RuntimeWarning,
            stacklevel=3,
        )


def _show_progress(done: int, total: int) -> None:
    """A bar that is drawn again in its line; one line at the end where stderr is no terminal."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // total)
        end = "\n" if done == total else ""
        print(f"\rtune [{bar:<30}] {done}/{total} kinds of calls", end=end, file=sys.stderr)
    elif done == total:
        print(f"tune: measured {total} kinds of calls", file=sys.stderr)


def _table(measurements: Sequence[Measurement]) -> str:
    if not measurements:
        return "tune: there are no kernels for the device, so PyTorch's own LSTM runs anyway"
    lines = [f"{'fastlstm, us':>14}{'torch, us':>12}{'chosen, us':>12}  {'chosen':<12}  call"]
    for call, chosen, us in measurements:
        name = "fastlstm" if chosen == "auto" else chosen
        times = f"{us['auto']:>14.1f}{us['torch']:>12.1f}{us[chosen]:>12.1f}"
        lines.append(f"{times}  {name:<12}  {call}")
    return "\n".join(lines)
