"""Times functions in turn, and makes a function that runs an LSTM call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call import Call
from .engines import Engine

Run = Callable[[], object]

SAMPLE_SECONDS = 1e-2  # roughly; a sample is one call, or several if a call is shorter
LEAST_ROUNDS = 5


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


def times_of(
    runs: Sequence[Run], device: torch.device, seconds: float, shows_progress: bool = False
) -> list[list[float]]:
    """Times functions in turn. Returns for each function a list: seconds per call in each round."""
    seconds_once = [min(seconds_of(run, device) for _ in range(2)) for run in runs]
    counts = [max(1, round(SAMPLE_SECONDS / max(each, 1e-7))) for each in seconds_once]
    times: list[list[float]] = [[] for _ in runs]
    order, start = list(range(len(runs))), time.monotonic()
    while min(map(len, times)) < LEAST_ROUNDS or time.monotonic() - start < seconds:
        for k in order:
            sample = lambda k=k: [runs[k]() for _ in range(counts[k])]
            times[k].append(seconds_of(sample, device) / counts[k])
        order.reverse()
        if shows_progress and sys.stderr.isatty():
            elapsed = time.monotonic() - start
            share = min(1.0, elapsed / (seconds or elapsed))
            print(f"\rcompare: {share:4.0%}", end="\r", file=sys.stderr)
    return times


def runner(call: Call, engine: Engine) -> Run:
    """Returns a function that runs a detached copy of a call, and its backward pass if any."""
    call = call._replace(hx=call.state())
    call = call.mapped(lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))
    needed = [tensor for tensor in call.tensors() if tensor.requires_grad]

    def run() -> object:
        output = engine.run(call)[0]
        if not output.requires_grad:
            return output
        return torch.autograd.grad(output, needed, torch.ones_like(output), allow_unused=True)

    return run
