"""Measure how the ratio to torch.nn.LSTM depends on the rows, the hidden size and the steps.

    python benchmarks/grid.py                  # a JSON file in benchmarks/results, in minutes
    python benchmarks/chart.py                 # draws its pictures

A ratio is the time of torch.nn divided by the time of fastlstm, in inference and in training, in
float32, with one thread and with all. The input size is the hidden size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from cases import Case
from machine import command, describe, result_path
from report import write_json
from timing import Effort, Pairs, alternate, wall_clock
from workload import build, check_agreement, settings

MODES = ("inference", "training")
ROWS = (1, 4, 16, 64, 256)
HIDDEN_SIZES = (32, 128, 512, 1024)
STEPS = (1, 4, 16, 64, 256, 1024)
LARGEST = 2e9  # the largest H * H * B * T of a call


def measure(case: Case, effort: Effort) -> Pairs:
    with settings(case):
        theirs, ours = build(case, "torch.nn", "cpu"), build(case, "auto", "cpu")
        check_agreement(case, theirs, ours)
        return alternate(theirs.step, ours.step, wall_clock, effort)


def heat_map_cases() -> list[Case]:
    """Returns the cases of the heat map: of 64 steps, or of fewer if the layer is large."""
    cases = []
    for mode, rows, units in product(MODES, ROWS, HIDDEN_SIZES):
        steps = max(4, min(64, int(LARGEST / (units * units * rows))))
        cases.append(Case(rows, steps, units, units, mode=mode))
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case; default: 0.5")
    parser.add_argument("--output", type=Path, help="default: a new file in benchmarks/results")
    args = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    effort = Effort(args.seconds, min_pairs=5, sample=2e-3)
    record = describe("cpu") | {"command": command("grid", words), "cells": [], "steps": []}
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        torch.set_num_threads(threads)
        by_steps = [Case(8, steps, 128, 128, mode=mode) for mode in MODES for steps in STEPS]
        for key, cases in (("cells", heat_map_cases()), ("steps", by_steps)):
            for case in cases:
                pairs = measure(case, effort)
                sizes = {"rows": case.batch, "hidden_size": case.hidden_size, "steps": case.steps}
                seconds = {"torch": min(pairs.baseline), "fastlstm": min(pairs.candidate)}
                entry = sizes | {"mode": case.mode, "threads": threads, "ratio": pairs.ratio}
                record[key].append(entry | {"seconds": seconds})
                print(f"{pairs.ratio:6.2f}  {threads} threads  {case}", flush=True)
    write_json(args.output or result_path("grid", record), record)


if __name__ == "__main__":
    main()
