"""Draw the picture of README: how many times as fast as nn.LSTM the LSTMs of known projects run.

`python benchmarks/summary.py` calls this. Needs matplotlib.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

# Colors of text, lines, bars, and bars of what is slower than nn.LSTM. The page is the background.
COLORS = {
    "light": ("#1f2328", "#8b949e", "#1a7f5a", "#bc6c25"),
    "dark": ("#e6edf3", "#6e7681", "#3fb68b", "#e39a55"),
}
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "img"


def workloads(record: dict[str, Any]) -> dict[str, float]:
    """The ratio of each workload, by its label, the largest first.

    Raises:
        ValueError: the result has no workload of the group "real" that was measured.
    """
    groups = [group for group in record["groups"] if group["key"] == "real"]
    measured = [r for group in groups for r in group["results"] if "ratio" in r]
    if not measured:
        raise ValueError('expected results of the group "real", got none')
    measured.sort(key=lambda result: -result["ratio"])
    cases = [result["case"] for result in measured]
    count = Counter(map(label, cases))
    labels = [
        f"{label(case)}, batch {case['batch']}" if count[label(case)] > 1 else label(case)
        for case in cases
    ]
    return dict(zip(labels, (result["ratio"] for result in measured), strict=True))


def label(case: dict[str, Any]) -> str:
    kind = "one step" if case["steps"] == 1 else case["mode"]
    kind += " with resets" if case["resets"] else ", packed" if case["ragged"] else ""
    precision = "" if case["precision"] == "float32" else f", {case['precision']}"
    return f"{case['name']}: {kind}{precision}"


def draw(record: dict[str, Any], theme: str) -> Figure:
    """One bar for each workload, from 1, which is nn.LSTM, to its ratio."""
    text, line, faster, slower = COLORS[theme]
    ratios = workloads(record)
    figure = Figure(figsize=(9, 0.9 + 0.25 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    values = list(ratios.values())
    axes.barh(
        range(len(values)),
        [value - 1 for value in values],
        left=1,
        height=0.62,
        color=[faster if value >= 1 else slower for value in values],
    )
    for y, value in enumerate(values):
        number = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
        axes.text(max(value, 1) * 1.03, y, f"{number}x", color=text, va="center", fontsize=8)
    axes.axvline(1, color=line, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(0.9, *values) * 0.95, max(values) * 1.25)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(values)), list(ratios))
    axes.invert_yaxis()
    axes.tick_params(colors=text, length=0, labelsize=9)
    axes.margins(y=0.01)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=line, alpha=0.3)
    axes.set_axisbelow(True)
    machine = record["machine"]
    name = machine.get("gpu") or f"{machine['cpu']}, {record['threads']} threads"
    about = f"{name}, torch {record['versions']['torch']}, {record['date'][:10]}"
    axes.set_title(f"How many times as fast as nn.LSTM\n{about}", color=text, fontsize=10)
    return figure


def draw_themes(record: dict[str, Any], folder: Path = FOLDER) -> None:
    """Writes the picture for a light and for a dark page."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in COLORS:
        path = folder / f"real-{theme}.svg"
        temporary = path.with_name(path.name + ".tmp")
        with rc_context({"svg.hashsalt": "fastlstm"}):  # the same file for the same result
            draw(record, theme).savefig(
                temporary, format="svg", transparent=True, metadata={"Date": None}
            )
        os.replace(temporary, path)
