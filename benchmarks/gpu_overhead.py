"""What a plain call that goes to cuDNN costs beside nn.LSTM, without a GPU: the host's share of it.

    python benchmarks/gpu_overhead.py

The CPU stands for the GPU, and a function that returns at once for torch._VF.lstm and lstm_cell.
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


def microseconds(name: str, steps: int, training: bool, effort: Effort) -> tuple[float, ...]:
    """Of a call of torch.nn's module, of ours of that name, and the median difference of a pair."""
    theirs, ours = getattr(torch.nn, name)(64, 512), getattr(fastlstm, name)(64, 512)
    is_cell = name == "LSTMCell"
    x = torch.randn(1, 64) if is_cell else torch.randn(steps, 1, 64)
    state = torch.zeros(1, 512), torch.zeros(1, 512)
    hx = (state,) if is_cell else ()
    ready: Any = state if is_cell else (torch.zeros(steps, 1, 512), *(h[None] for h in state))
    h100 = mock.patch.object(_build, "gpu", return_value=(132, 90, 1.75, ""))
    gpu = mock.patch.object(_route, "_GPU", "cpu")
    lstm = mock.patch.object(torch._VF, "lstm_cell" if is_cell else "lstm", new=_Ready(ready))
    with h100, gpu, lstm, torch.set_grad_enabled(training):
        assert ours(x, *hx)[0] is ready[0], "expected a call that is left to PyTorch"
        pairs = alternate(lambda: theirs(x, *hx), lambda: ours(x, *hx), cpu_clock, effort)
    more = (b - a for a, b in zip(pairs.baseline, pairs.candidate, strict=True))
    medians = map(statistics.median, (pairs.baseline, pairs.candidate, more))
    nn_us, our_us, more_us = (1e6 * seconds for seconds in medians)
    return nn_us, our_us, more_us


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for a case; default: 2")
    args = parser.parse_args(arguments)
    for training in (False, True):
        for name, steps in (("LSTM", 1), ("LSTM", 4), ("LSTMCell", 1)):
            nn_us, our_us, more_us = microseconds(name, steps, training, Effort(args.seconds))
            case = f"{name}, T {steps}, {'training' if training else 'inference'}"
            print(f"{case}: torch.nn {nn_us:.1f} us, ours {our_us:.1f}, {more_us:+.1f}")


if __name__ == "__main__":
    main()
