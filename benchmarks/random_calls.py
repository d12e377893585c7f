"""Compare random calls of fastlstm and of torch.nn, to find calls that are slower in fastlstm.

    python benchmarks/random_calls.py --count 400 --seed 1 --threads 2
    python benchmarks/random_calls.py --count 400 --seed 1 --isa avx2

The sizes of a call are drawn log-uniformly. A ratio is the time of torch.nn divided by the time of
fastlstm. A call with a ratio below 1.0 is measured again with three times as many pairs, and then
the second ratio counts. `--isa` limits fastlstm and torch.nn to an instruction set. With one thread
CPU time is measured, so other programs may run at the same time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from cases import Case
from machine import describe, line
from timing import Effort, alternate, cpu_time_clock, wall_clock
from workload import build, check_agreement, settings

# For each instruction set, the values of `VARIABLES`, which PyTorch, oneDNN and MKL read.
ISAS = {"avx2": ("avx2", "AVX2", "AVX2"), "avx512": ("avx512", "AVX512_CORE", "AVX512")}
VARIABLES = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"
SLOW = 0.97  # calls with a smaller ratio are counted as slow
LARGEST = 4e10  # the most multiply-adds of a forward pass, so that no call takes long


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--count", type=int, default=400, help="number of calls; default: 400")
    add("--seed", type=int, default=1, help="seed of the calls; default: 1")
    add("--threads", type=int, help="number of CPU threads; default: torch's")
    add("--isa", choices=ISAS, help="the newest instruction set to use")
    add("--pairs", type=int, default=7, help="pairs of samples, at first; default: 7")
    args = parser.parse_args(arguments)
    for name in ("count", "threads", "pairs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name}: expected 1 or more, got {getattr(args, name)}")
    return args


def draw(count: int, seed: int) -> Iterator[Case]:
    """Yields `count` random cases. The n-th case depends only on the seed, not on `count`."""
    random_ = random.Random(seed)

    def size(low: int, high: int) -> int:
        return round(low * (high / low) ** random_.random())

    while count:
        sizes: dict[str, Any] = {
            "batch": size(1, 256),
            "input_size": size(1, 1024),
            "hidden_size": size(8, 1536),
            "mode": random_.choice(("inference", "training")),
            "precision": random_.choice(("float32",) * 6 + ("bfloat16", "float64")),
        }
        if random_.random() < 0.25:
            # One step in inference. In training a loop over steps, as models train an LSTMCell.
            steps = 1 if sizes["mode"] == "inference" else 8
            case = Case(steps=steps, module="LSTMCell", **sizes)
        else:
            form = random_.choice(("dense", "dense", "ragged", "lengths"))
            case = Case(
                steps=size(1, 400),
                num_layers=random_.choice((1, 1, 1, 2, 3)),
                bidirectional=random_.random() < 0.3,
                proj_size=size(1, sizes["hidden_size"] - 1) if random_.random() < 0.15 else 0,
                ragged=form == "ragged",
                lengths=form == "lengths",
                **sizes,
            )
        if multiply_adds(case) <= LARGEST:
            count -= 1
            yield case


def multiply_adds(case: Case) -> int:
    """Returns the multiply-adds of a forward pass in which all rows have all steps."""
    directions, inputs, work = 1 + case.bidirectional, case.input_size, 0
    for _ in range(case.num_layers):
        gates = 4 * case.hidden_size * (inputs + case.output_size)
        work += directions * (gates + case.hidden_size * case.proj_size)
        inputs = directions * case.output_size
    return work * case.batch * case.steps


def group(case: Case) -> str:
    """Returns the name of the group in which a call is reported."""
    form = "packed" if case.ragged else "lengths" if case.lengths else "dense"
    return f"{'cells' if case.module == 'LSTMCell' else form}, {case.mode}"


def measure(case: Case, pairs: int) -> float:
    """Returns the time of torch.nn divided by the time of fastlstm, over `pairs` of samples.

    A ratio below 1 is measured again with three times as many pairs.
    """
    clock = cpu_time_clock if torch.get_num_threads() == 1 else wall_clock
    with settings(case):
        theirs, ours = build(case, "torch.nn", "cpu"), build(case, "auto", "cpu")
        check_agreement(case, theirs, ours)
        effort = Effort(0.1, min_pairs=pairs, sample=5e-3)
        ratio = alternate(theirs.step, ours.step, clock, effort).ratio
        if ratio < 1:
            longer = Effort(60.0, min_pairs=3 * pairs, max_pairs=3 * pairs, sample=5e-3)
            ratio = alternate(theirs.step, ours.step, clock, longer).ratio
    return ratio


def report(ratio_of: dict[Case, float]) -> None:
    """Prints the geometric mean and the worst ratio of each group, and the ten worst calls."""
    groups: dict[str, list[float]] = {}
    for case, ratio in ratio_of.items():
        groups.setdefault(group(case), []).append(ratio)
    print(f"\n{'torch.nn / fastlstm':24} calls   mean  worst")
    for name, ratios in [*sorted(groups.items()), ("all", list(ratio_of.values()))]:
        mean = statistics.geometric_mean(ratios)
        print(f"{name:24} {len(ratios):5}  {mean:5.2f}  {min(ratios):5.2f}")
    below = sum(ratio < SLOW for ratio in ratio_of.values())
    print(f"\n{below} of {len(ratio_of)} calls are below {SLOW}. The slowest:")
    for case, ratio in sorted(ratio_of.items(), key=lambda item: item[1])[:10]:
        print(f"{ratio:6.2f}  {case}")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    limits = dict(zip(VARIABLES, ISAS.get(args.isa, ()), strict=False))
    # torch reads the variables only when it is imported, so this process is replaced.
    if limits.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | limits)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(line(describe("cpu")))
    ratio_of: dict[Case, float] = {}
    for number, case in enumerate(draw(args.count, args.seed), 1):
        ratio_of[case] = measure(case, args.pairs)
        print(f"{number:4} {ratio_of[case]:6.2f}  {case}", flush=True)
    report(ratio_of)


if __name__ == "__main__":
    main()
