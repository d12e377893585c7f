"""Time two callables in alternation, so that what disturbs the machine disturbs both."""

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


def settle_malloc() -> None:
    """Brings malloc into the state of a process that has worked for a while.

    glibc maps every large block anew, at the price of its page faults, until a larger one has been
    freed, up to 32 MiB. Without this a case would depend on the cases before it, and nn.LSTM, which
    takes large blocks, would lose up to a fifth of its speed at some shapes.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def cpu_clock(step: Step, calls: int) -> float:
    if own := getattr(step, "seconds", None):  # in another process
        return float(own(calls))
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


class Rested:
    """A step after a rest, in which another process worked: the first calls do not count."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self) -> object:
        return self.step()

    def seconds(self, calls: int) -> float:
        cpu_clock(self.step, calls)
        return cpu_clock(self.step, calls)


def cuda_clock(step: Step, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


CLOCKS: dict[str, Clock] = {"cpu": cpu_clock, "cuda": cuda_clock}


@dataclass(frozen=True)
class Effort:
    """How long to measure: samples of at least `sample` seconds, in pairs, for `seconds`.

    A case that is too slow for `min_pairs` within three times `seconds` stops there, at 3 pairs or
    more.
    """

    seconds: float
    min_pairs: int = 9
    max_pairs: int = 200
    sample: float = 1e-3


@dataclass
class Pairs:
    """Seconds per call of both, sample by sample, in the order in which they were taken."""

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
    """Runs a few calls; returns how many calls make a sample of at least `sample` seconds."""
    step()
    duration = clock(step, 1)
    if duration < sample:
        duration = min(duration, clock(step, 2), clock(step, 4))
    return max(1, math.ceil(sample / duration))


def alternate(baseline: Step, candidate: Step, clock: Clock, effort: Effort) -> Pairs:
    """Takes pairs of samples; which is first changes from pair to pair."""
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
            if done >= 3 and elapsed >= 3 * effort.seconds:
                break
            for step in (baseline, candidate) if done % 2 else (candidate, baseline):
                samples[step].append(clock(step, calls[step]))
    finally:
        if collecting:
            gc.enable()
    return pairs


def median_time(step: Step, clock: Clock, effort: Effort) -> float:
    """The median seconds per call of one callable, from at least 3 samples."""
    calls = warm_up(step, clock, effort.sample)
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < 3 or (
        len(samples) < effort.max_pairs and time.perf_counter() - start < effort.seconds
    ):
        samples.append(clock(step, calls))
    return statistics.median(samples)
