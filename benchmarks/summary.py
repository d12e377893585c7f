"""Put the newest results of bench_lstm.py and frozen.py into the documents, or print some.

python benchmarks/summary.py                # writes README.md, benchmarks/README.md, docs/img
python benchmarks/summary.py RESULT.json    # prints the table of a result of bench_lstm.py

Of each processor the newest result in benchmarks/results counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import frozen
import machine
from markdown import replace_section, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Record = dict[str, Any]

HEADER = ["torch.nn / fastlstm", "cases", "geometric mean", "worst", "best", "also measured"]


def _found(verdict: Record) -> str:
    sign = ">=" if verdict["at_least"] else "<="
    missed = "" if verdict["met"] else ", missed"
    return f"{verdict['measured']:.2f} ({sign} {verdict['limit']:g}{missed})"


def row(group: Record) -> list[str]:
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


def summary(record: Record) -> str:
    """What was measured, where and by which command, and the table."""
    words = [machine.line(record)]
    if record["gemm_peak"]:
        peaks = (f"{key} {peak / 1e9:.0f}" for key, peak in record["gemm_peak"].items())
        words.append(f"GEMM peak in GFLOP/s: {', '.join(peaks)}")
    if record["quick"] or not record["complete"]:
        words.append("quick run" if record["quick"] else "stopped before the end")
    about = f"{'; '.join(words)}. `{record['command']}`"
    return f"{about}\n\n{table(HEADER, map(row, record['groups']))}"


# The rows of the front page, and the groups whose cases they count.
ROWS = {
    "dense batches, training and inference": ("training", "inference"),
    "packed batches, training and inference": ("packed-training", "packed-inference"),
    "large dense batches, fp32_precision = tf32": ("tf32",),
    "single steps, LSTM": ("step",),
    "single steps, LSTMCell": ("cell",),
}


def front_page(records: Sequence[Record], packed: Sequence[Record]) -> str:
    """The few rows that decide whether fastlstm is worth it, for all processors.

    Args:
        records: of bench_lstm.py, one for each processor.
        packed: of frozen.py, for the same processors.
    """
    header = ["nn.LSTM = 1, float32 on a CPU"]
    lines: dict[str, list[str]] = {}
    for record, frozen_record in zip(records, packed, strict=True):
        header += [f"{machine.name(record)}: mean", "worst"]
        for title, ratios in front_rows(record, frozen_record).items():
            functions = (statistics.geometric_mean, min)
            numbers = [f"{function(ratios):.2f}" if ratios else "-" for function in functions]
            lines.setdefault(title, [title]).extend(numbers)
    return table(header, lines.values())


def front_rows(record: Record, frozen_record: Record) -> dict[str, list[float]]:
    """The ratios that each row counts."""
    found = {
        group["key"]: [result for result in group["results"] if "ratio" in result]
        for group in record["groups"]
    }
    rows = {
        title: [r["ratio"] for key in keys for r in found.get(key, [])]
        for title, keys in ROWS.items()
    }
    (rows["single steps, LSTMCell packed in int8"],) = (
        r["ratios"]
        for r in frozen_record["results"]
        if (r["title"], r["peer"]) == ("one step, int8", "nn.LSTMCell")
    )
    real = [(r["case"]["resets"], r["case"]["steps"] == 1, r["ratio"]) for r in found["real"]]
    rows["resets, beside a loop over the steps"] = [ratio for resets, _, ratio in real if resets]
    rows[f"the {len(real)} LSTMs of the picture"] = [ratio for *_, ratio in real]
    rows["the same without resets and single steps"] = [
        ratio for resets, single, ratio in real if not (resets or single)
    ]
    return rows


def newest(pattern: str) -> list[Record]:
    """The newest result of each processor, by the processor's name.

    Raises:
        ValueError: there is none.
    """
    records = [json.loads(path.read_text()) for path in RESULTS.glob(pattern)]
    by_name = {machine.name(record): record for record in sorted(records, key=lambda r: r["date"])}
    if not by_name:
        raise ValueError(f"expected files {pattern} in {RESULTS}, found none")
    return [by_name[name] for name in sorted(by_name)]


def publish() -> None:
    """Writes the tables and the picture."""
    import real_plot

    records, packed = newest("lstm-cpu-2*.json"), newest("frozen-*.json")
    replace_section(ROOT / "README.md", "speed", front_page(records, packed))
    document = ROOT / "benchmarks" / "README.md"
    replace_section(document, "benchmark", "\n\n".join(map(summary, records)))
    replace_section(document, "frozen", "\n\n".join(map(frozen.as_table, packed)))
    real_plot.draw_themes(max(records, key=lambda record: record["date"]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT.json", help="print these")
    args = parser.parse_args(arguments)
    for path in args.results:
        print(summary(json.loads(path.read_text())))
    if not args.results:
        publish()


if __name__ == "__main__":
    main()
