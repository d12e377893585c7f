"""Compare nn.LSTM with each engine of a GPU, to decide which engine "auto" takes for which call.

    python -m fastlstm check
    python benchmarks/gpu.py gpu.json --limit 200

It prints and writes every case when the case is finished, and prints a summary of all cases at the
end. Run the check first: without it the persistent engine is left out.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
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
LONG = 20  # only cases with at least this many steps count in the summary

Row = dict[str, Any]


def grid() -> list[Case]:
    """Returns the cases of known projects, then all combinations of sizes in random order.

    The order is random so that a run that is stopped early has cases of all sizes.
    """
    sizes = product(PRECISIONS, MODES, SIZES, BATCHES, (1, LONG, 100, 512))
    cases = [Case(B, T, H, H, mode, precision) for precision, mode, H, B, T in sizes]
    random.Random(0).shuffle(cases)
    return [*REAL, *cases]


def measure(case: Case, engines: Sequence[str], device: str = "cuda") -> Row:
    """Measures one case.

    Returns:
        "torch.nn us", the time of nn.LSTM in microseconds, and for each engine the time of nn.LSTM
        divided by the time of the engine, or the error message if the engine failed.
    """
    row: Row = {}
    with settings(case):
        theirs = build(case, "torch.nn", device)
        for engine in engines:
            try:
                ours = build(case, engine, device)
                check_agreement(case, theirs, ours)
                pairs = alternate(theirs.step, ours.step, CLOCKS[device], EFFORT)
            except RuntimeError as error:  # unsupported case, or a wrong result
                row[engine] = str(error).splitlines()[0]
            else:
                row[engine] = pairs.ratio
                row["torch.nn us"] = 1e6 * statistics.median(pairs.baseline)
    return row


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
        words = [f"{statistics.geometric_mean(r):.2f} ({min(r):.2f})" for r in ratios]
        return ", ".join(words) or "-"

    lines = [
        [f"{precision}, {mode}, H {H}", *(cell(precision, mode, H, B) for B in BATCHES)]
        for precision, mode, H in product(PRECISIONS, MODES, SIZES)
        if any((precision, mode, H, B) in cells for B in BATCHES)
    ]
    return table([f"nn.LSTM / {', '.join(engines)}", *(f"B {B}" for B in BATCHES)], lines)


def measure_all(path: Path, limit: float, engines: Sequence[str]) -> None:
    """Measures cases for `limit` seconds, writes their rows to `path`, and prints the summary."""
    end = time.monotonic() + limit
    record = machine.describe("cuda") | {"complete": False, "rows": []}

    def measure_row(row: Row) -> tuple[str, Row]:
        result = measure(row["case"], engines)
        words = [f"{k} {v:.2f}" if isinstance(v, float) else f"{k}: {v}" for k, v in result.items()]
        return f"{row['case']}: {'; '.join(words)}", result | {"case": vars(row["case"])}

    write_rows(path, record, "rows", [{"case": case} for case in grid()], measure_row, end)
    print(summary(record["rows"], engines))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("output", type=Path, metavar="FILE.json")
    add("--limit", type=float, default=math.inf, help="start no more cases after these seconds")
    add("--engines", default=",".join(ENGINES), help=f"default: {','.join(ENGINES)}")
    args = parser.parse_args(arguments)
    measure_all(args.output, args.limit, args.engines.split(","))
    return 0


if __name__ == "__main__":
    sys.exit(main())
