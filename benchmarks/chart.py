"""Draw the pictures of README and of the documents from benchmarks/results.

    python benchmarks/chart.py       # writes docs/pictures/*.svg

It draws the newest results of bench_lstm.py, grid.py and programs.py, each picture once for light
pages and once for dark ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from report import ratios
from summary import newest

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
Record = dict[str, Any]
# The colors of text, of lines and nn.LSTM, and of fastlstm in training and in inference.
THEMES = {
    "light": {"text": "#24292f", "line": "#8c959f", "training": "#0969da", "inference": "#54aeff"},
    "dark": {"text": "#e6edf3", "line": "#6e7681", "training": "#58a6ff", "inference": "#1f6feb"},
}
# The groups of bench_lstm.py in the chart of README.
GROUPS = "packed dense two-layers bfloat16 step cell prepacked-float32 prepacked-int8".split()
MODES = ("inference", "training")
# Text is written as text, not as outlines. The salt makes files of equal results equal.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastlstm",
    "font.size": 10,
    "font.family": "sans",
}


def bars(lstm: Record, programs: Record) -> Iterator[tuple[str, str, list[float]]]:
    """Yields the title, the mode and the ratios of each bar of the chart, from top to bottom."""
    for program in programs["programs"]:
        title = f"{program['title']}, {program['best']}"
        yield title, program["mode"], [program["ways"][program["best"]]["ratio"]]
    groups = {group["key"]: group for group in lstm["groups"]}
    for key in GROUPS:
        for mode in MODES:
            if values := ratios(groups[key]["results"], mode):
                yield groups[key]["title"], mode, values


def speed(lstm: Record, programs: Record, colors: dict[str, str]) -> Figure:
    """Draws the chart of README: one bar for each program or group and mode."""
    drawn = list(bars(lstm, programs))
    figure = Figure(figsize=(5.4, 0.6 + 0.24 * len(drawn)), layout="constrained")
    figure.suptitle("nn.LSTM's time / fastlstm's time", color=colors["text"])
    axes = figure.subplots()
    previous = ""
    for y, (title, mode, values) in enumerate(drawn):
        mean = statistics.geometric_mean(values)
        worst = f" ({min(values):.2f})" if len(values) > 1 else ""
        axes.barh(-y, mean, color=colors[mode], height=0.8)
        axes.text(mean, -y, f" {mean:.2f}{worst}", va="center", color=colors["text"])
        if title != previous:
            axes.text(-0.1, -y, title, va="center", ha="right", color=colors["text"])
        previous = title
    axes.axvline(1, color=colors["line"], linestyle="--")
    axes.set_xlim(0, 1.45 * max(statistics.geometric_mean(values) for *_, values in drawn))
    legend = [Patch(color=colors[mode], label=mode) for mode in MODES]
    axes.legend(handles=legend, loc="upper right", labelcolor=colors["text"], frameon=False)
    axes.axis("off")
    return figure


def heat_map(grid: Record, colors: dict[str, str]) -> Figure:
    """Draws the ratio over rows and hidden size, for each mode and number of threads."""
    thread_counts = sorted({cell["threads"] for cell in grid["cells"]})
    figure = Figure(figsize=(7.2, 2.9 * len(thread_counts)), layout="constrained")
    axes_grid = figure.subplots(len(thread_counts), len(MODES), squeeze=False)
    for axes_row, threads in zip(axes_grid, thread_counts, strict=True):
        for axes, mode in zip(axes_row, MODES, strict=True):
            cells = [c for c in grid["cells"] if (c["threads"], c["mode"]) == (threads, mode)]
            rows, sizes = (sorted({c[key] for c in cells}) for key in ("rows", "hidden_size"))
            table = {(c["rows"], c["hidden_size"]): c["ratio"] for c in cells}
            values = [[table[row, size] for size in sizes] for row in rows]
            axes.imshow(values, cmap="RdYlGn", norm=TwoSlopeNorm(1, 0.5, 3), aspect="auto")
            for y, line in enumerate(values):
                for x, ratio in enumerate(line):
                    axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", color="#24292f")
            name = f"{mode}, {threads} thread{'s' * (threads > 1)}"
            axes.set_title(name, color=colors["text"], fontsize=10)
            axes.spines[:].set_visible(False)
            axes.tick_params(colors=colors["line"])
            axes.set_xticks(range(len(sizes)), map(str, sizes), color=colors["text"])
            axes.set_yticks(range(len(rows)), map(str, rows), color=colors["text"])
            axes.set_xlabel("hidden size", color=colors["text"])
            axes.set_ylabel("rows", color=colors["text"])
    return figure


def steps(grid: Record, colors: dict[str, str]) -> Figure:
    """Draws the seconds of a call over its number of steps, with all threads."""
    all_threads = max(cell["threads"] for cell in grid["steps"])
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, mode in zip(figure.subplots(1, len(MODES)), MODES, strict=True):
        cells = [c for c in grid["steps"] if (c["threads"], c["mode"]) == (all_threads, mode)]
        for side, color in (("torch", colors["line"]), ("fastlstm", colors["training"])):
            seconds = [1e3 * cell["seconds"][side] for cell in cells]
            label = "nn.LSTM" if side == "torch" else "fastlstm"
            axes.loglog([cell["steps"] for cell in cells], seconds, "o-", color=color, label=label)
        axes.set_title(mode, color=colors["text"], fontsize=10)
        axes.set_xlabel("steps", color=colors["text"])
        axes.set_ylabel("milliseconds", color=colors["text"])
        axes.tick_params(which="both", colors=colors["text"])
        axes.spines[:].set_color(colors["line"])
        axes.legend(labelcolor=colors["text"], frameon=False)
    return figure


def pictures() -> dict[str, Callable[[dict[str, str]], Figure]]:
    """Returns the function that draws each picture from the newest results."""
    lstm, programs, grid = (
        max(newest(f"{kind}-cpu-2*.json"), key=lambda record: str(record["date"]))
        for kind in ("lstm", "programs", "grid")
    )
    return {
        "speed": lambda colors: speed(lstm, programs, colors),
        "rows-and-units": lambda colors: heat_map(grid, colors),
        "steps": lambda colors: steps(grid, colors),
    }


def draw(folder: Path) -> None:
    """Writes every picture into a folder, once for each theme."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        for theme, colors in THEMES.items():
            path = folder / f"{name}-{theme}.svg"
            with matplotlib.rc_context(STYLE):
                picture(colors).savefig(
                    f"{path}.tmp", format="svg", transparent=True, metadata={"Date": None}
                )
            os.replace(f"{path}.tmp", path)


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args(arguments)
    draw(PICTURES)


if __name__ == "__main__":
    main()
