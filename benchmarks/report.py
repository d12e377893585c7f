"""Formats the results of a benchmark as a table, and writes them to a JSON file."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
MIB = 2**20
SIDES = ("fastlstm", "torch")


def memory_ratio(result: Result, kind: str) -> float | None:
    """Returns fastlstm's peak memory divided by torch's, or None if either was not measured."""
    ours, theirs = (result.get("memory", {}).get(side, {}).get(kind) for side in SIDES)
    return ours / theirs if ours is not None and theirs else None


def ratios(results: Iterable[Result], mode: str | None = None) -> list[float]:
    """Returns the ratios of all measured cases, or only of those in one mode."""
    return [r["ratio"] for r in results if "ratio" in r and mode in (None, r["case"]["mode"])]


def means(results: Sequence[Result]) -> str:
    """Returns a line with the geometric mean and the worst ratio of each mode."""
    by_mode = {mode: ratios(results, mode) for mode in ("inference", "training")}
    line = lambda each: f"mean {statistics.geometric_mean(each):.2f}, worst {min(each):.2f}"
    words = [f"{mode}: {line(each)}" for mode, each in by_mode.items() if each]
    failed = sum("error" in result for result in results)
    return "; ".join([*words, *[f"{failed} failed"] * bool(failed)])


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _peaks(result: Result, kind: str) -> str:
    ours, theirs = (result.get("memory", {}).get(side, {}).get(kind) for side in SIDES)
    return "-" if ours is None or theirs is None else f"{theirs / MIB:.1f} {ours / MIB:.1f}"


# For each column: heading, width, and the function that returns the text of a cell.
COLUMNS: tuple[tuple[str, int, Callable[[Result], str]], ...] = (
    ("peer", 10, lambda r: _time(r["seconds"]["torch"])),
    ("fastlstm", 10, lambda r: _time(r["seconds"]["fastlstm"])),
    ("ratio", 6, lambda r: f"{r['ratio']:.2f}"),
    ("quartiles", 11, lambda r: "{:.2f}-{:.2f}".format(*r["quartiles"])),
    ("pairs", 5, lambda r: str(r["pairs"])),
    ("of peak", 7, lambda r: f"{r['gemm_share']:.2f}" if "gemm_share" in r else "-"),
    ("allocated MiB", 13, lambda r: _peaks(r, "allocated")),
    ("resident MiB", 13, lambda r: _peaks(r, "resident")),
)
LEGEND = """peer: time of torch.nn, or of the library that a prepacked layer is compared with
ratio: time of the peer / time of fastlstm, as the median over the pairs of samples
of peak: FLOP/s of fastlstm / FLOP/s of the fastest matrix product (the GEMM peak)
allocated MiB: peak memory of the tensors of a training step: torch.nn, fastlstm
resident MiB: peak growth of the process in a training step: torch.nn, fastlstm"""


class Table:
    """Formats the rows of a table one by one. The first column has `label_width` characters."""

    def __init__(self, label_width: int) -> None:
        self.label_width = label_width

    def legend(self) -> str:
        return LEGEND

    def header(self, title: str) -> str:
        return "  ".join([title.ljust(self.label_width), *(h.rjust(w) for h, w, _ in COLUMNS)])

    def row(self, label: str, result: Result) -> str:
        if "error" in result:
            return f"{label.ljust(self.label_width)}  {result['error']}"
        cells = (cell(result).rjust(width) for _, width, cell in COLUMNS)
        return "  ".join([label.ljust(self.label_width), *cells])


def write_json(path: Path, record: Result) -> None:
    """Writes a JSON file. If writing fails, an existing file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def write_rows(
    path: Path,
    record: Result,
    key: str,
    entries: Iterable[Result],
    measure: Callable[[Result], tuple[str, Result]],
    end: float,
) -> None:
    """Measures entries, and writes the record to a file after each of them.

    `measure` returns a line to print and the row, which is added to `record[key]`. No entry is
    started after `end`, by time.monotonic(). `record["complete"]` becomes True after all entries.
    """
    for entry in entries:
        if time.monotonic() > end:
            break
        line, row = measure(entry)
        record[key].append(row)
        print(line, flush=True)
        write_json(path, record)
    else:
        record["complete"] = True
        write_json(path, record)
