"""What a plain call that goes to cuDNN costs beside nn.LSTM, without a GPU: the host's share of it.

    python benchmarks/gpu_overhead.py

The CPU stands for the GPU, and a function that returns at once for torch._VF.lstm.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from timing import Effort, alternate, cpu_clock

import fastlstm
from fastlstm import _build, _route


class _Ready:
    """A function that returns at once; a Mock would take longer than nn.LSTM."""

    def __init__(self, results: Any) -> None:
        self.results = results

    def __call__(self, *arguments: Any) -> Any:
        return self.results


def microseconds(steps: int, training: bool, effort: Effort) -> tuple[float, float, float]:
    """Of a call of nn.LSTM, of fastlstm.LSTM, and the median difference of a pair."""
    theirs, ours = torch.nn.LSTM(64, 512), fastlstm.LSTM(64, 512)
    x = torch.randn(steps, 1, 64)
    ready: Any = tuple(t.detach() for t in (lambda y, s: (y, *s))(*theirs(x)))
    h100 = mock.patch.object(_build, "gpu", return_value=(132, 90, 1.75, ""))
    gpu = mock.patch.object(_route, "_GPU", "cpu")
    lstm = mock.patch.object(torch._VF, "lstm", new=_Ready(ready))
    with h100, gpu, lstm, torch.set_grad_enabled(training):
        assert ours(x)[0] is ready[0], "expected a call that is left to cuDNN"
        pairs = alternate(lambda: theirs(x), lambda: ours(x), cpu_clock, effort)
    more = (b - a for a, b in zip(pairs.baseline, pairs.candidate, strict=True))
    medians = map(statistics.median, (pairs.baseline, pairs.candidate, more))
    nn_us, our_us, more_us = (1e6 * seconds for seconds in medians)
    return nn_us, our_us, more_us


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for a case; default: 2")
    args = parser.parse_args(arguments)
    for training in (False, True):
        for steps in (1, 4):
            nn_us, our_us, more_us = microseconds(steps, training, Effort(args.seconds))
            mode = "training" if training else "inference"
            print(f"T {steps}, {mode}: nn.LSTM {nn_us:.1f} us, ours {our_us:.1f}, {more_us:+.1f}")


if __name__ == "__main__":
    main()
