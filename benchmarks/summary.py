"""Print results of bench_lstm.py as Markdown: one line for each group of cases.

python benchmarks/summary.py benchmarks/results/FILE.json ... --write benchmarks/README.md
python benchmarks/summary.py benchmarks/results/FILE.json ... --short --write README.md
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown import publish, table

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


def machine_line(record: dict[str, Any], with_peaks: bool) -> str:
    """What was measured, where, and by which command."""
    machine, git = record["machine"], record["git"]
    peaks = ", ".join(f"{key} {peak / 1e9:.0f}" for key, peak in record["gemm_peak"].items())
    words = [
        f"{machine_name(record)}, {record['threads']} threads, {machine['capability']}",
        f"torch {record['versions']['torch']}",
        f"commit {(git['commit'] or 'unknown')[:7]}{' with changes' if git['dirty'] else ''}",
        record["date"][:10],
    ]
    if peaks and with_peaks:
        words.append(f"GEMM peak in GFLOP/s: {peaks}")
    if record["quick"] or not record["complete"]:
        words.append("quick run" if record["quick"] else "stopped before the end")
    return f"{'; '.join(words)}. `{record['command']}`"


def machine_name(record: dict[str, Any]) -> str:
    return record["machine"].get("gpu") or record["machine"]["cpu"]


def summary(record: dict[str, Any]) -> str:
    """One line about the machine, and the table."""
    return f"{machine_line(record, True)}\n\n" + table(HEADER, map(row, record["groups"]))


def short_summary(records: Sequence[dict[str, Any]]) -> str:
    """Machines beside each other, without targets, memory and the like."""
    header = ["nn.LSTM = 1", "cases"]
    lines: dict[str, list[str]] = {}  # by the title of a group
    for number, record in enumerate(records):
        header += [f"{machine_name(record)}: mean", "range"]
        for group in record["groups"]:
            title, cases, mean, worst, best, _ = row(group | {"verdicts": []})
            if group["results"]:
                line = lines.setdefault(title, [title, cases] + ["-", "-"] * len(records))
                line[2 + 2 * number : 4 + 2 * number] = [mean, f"{worst} to {best}"]
    machines = "\n".join(f"- {machine_line(record, False)}" for record in records)
    return f"{machines}\n\n" + table(header, lines.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    parser.add_argument("--short", action="store_true", help="the section speed: ratios alone")
    args = parser.parse_args(arguments)
    records = [json.loads(path.read_text()) for path in args.results]
    text = short_summary(records) if args.short else "\n\n".join(map(summary, records))
    publish(text, args.write, "speed" if args.short else "benchmark")


if __name__ == "__main__":
    main()
