"""Random plain calls of "auto" against nn.LSTM, before and after fastlstm.tune: which are slower?

    python benchmarks/never_slower.py --cases 30

Prints each case as it comes, and how many are below 0.97 of nn.LSTM's speed. What tune stores goes
to a file that is deleted.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import Case
from timing import CLOCKS, Effort, alternate, settle_malloc
from workload import build, build_module, ragged_lengths, settings

import fastlstm
from fastlstm import _measured

LEAST = 0.97
LARGEST = 2e9  # multiply-adds of a case, so that none takes long


def draw(count: int, seed: int) -> Iterator[Case]:
    """Plain cases of every kind; the same for the same seed."""
    random_ = random.Random(seed)
    while count:

        def size(low: int, high: int) -> int:
            return round(low * (high / low) ** random_.random())

        case = Case(
            batch=size(1, 128),
            steps=size(1, 256),
            input_size=size(8, 1024),
            hidden_size=size(8, 1024),
            mode=random_.choice(("training", "inference")),
            precision=random_.choice(("float32", "float32", "bfloat16")),
            ragged=random_.random() < 0.25,
            num_layers=random_.choice((1, 1, 2)),
            bidirectional=random_.random() < 0.25,
        )
        width = 4 * case.hidden_size * (case.input_size + case.hidden_size)
        work = width * case.batch * case.steps * case.num_layers * (1 + case.bidirectional)
        if work <= LARGEST:
            count -= 1
            yield case


def ratio(case: Case, device: str, seconds: float) -> float:
    """Time of nn.LSTM / time of fastlstm.LSTM, which is printed at once."""
    with settings(case):
        theirs, ours = (build(case, name, device).step for name in ("torch.nn", "auto"))
        found = alternate(theirs, ours, CLOCKS[device], Effort(seconds, min_pairs=5)).ratio
    print(f"  {found:.2f}  {case}", flush=True)
    return found


def tune(case: Case, device: str, seconds: float) -> None:
    x = torch.randn(case.steps, case.batch, case.input_size, device=device).to(case.dtype)
    input: Any = x.requires_grad_(case.mode == "training")
    if case.ragged:
        lengths = ragged_lengths(case.batch, case.steps)
        input = torch.nn.utils.rnn.pack_padded_sequence(input, lengths, enforce_sorted=False)
    with settings(case):
        fastlstm.tune(build_module(case, "auto", device), input, seconds=seconds)


def report(title: str, cases: Sequence[Case], ratios: Sequence[float]) -> None:
    slower = [r for r in ratios if r < LEAST]
    print(f"{title}: {len(slower)} of {len(cases)} below {LEAST}; least {min(ratios):.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=30, help="how many; default: 30")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: 0")
    parser.add_argument("--seconds", type=float, default=1.0, help="for a case; default: 1")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=CLOCKS, default=default, help=f"default: {default}")
    args = parser.parse_args(arguments)
    if args.cases < 1 or args.seconds <= 0:
        parser.error("expected --cases of at least 1 and --seconds above 0")
    cases = list(draw(args.cases, args.seed))
    settle_malloc()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTLSTM_TUNE"] = str(Path(folder, "tuned.json"))
        _measured.tuned.clear()  # before means without any measurement
        report("before tune", cases, [ratio(c, args.device, args.seconds) for c in cases])
        for case in cases:
            tune(case, args.device, args.seconds)
        report("after tune", cases, [ratio(c, args.device, args.seconds) for c in cases])
    print(f"tune chose another engine for {len(_measured.tuned)} kinds of calls")


if __name__ == "__main__":
    main()
