"""Training steps while other processes keep the processor busy, as a Markdown table.

    python benchmarks/under_load.py
    python benchmarks/under_load.py --write docs/cpu.md

The ratio is time of nn.LSTM / time of fastlstm.LSTM, called in alternation in one process, beside
0, 1 and 2 processes for every core that do nothing but compute. *Slower* is the time of fastlstm
over its own on the idle machine; fair would be 1, 2 and 3. Both are taken with GNU OpenMP as it is,
and where its threads wait for a shorter time before they sleep (GOMP_SPINCOUNT).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
from cases import Case
from markdown import publish, table
from timing import CLOCKS, Effort, alternate, settle_malloc
from workload import build

CASES = [Case(64, 100, 128, 256), Case(128, 20, 256, 512), Case(16, 400, 256, 256)]
BUSY_PER_CORE = (0, 1, 2)
SPIN_COUNTS = (None, "2000")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keeps `count` processes computing."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(seconds: float) -> list[tuple[float, float]]:
    """For every load and case: the ratio, and the seconds of a step of fastlstm."""
    settle_malloc()
    effort = Effort(seconds, min_pairs=5, sample=0.05)
    workloads = [[build(case, name, "cpu") for name in ("torch.nn", "auto")] for case in CASES]
    results = []
    for per_core in BUSY_PER_CORE:
        with busy(per_core * machine.cores()):
            for baseline, candidate in workloads:
                pairs = alternate(baseline.step, candidate.step, CLOCKS["cpu"], effort)
                # Sums: a scheduler gives turns, and the median of a few steps may have missed all.
                ours = sum(pairs.candidate)
                results.append((sum(pairs.baseline) / ours, ours / len(pairs.candidate)))
    return results


def measure_in_process(seconds: float, spin_count: str | None) -> list[tuple[float, float]]:
    """`measure` in a new process, because OpenMP reads its settings once."""
    environment = {**os.environ, **({"GOMP_SPINCOUNT": spin_count} if spin_count else {})}
    command = [sys.executable, __file__, "--measure", "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return [tuple(pair) for pair in json.loads(done.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="per case and load")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.seconds)))
        return
    header = ["(B,T,I,H)", "busy processes"]
    columns = []
    for spin_count in SPIN_COUNTS:
        results = measure_in_process(args.seconds, spin_count)
        idle = [seconds for _, seconds in results[: len(CASES)]] * len(BUSY_PER_CORE)
        columns += [
            [f"{ratio:.2f}" for ratio, _ in results],
            [f"{seconds / of:.1f}" for (_, seconds), of in zip(results, idle, strict=True)],
        ]
        suffix = f", GOMP_SPINCOUNT={spin_count}" if spin_count else ""
        header += [f"nn.LSTM / fastlstm{suffix}", "slower"]
    loads = [str(per_core * machine.cores()) for per_core in BUSY_PER_CORE]
    names = [(str(case), load) for load in loads for case in CASES]
    rows = [[*name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    text = f"{machine.title('cpu')}:\n\n{table(header, rows)}"
    publish(text, args.write, "under-load")


if __name__ == "__main__":
    main()
