"""What a run leaves behind: a printed table and a JSON file."""

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
WHO = ("fastlstm", "torch")


def memory_ratio(result: Result, kind: str) -> float | None:
    """Peak bytes of fastlstm / of torch, or None if they were not measured."""
    ours, theirs = (result.get("memory", {}).get(who, {}).get(kind) for who in WHO)
    return ours / theirs if ours is not None and theirs else None


def ratios(results: Iterable[Result], mode: str | None = None) -> list[float]:
    """Those of the cases of a mode that were measured."""
    return [r["ratio"] for r in results if "ratio" in r and mode in (None, r["case"]["mode"])]


def means(results: Sequence[Result]) -> str:
    """The geometric mean and the worst case, in each mode."""
    found = {mode: ratios(results, mode) for mode in ("inference", "training")}
    words = [
        f"{mode}: mean {statistics.geometric_mean(each):.2f}, worst {min(each):.2f}"
        for mode, each in found.items()
        if each
    ]
    failed = sum("error" in result for result in results)
    return "; ".join([*words, *[f"{failed} failed"] * bool(failed)])


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _peaks(result: Result, kind: str) -> str:
    ours, theirs = (result.get("memory", {}).get(who, {}).get(kind) for who in WHO)
    return "-" if ours is None or theirs is None else f"{theirs / MIB:.1f} {ours / MIB:.1f}"


# heading, width, text of the cell
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
LEGEND = """peer: torch.nn, or what a prepacked layer is compared with
ratio: time of the peer / time of fastlstm, median of the pairs
of peak: arithmetic of the case / time / the GEMM peak
allocated MiB: peak of a training step in tensors: torch.nn, fastlstm
resident MiB: peak of a training step in pages of the process: torch.nn, fastlstm"""


class Table:
    """Formats rows as they come."""

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
    """Writes the whole file or nothing."""
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
    """Writes what was measured of each entry, into the list record[key], as it comes.

    `measure` returns a line to print and the row. Ends at `end` by time.monotonic(); the record is
    `complete` if no entry is left out.
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
