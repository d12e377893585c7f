"""Print a result of bench_lstm.py as Markdown: one line for each group of cases.

python benchmarks/summary.py benchmarks/results/FILE.json --write benchmarks/README.md
python benchmarks/summary.py benchmarks/results/FILE.json --short --write README.md
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown import publish, table

SHORT_HEADER = ["nn.LSTM = 1", "cases", "mean", "range"]
HEADER = ["torch.nn / fastlstm", "cases", "geometric mean", "worst", "best", "also measured"]


def _found(verdict: dict[str, Any]) -> str:
    sign = ">=" if verdict["at_least"] else "<="
    missed = "" if verdict["met"] else ", missed"
    return f"{verdict['measured']:.2f} ({sign} {verdict['limit']:g}{missed})"


def row(group: dict[str, Any]) -> list[str]:
    """The line of a group; each number is followed by its threshold."""
    found = {verdict["name"]: verdict for verdict in group["verdicts"]}
    ratios = [result["ratio"] for result in group["results"] if "ratio" in result]
    mean, worst, best = (
        f"{function(ratios):.2f}" if ratios else "-"
        for function in (statistics.geometric_mean, min, max)
    )
    mean, worst = (
        _found(found.pop(name)) if name in found else text
        for name, text in (("geometric mean", mean), ("worst", worst))
    )
    others = "; ".join(f"{name} {_found(verdict)}" for name, verdict in found.items())
    return [group["title"], str(len(group["results"])), mean, worst, best, others]


def short_row(group: dict[str, Any]) -> list[str]:
    """The line of a group without targets, memory and the like."""
    title, cases, mean, worst, best, _ = row(group | {"verdicts": []})
    return [title, cases, mean, f"{worst} to {best}"]


def summary(record: dict[str, Any], short: bool = False) -> str:
    """One line about the machine, and the table."""
    machine, git = record["machine"], record["git"]
    name = machine.get("gpu") or machine["cpu"]
    peaks = ", ".join(f"{key} {peak / 1e9:.0f}" for key, peak in record["gemm_peak"].items())
    words = [
        f"{name}, {record['threads']} threads, {machine['capability']}",
        f"torch {record['versions']['torch']}",
        f"commit {(git['commit'] or 'unknown')[:7]}{' with changes' if git['dirty'] else ''}",
        record["date"][:10],
    ]
    if peaks and not short:
        words.append(f"GEMM peak in GFLOP/s: {peaks}")
    if record["quick"] or not record["complete"]:
        words.append("quick run" if record["quick"] else "stopped before the end")
    header, line = (SHORT_HEADER, short_row) if short else (HEADER, row)
    groups = [group for group in record["groups"] if group["results"] or not short]
    return f"{'; '.join(words)}. `{record['command']}`\n\n" + table(header, map(line, groups))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    parser.add_argument("--short", action="store_true", help="the section speed: ratios alone")
    args = parser.parse_args(arguments)
    text = summary(json.loads(args.result.read_text()), args.short)
    publish(text, args.write, "speed" if args.short else "benchmark")


if __name__ == "__main__":
    main()
