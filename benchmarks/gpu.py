"""Compare nn.LSTM with the engines of a GPU, each by name: which of them should be "auto"?

    python benchmarks/gpu.py smoke                      # persistent against stepwise; first of all
    python benchmarks/gpu.py table gpu.json --limit 200

`smoke` runs each case in a process of its own, so that one that hangs stops no other. `table`
prints and writes each case as it comes, and in the end the table that decides.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import machine
from cases import REAL, Case
from markdown import table
from report import write_rows
from timing import CLOCKS, Effort, alternate
from workload import build, check_agreement, settings

ENGINES = ("stepwise", "persistent")
PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
MODES = ("inference", "training")
SIZES = (128, 256, 512, 1024, 2048)
BATCHES = (1, 16, 64, 256)
EFFORT = Effort(seconds=0.1, min_pairs=5)
LONG = 20  # steps from which on a case counts in the table

Row = dict[str, Any]


def smoke(precision: str, mode: str, device: str = "cuda", engine: str = "persistent") -> None:
    """Raises a RuntimeError where an engine and the stepwise one do not agree."""
    case = Case(16, 12, 64, 256, mode, precision)
    with settings(case):
        check_agreement(case, *(build(case, name, device) for name in ("stepwise", engine)))


def smoke_in_a_process(names: tuple[str, str], seconds: float) -> bool:
    """Whether a case passes in time; prints what it says."""
    command = [sys.executable, __file__, "smoke", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        said = "ok" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-500:]
    except subprocess.TimeoutExpired:
        said = f"hangs: killed after {seconds:g} s"
    print(f"{' '.join(names)}: {said}", flush=True)
    return said == "ok"


def smoke_all(seconds: float) -> int:
    """How many cases fail, of all at once."""
    cases = list(product(PRECISIONS, MODES))
    with ThreadPoolExecutor(len(cases)) as pool:
        passed = sum(pool.map(lambda names: smoke_in_a_process(names, seconds), cases))
    print(f"{len(cases) - passed} of {len(cases)} failed")
    return len(cases) - passed


def grid() -> list[Case]:
    """Known workloads, then sizes in random order, so that any part of them covers all."""
    sizes = product(PRECISIONS, MODES, SIZES, BATCHES, (1, LONG, 100, 512))
    found = [Case(B, T, H, H, mode, precision) for precision, mode, H, B, T in sizes]
    random.Random(0).shuffle(found)
    return [*REAL, *found]


def measure(case: Case, engines: Sequence[str], device: str = "cuda") -> Row:
    """Time of nn.LSTM in microseconds, and divided by that of each engine; or the error."""
    found: Row = {}
    with settings(case):
        theirs = build(case, "torch.nn", device)
        for engine in engines:
            try:
                ours = build(case, engine, device)
                check_agreement(case, theirs, ours)
                pairs = alternate(theirs.step, ours.step, CLOCKS[device], EFFORT)
            except RuntimeError as error:  # it does not serve the case, or is wrong
                found[engine] = str(error).splitlines()[0]
            else:
                found[engine] = pairs.ratio
                found["torch.nn us"] = 1e6 * statistics.median(pairs.baseline)
    return found


def decisive(rows: Sequence[Row], engines: Sequence[str]) -> str:
    """nn.LSTM's time / an engine's: geometric mean over long cases of the grid, and the least."""
    cells: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        case = row["case"]
        key = case["precision"], case["mode"], case["hidden_size"], case["batch"]
        if case["steps"] < LONG or case["name"]:
            continue
        for engine in engines:
            if isinstance(row.get(engine), float):
                cells.setdefault(key, {}).setdefault(engine, []).append(row[engine])

    def cell(*key: Any) -> str:
        ratios = [cells[key][e] for e in engines if e in cells.get(key, {})]
        return (
            ", ".join(f"{statistics.geometric_mean(r):.2f} ({min(r):.2f})" for r in ratios) or "-"
        )

    lines = [
        [f"{precision}, {mode}, H {H}", *(cell(precision, mode, H, B) for B in BATCHES)]
        for precision, mode, H in product(PRECISIONS, MODES, SIZES)
        if any((precision, mode, H, B) in cells for B in BATCHES)
    ]
    return table([f"nn.LSTM / {', '.join(engines)}", *(f"B {B}" for B in BATCHES)], lines)


def measure_all(path: Path, limit: float, engines: Sequence[str]) -> None:
    """Writes a row for each case, and prints the table of all."""
    end = time.monotonic() + limit
    record = machine.describe("cuda") | {"complete": False, "rows": []}

    def measured(row: Row) -> tuple[str, Row]:
        found = measure(row["case"], engines)
        words = [f"{k} {v:.2f}" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items()]
        return f"{row['case']}: {'; '.join(words)}", found | {"case": vars(row["case"])}

    write_rows(path, record, "rows", [{"case": case} for case in grid()], measured, end)
    print(decisive(record["rows"], engines))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("smoke", help="the persistent engine against the stepwise one")
    one.add_argument("precision", nargs="?", choices=PRECISIONS, help="one case, in this process")
    one.add_argument("mode", nargs="?", choices=MODES, default="inference")
    one.add_argument("--seconds", type=float, default=60.0, help="for each case; default: 60")
    all_ = commands.add_parser("table", help="nn.LSTM against each engine")
    all_.add_argument("output", type=Path, metavar="FILE.json")
    all_.add_argument("--limit", type=float, default=math.inf, help="start no case after it")
    all_.add_argument("--engines", default=",".join(ENGINES), help=f"default: {','.join(ENGINES)}")
    args = parser.parse_args(arguments)
    if args.command == "table":
        measure_all(args.output, args.limit, args.engines.split(","))
    elif args.precision:
        smoke(args.precision, args.mode)
    else:
        return min(1, smoke_all(args.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
