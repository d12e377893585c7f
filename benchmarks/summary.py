"""Write the newest results into the documents, or print given results of bench_lstm.py.

    python benchmarks/summary.py                # writes the page of figures and programs.md
    python benchmarks/summary.py RESULT.json    # prints the table of a result

The newest result of each processor in benchmarks/results is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import programs
from markdown import replace_section, table
from report import memory_ratio, ratios

ROOT = Path(__file__).resolve().parent.parent
Record = dict[str, Any]
MODES = ("inference", "training")


def cell(values: Sequence[float]) -> str:
    """Returns the geometric mean and, in brackets, the worst ratio."""
    if not values:
        return "-"
    mean = f"{statistics.geometric_mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f})"


def row(group: Record) -> list[str]:
    """Returns the cells of a group in the table of one result."""
    results = group["results"]
    failed = sum("error" in result for result in results)
    count = f"{len(results)}, {failed} failed" if failed else f"{len(results)}"
    cells = [group["title"], count, *(cell(ratios(results, mode)) for mode in MODES)]
    for kind in ("allocated", "resident"):
        memory_ratios = [ratio for r in results if (ratio := memory_ratio(r, kind)) is not None]
        cells.append(f"{max(memory_ratios):.2f}" if memory_ratios else "-")
    return cells


def summary(record: Record) -> str:
    """Returns the table of one result, below a line on the machine and the command."""
    words = [machine.line(record)]
    if record["gemm_peak"]:
        peaks = (f"{key} {peak / 1e9:.0f}" for key, peak in record["gemm_peak"].items())
        words.append(f"GEMM peak in GFLOP/s: {', '.join(peaks)}")
    if record["quick"] or not record["complete"]:
        words.append("quick run" if record["quick"] else "stopped before the end")
    header = ["peer / fastlstm", "cases", *MODES, "peak memory, allocated", "resident"]
    about = f"{'; '.join(words)}. `{record['command']}`"
    return f"{about}\n\n{table(header, map(row, with_projects_divided(record['groups'])))}"


def with_projects_divided(groups: Sequence[Record]) -> list[Record]:
    """Returns the groups, with "real" divided into two: cases with resets and cases without."""
    divided = []
    for group in groups:
        if group["key"] != "real":
            divided.append(group)
            continue
        for resets in (True, False):
            results = [r for r in group["results"] if r["case"]["resets"] == resets]
            kind = "with resets, against a loop over the steps" if resets else "without resets"
            title = f"LSTMs of known projects {kind}"
            divided.append({"key": "real", "title": title, "results": results})
    return [group for group in divided if group["results"]]


def newest(pattern: str) -> list[Record]:
    """Returns the newest result of each processor, sorted by the name of the processor.

    Raises:
        ValueError: benchmarks/results has none of the files.
    """
    records = [json.loads(path.read_text()) for path in machine.RESULTS.glob(pattern)]
    by_name = {machine.name(record): record for record in sorted(records, key=lambda r: r["date"])}
    if not by_name:
        raise ValueError(f"expected files {pattern} in {machine.RESULTS}, found none")
    return [by_name[name] for name in sorted(by_name)]


def write_documents() -> None:
    """Writes the tables into docs/reference/figures.md and docs/programs.md."""
    records = newest("lstm-cpu-2*.json")
    document = ROOT / "docs" / "reference" / "figures.md"
    replace_section(document, "benchmark", "\n\n".join(map(summary, records)))
    program_tables = map(programs.tables, newest("programs-cpu-2*.json"))
    replace_section(ROOT / "docs" / "programs.md", "programs", "\n\n".join(program_tables))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("results", type=Path, nargs="*", metavar="RESULT.json", help="results to print")
    args = parser.parse_args(arguments)
    for path in args.results:
        print(summary(json.loads(path.read_text())))
    if not args.results:
        write_documents()


if __name__ == "__main__":
    main()
