"""What `compare` measured: a row for each way, and the rows as a table and as a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .engine import records

NOISY = 0.15  # (third - first quartile) / ratio above which the machine is too noisy
STYLE = """text { font: 13px sans-serif; fill: #24292f } rect { fill: #0969da }
line { stroke: #8c959f; stroke-dasharray: 4 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } rect { fill: #58a6ff } }"""


class Comparison(NamedTuple):
    """One way to run a model, as `compare` measured it.

    Attributes:
        name: the way; the first is "nn.LSTM", unless the model cannot run with it.
        milliseconds: median time of a call; in training of a step.
        ratio: time of the first way / time of this one, the median over all rounds.
        quartiles: the first and the third quartile of these ratios.
        share: time of only the calls that the model makes to its LSTMs / time of the whole model.
        difference: largest absolute difference between the outputs of this way and of the first
            way, in eval mode; NaN if the outputs cannot be compared.
        code: the Python code that converts a model to this way.
    """

    name: str
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]
    share: float
    difference: float
    code: str


def table(rows: Sequence[Comparison], training: bool) -> str:
    """The rows as text, and the advice."""
    line = "{:<23}{:>10}{:>8} {:>15}{:>7}{:>12}".format
    return "\n".join([*(line(*cells) for cells in _cells(rows, training)), *_advice(rows)])


def save(rows: Sequence[Comparison], training: bool, machine: str, name: str) -> None:
    """Writes NAME.md, which also names the machine, and NAME.svg. Makes their folder."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    head, *body = _cells(rows, training)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    text += ["", *(f"- {line}" for line in (*_advice(rows), f"Measured on {machine}."))]
    records.write_text(Path(f"{name}.md"), "\n".join(text))
    records.write_text(Path(f"{name}.svg"), _chart(rows, head[0]))


def _cells(rows: Sequence[Comparison], training: bool) -> list[list[str]]:
    """The head of the table and its rows."""
    mode = "training" if training else "inference"
    cells = [[mode, "ms", "ratio", "quartiles", "LSTMs", "difference"]]
    for name, ms, ratio, (low, high), share, difference, _ in rows:
        quartiles = f"{low:.2f} to {high:.2f}"
        figures = f"{ms:.3f}", f"{ratio:.2f}", quartiles, f"{share:.0%}", f"{difference:.1e}"
        cells.append([name, *figures])
    return cells


def _chart(rows: Sequence[Comparison], mode: str) -> str:
    """A picture in SVG with a bar for the ratio of each row, and a line at 1."""
    height, scale = 26 * len(rows) + 34, 300 / max(row.ratio for row in rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}">']
    parts += [f"<style>{STYLE}</style>", f'<text x="4" y="18">{mode}, ratio of times</text>']
    for index, row in enumerate(rows):
        base, end = 26 * index + 44, 170 + scale * row.ratio
        parts.append(f'<text x="162" y="{base}" text-anchor="end">{row.name}</text>')
        parts.append(f'<rect x="170" y="{base - 14}" width="{end - 170:.1f}" height="18"/>')
        label = f"{row.ratio:.2f} ({row.milliseconds:.3f} ms)"
        parts.append(f'<text x="{end + 6:.1f}" y="{base}">{label}</text>')
    x_of_1 = f"{170 + scale:.1f}"
    parts.append(f'<line x1="{x_of_1}" x2="{x_of_1}" y1="26" y2="{height - 4}"/>')
    return "\n".join([*parts, "</svg>"])


def _advice(rows: Sequence[Comparison]) -> list[str]:
    """Notes, and the code of the fastest way of all, and of those that do not round ("in int8")."""
    lines = []
    if any(math.isnan(row.difference) for row in rows):
        why = "They are not tensors or numbers, their count or shapes differ, or one has a NaN."
        lines.append(f"nan: the outputs cannot be compared. {why}")
    best = max(rows, key=lambda row: row.ratio)
    best_unrounded = max((row for row in rows if " in " not in row.name), key=lambda row: row.ratio)
    overlap = any(row.quartiles[1] > best.quartiles[0] for row in rows if row is not best)
    if overlap and max((row.quartiles[1] - row.quartiles[0]) / row.ratio for row in rows) > NOISY:
        lines.append("The machine is too noisy to tell: let nothing else run, or measure longer.")
    elif best.quartiles[0] <= 1:
        lines.append(f"Nothing is faster than {rows[0].name}.")
    else:
        lines.append(f"Fastest: {best.code}")
        if best_unrounded is not best and best_unrounded.quartiles[0] > 1:
            lines.append(f"Fastest without rounding: {best_unrounded.code}")
    return lines
