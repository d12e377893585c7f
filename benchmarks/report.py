"""What a run leaves behind: verdicts, a printed table, a JSON file and a plot."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Group

Result = dict[str, Any]
MIB = 2**20
WHO = ("fastlstm", "torch")


@dataclass(frozen=True)
class Verdict:
    """One number that a group has to reach: at least `limit`, or at most."""

    name: str
    measured: float
    limit: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        met = "met" if self.met else "NOT MET"
        return f"{self.name} {self.measured:.2f} ({sign} {self.limit:g}: {met})"


def memory_ratio(result: Result, kind: str) -> float | None:
    """Peak bytes of fastlstm / of torch, or None if they were not measured."""
    ours, theirs = (result.get("memory", {}).get(who, {}).get(kind) for who in WHO)
    return ours / theirs if ours is not None and theirs else None


def verdicts(group: Group, results: Sequence[Result]) -> list[Verdict]:
    """Compares what was measured with the thresholds of the group and of its cases."""
    found = []
    if failed := sum("error" in r for r in results):
        found.append(Verdict("failed cases", failed, 0, at_least=False))
    ratios = [r["ratio"] for r in results if "ratio" in r]
    if ratios and group.geometric_mean is not None:
        mean = statistics.geometric_mean(ratios)
        found.append(Verdict("geometric mean", mean, group.geometric_mean))
    if ratios and group.worst is not None:
        found.append(Verdict("worst", min(ratios), group.worst))
    shares = [
        (r["gemm_share"], limit)
        for r in results
        if "gemm_share" in r and (limit := r["case"]["gemm_fraction"]) is not None
    ]
    if shares:
        found.append(Verdict("share of GEMM peak", *min(shares)))
    over = [
        (r["per_step"]["over_floor"], limit)
        for r in results
        if "over_floor" in r.get("per_step", {}) and (limit := r["case"]["over_floor"]) is not None
    ]
    if over:
        found.append(Verdict("step over floor", *max(over), at_least=False))
    for kind in ("allocated", "resident"):
        peaks = [ratio for r in results if (ratio := memory_ratio(r, kind)) is not None]
        if peaks:
            found.append(Verdict(f"peak memory, {kind}", max(peaks), 1.0, at_least=False))
    return found


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-"


def _peaks(result: Result, kind: str) -> str:
    ours, theirs = (result.get("memory", {}).get(who, {}).get(kind) for who in WHO)
    return "-" if ours is None or theirs is None else f"{theirs / MIB:.1f} {ours / MIB:.1f}"


# heading, width, text of the cell
COLUMNS: tuple[tuple[str, int, Callable[[Result], str]], ...] = (
    ("torch.nn", 10, lambda r: _time(r["seconds"]["torch"])),
    ("fastlstm", 10, lambda r: _time(r["seconds"]["fastlstm"])),
    ("ratio", 6, lambda r: _number(r["ratio"])),
    ("quartiles", 11, lambda r: "{:.2f}-{:.2f}".format(*r["quartiles"])),
    ("pairs", 5, lambda r: str(r["pairs"])),
    ("compiled", 8, lambda r: _number(r.get("compiled_ratio"))),
    ("reference", 9, lambda r: _number(r.get("reference_ratio"))),
    ("of peak", 7, lambda r: _number(r.get("gemm_share"))),
    ("allocated MiB", 13, lambda r: _peaks(r, "allocated")),
    ("resident MiB", 13, lambda r: _peaks(r, "resident")),
    ("us/step", 14, lambda r: _steps(r)),
    ("over floor", 10, lambda r: _number(r.get("per_step", {}).get("over_floor"))),
)
CPU_ONLY = {"of peak", "resident MiB", "reference"}
CUDA_ONLY = {"us/step", "over floor"}
NOTES = {
    "ratio": "time of torch.nn / time of fastlstm, median of the pairs",
    "compiled": "time of nn.LSTM / time of torch.compile(nn.LSTM); - where it did not compile",
    "reference": "time of torch.nn / time of fastlstm.reference, the equations in plain PyTorch",
    "of peak": "arithmetic of the case / time / the GEMM peak",
    "allocated MiB": "peak of a training step in tensors: torch.nn, fastlstm",
    "resident MiB": "peak of a training step in pages of the process: torch.nn, fastlstm",
    "us/step": "(time at T = 512 - time at T = 64) / 448: torch.nn, fastlstm",
    "over floor": "us/step of fastlstm / floor of the step on an H100",
}


def _steps(result: Result) -> str:
    per_step = result.get("per_step")
    if per_step is None:
        return "-"
    return f"{per_step['torch'] * 1e6:.2f} {per_step['fastlstm'] * 1e6:.2f}"


class Table:
    """Prints rows as they come."""

    def __init__(self, device: str, label_width: int) -> None:
        other = CUDA_ONLY if device == "cpu" else CPU_ONLY
        self.columns = [column for column in COLUMNS if column[0] not in other]
        self.label_width = label_width

    def legend(self) -> str:
        return "\n".join(f"{h}: {NOTES[h]}" for h, _, _ in self.columns if h in NOTES)

    def header(self, title: str) -> str:
        return "  ".join([title.ljust(self.label_width), *(h.rjust(w) for h, w, _ in self.columns)])

    def row(self, label: str, result: Result) -> str:
        if "error" in result:
            return f"{label.ljust(self.label_width)}  {result['error']}"
        cells = (cell(result).rjust(width) for _, width, cell in self.columns)
        return "  ".join([label.ljust(self.label_width), *cells])


def peer_lines(result: Result) -> list[str]:
    """The time of each installed peer beside fastlstm's, with and without the input projection."""
    measured = dict(result.get("peers", {}))
    projection = measured.pop("projection", 0.0)
    ours = result.get("seconds", {}).get("fastlstm")
    lines = []
    for name, seconds in measured.items():
        if isinstance(seconds, str):
            lines.append(f"  {name}: {seconds}")
            continue
        whole, walk = seconds["with_projection"], seconds["without_projection"]
        lines.append(
            f"  {name}: {_time(whole)}, {whole / ours:.2f} times fastlstm; without the input "
            f"projection {_time(walk)}, {walk / (ours - projection):.2f} times fastlstm"
        )
    return lines


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


def write_plot(path: Path, record: Result) -> None:
    """Draws the ratio of every case, a line of dots for each group, as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    groups = record["groups"]
    figure = Figure(figsize=(9, 1.6 + 0.45 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for y, group in enumerate(groups):
        ratios = [result["ratio"] for result in group["results"] if "ratio" in result]
        limits = [(group["geometric_mean"], "C1"), (group["worst"], "C3")]
        axes.plot(ratios, [y] * len(ratios), "o", color="C0", alpha=0.6)
        for limit, color in limits:
            if limit is not None:
                axes.plot([limit, limit], [y - 0.35, y + 0.35], color=color)
        if ratios:
            axes.plot(statistics.geometric_mean(ratios), y, "D", color="black", markersize=5)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(groups)), [group["title"] for group in groups])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "time of torch.nn / time of fastlstm\n"
        "dot: case, diamond: geometric mean; thresholds: orange geometric mean, red worst"
    )
    machine = record["machine"]
    name = machine.get("gpu") or f"{machine['cpu']}, {record['threads']} threads"
    axes.set_title(f"{name}, torch {record['versions']['torch']}", fontsize=10)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
