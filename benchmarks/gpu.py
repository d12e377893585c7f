"""Compare nn.LSTM with each engine of a GPU, to decide when engine "auto" should take which.

    python benchmarks/gpu.py smoke
    python benchmarks/gpu.py table gpu.json --limit 200

`smoke` compares the results of the persistent engine with the results of the stepwise engine, so
run it first. Each case has its own process, so that a case that hangs does not stop the others.
`table` measures nn.LSTM and each engine. It prints and writes every case when the case is finished,
and prints a summary of all cases at the end.
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
import torch
from cases import REAL, Case
from markdown import table
from report import write_rows
from timing import CLOCKS, Effort, alternate
from workload import build, check_agreement, settings

from fastlstm.check import gate

ENGINES = ("stepwise", "persistent")
PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
MODES = ("inference", "training")
SIZES = (128, 256, 512, 1024, 2048)
BATCHES = (1, 16, 64, 256)
EFFORT = Effort(seconds=0.1, min_pairs=5)
LONG = 20  # only cases with at least this many steps count in the summary

Row = dict[str, Any]


def smoke(precision: str, mode: str, device: str = "cuda", engine: str = "persistent") -> None:
    """Compares the results of an engine and of the stepwise engine on one case.

    Raises:
        RuntimeError: the results differ by more than rounding.
    """
    case = Case(16, 12, 64, 256, mode, precision)
    with settings(case):
        check_agreement(case, *(build(case, name, device) for name in ("stepwise", engine)))


def smoke_in_a_process(names: tuple[str, str], seconds: float) -> bool:
    """Runs one smoke case in its own process and prints its outcome.

    Args:
        names: the precision and the mode of the case.
        seconds: the process is killed after this time.

    Returns:
        Whether the case passed in time.
    """
    command = [sys.executable, __file__, "smoke", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        said = "ok" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-500:]
    except subprocess.TimeoutExpired:
        said = f"hangs: killed after {seconds:g} s"
    print(f"{' '.join(names)}: {said}", flush=True)
    return said == "ok"


def smoke_all(seconds: float) -> int:
    """Checks the engine, runs all smoke cases at the same time, and returns how many failed."""
    if reason := gate.why_not_persistent(torch.device("cuda", 0)):
        print(reason)
    cases = list(product(PRECISIONS, MODES))
    with ThreadPoolExecutor(len(cases)) as pool:
        passed = sum(pool.map(lambda names: smoke_in_a_process(names, seconds), cases))
    print(f"{len(cases) - passed} of {len(cases)} failed")
    return len(cases) - passed


def grid() -> list[Case]:
    """Returns the cases of known projects, then all combinations of sizes in random order.

    The order is random so that a run that is stopped early has cases of all sizes.
    """
    sizes = product(PRECISIONS, MODES, SIZES, BATCHES, (1, LONG, 100, 512))
    found = [Case(B, T, H, H, mode, precision) for precision, mode, H, B, T in sizes]
    random.Random(0).shuffle(found)
    return [*REAL, *found]


def measure(case: Case, engines: Sequence[str], device: str = "cuda") -> Row:
    """Measures one case.

    Returns:
        "torch.nn us", the time of nn.LSTM in microseconds, and for each engine the time of nn.LSTM
        divided by the time of the engine, or the error message if the engine failed.
    """
    found: Row = {}
    with settings(case):
        theirs = build(case, "torch.nn", device)
        for engine in engines:
            try:
                ours = build(case, engine, device)
                check_agreement(case, theirs, ours)
                pairs = alternate(theirs.step, ours.step, CLOCKS[device], EFFORT)
            except RuntimeError as error:  # unsupported case, or a wrong result
                found[engine] = str(error).splitlines()[0]
            else:
                found[engine] = pairs.ratio
                found["torch.nn us"] = 1e6 * statistics.median(pairs.baseline)
    return found


def summary(rows: Sequence[Row], engines: Sequence[str]) -> str:
    """Returns a Markdown table of nn.LSTM's time divided by each engine's time.

    A cell has the geometric mean and, in brackets, the smallest ratio of the grid's long cases.
    """
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
    """Measures all cases, writes a row for each to `path`, and prints the summary.

    Args:
        path: the JSON file.
        limit: no case is started after this many seconds.
        engines: the engines to measure.
    """
    end = time.monotonic() + limit
    record = machine.describe("cuda") | {"complete": False, "rows": []}

    def measured(row: Row) -> tuple[str, Row]:
        found = measure(row["case"], engines)
        words = [f"{k} {v:.2f}" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items()]
        return f"{row['case']}: {'; '.join(words)}", found | {"case": vars(row["case"])}

    write_rows(path, record, "rows", [{"case": case} for case in grid()], measured, end)
    print(summary(record["rows"], engines))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("smoke", help="compare the persistent with the stepwise engine")
    one.add_argument(
        "precision", nargs="?", choices=PRECISIONS, help="run only this case, in this process"
    )
    one.add_argument("mode", nargs="?", choices=MODES, default="inference")
    one.add_argument("--seconds", type=float, default=60.0, help="limit of a case; default: 60")
    all_ = commands.add_parser("table", help="compare nn.LSTM with each engine")
    all_.add_argument("output", type=Path, metavar="FILE.json")
    all_.add_argument(
        "--limit", type=float, default=math.inf, help="start no more cases after these seconds"
    )
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
