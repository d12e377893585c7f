"""Times two functions alternately, so that other load on the machine slows both equally."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Step = Callable[[], object]
Clock = Callable[[Step, int], float]  # (step, calls) -> seconds per call


def wall_clock(step: Step, calls: int) -> float:
    """Calls `step` and returns the seconds per call, by the wall clock.

    If `step` has a method `seconds`, that method measures; see `WarmedUp` and `peers.Onnxruntime`.
    """
    if measure := getattr(step, "seconds", None):
        return float(measure(calls))
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def cpu_time_clock(step: Step, calls: int) -> float:
    """Calls `step` and returns the CPU time per call, which depends less on other processes.

    It is for one thread: threads that wait for each other take CPU time as well.
    """
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls


class WarmedUp:
    """Wraps a step so that every measurement first makes the calls once without timing them.

    The first calls fill the caches, which a peer in another process has used in the meantime.
    """

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self) -> object:
        return self.step()

    def seconds(self, calls: int) -> float:
        wall_clock(self.step, calls)
        return wall_clock(self.step, calls)


def cuda_clock(step: Step, calls: int) -> float:
    """Calls `step` and returns the seconds per call, measured with events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


CLOCKS: dict[str, Clock] = {"cpu": wall_clock, "cuda": cuda_clock}


# One call of torch.nn may take minutes: backward of long packed input with a projection.
LONG_SECONDS = 10.0


@dataclass(frozen=True)
class Effort:
    """How long a case is measured.

    Attributes:
        seconds: the time for all pairs of samples.
        min_pairs: at least this many pairs are taken. A case that is too slow for them stops after
            three times `seconds`, with 3 pairs or more, or 1 pair if that takes `LONG_SECONDS`.
        max_pairs: at most this many pairs are taken.
        sample: the shortest time of one sample, in seconds.
    """

    seconds: float
    min_pairs: int = 9
    max_pairs: int = 200
    sample: float = 1e-3


@dataclass
class Pairs:
    """Pairs of samples: the seconds per call of the baseline and of the candidate, in order."""

    baseline: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [b / c for b, c in zip(self.baseline, self.candidate, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairwise ratios baseline / candidate."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the pairwise ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third


def warm_up(step: Step, clock: Clock, sample: float) -> int:
    """Runs a few calls and returns how many calls take at least `sample` seconds."""
    duration = clock(step, 1)
    if duration < LONG_SECONDS:
        duration = clock(step, 1)
    if duration < sample:
        duration = min(duration, clock(step, 2), clock(step, 4))
    return max(1, math.ceil(sample / duration))


def alternate(baseline: Step, candidate: Step, clock: Clock, effort: Effort) -> Pairs:
    """Measures pairs of samples. In every second pair the baseline is measured first."""
    calls = {step: warm_up(step, clock, effort.sample) for step in (baseline, candidate)}
    pairs = Pairs()
    samples = {baseline: pairs.baseline, candidate: pairs.candidate}
    collecting = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        while (done := len(pairs.baseline)) < effort.max_pairs:
            elapsed = time.perf_counter() - start
            if done >= effort.min_pairs and elapsed >= effort.seconds:
                break
            few = 1 if elapsed >= LONG_SECONDS else 3
            if done >= few and elapsed >= 3 * effort.seconds:
                break
            for step in (baseline, candidate) if done % 2 else (candidate, baseline):
                samples[step].append(clock(step, calls[step]))
    finally:
        if collecting:
            gc.enable()
    return pairs


def median_time(step: Step, clock: Clock, effort: Effort) -> float:
    """Returns the median seconds per call of one function, over at least 3 samples."""
    calls = warm_up(step, clock, effort.sample)
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < 3 or (
        len(samples) < effort.max_pairs and time.perf_counter() - start < effort.seconds
    ):
        samples.append(clock(step, calls))
    return statistics.median(samples)
