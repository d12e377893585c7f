"""Time whole programs of other projects: unchanged, with their LSTMs converted, and prepacked.

    python benchmarks/programs.py
    python benchmarks/programs.py --program whisperx_vad --rounds 9
    python benchmarks/summary.py    # writes the newest results into docs/programs.md

The programs are in benchmarks/apps. The ways to run a program take turns in one process, on one
thread, and what is compared is their CPU time. For a program that is not installed, the command to
install it is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from apps import PROGRAMS, TIME_ONLY, UNCHANGED
from markdown import table
from report import write_json
from timing import cpu_time_clock
from torch import nn

from fastlstm.compare import LSTMS, ModuleCall, _copied, _make_calls

COLUMNS = ("converted", "prepacked", "bfloat16", "int8")  # the other ways share a column
GAIN = 1.05  # a smaller ratio is no gain
Record = dict[str, Any]


def calls_of_lstms(run: Callable[[], object]) -> dict[bool, list[ModuleCall]]:
    """Runs a program once and returns the calls of its LSTMs, by whether gradients were on."""
    calls: dict[bool, list[ModuleCall]] = {False: [], True: []}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, LSTMS):
            calls[torch.is_grad_enabled()].append((module, _copied(args), _copied(kwargs)))

    handle = nn.modules.module.register_module_forward_hook(record, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return calls


def seconds_of_lstms(run: Callable[[], object]) -> float:
    """Repeats only the calls of a program's LSTMs, and returns the seconds that they take."""
    taken = 0.0
    for training, calls in calls_of_lstms(run).items():
        step = partial(_make_calls, calls, training)
        taken += statistics.median(cpu_time_clock(step, 1) for _ in range(3))
    return taken


def measure(name: str, rounds: int) -> Record:
    """Times each way of a program `rounds` times; returns the entry for the JSON file."""
    program = PROGRAMS[name]
    ways = program.make(False)
    results = [run() for run in ways.values()]  # this warms up, too
    times = [[cpu_time_clock(run, 1) for run in ways.values()] for _ in range(rounds)]
    record: Record = {"name": name, "version": program.version()}
    for field in ("title", "work", "measure"):
        record[field] = getattr(program, field)
    record["ways"] = {}
    for k, (way, result) in enumerate(zip(ways, results, strict=True)):
        low, ratio, high = statistics.quantiles([t[0] / t[k] for t in times], method="inclusive")
        seconds = statistics.median(t[k] for t in times)
        entry = {"seconds": seconds, "ratio": ratio, "quartiles": (low, high)}
        record["ways"][way] = entry | {"result": program.judge(result, results[0])}
        print(f"{name}, {way}: {record['ways'][way]}", flush=True)
    ours = [way for way in (*COLUMNS, "reset=") if way in ways]
    record["best"] = max(ours, key=lambda way: float(record["ways"][way]["ratio"]))
    record["mode"] = "inference" if "int8" in ways else "training"
    lstms = seconds_of_lstms(ways[UNCHANGED])
    record["share"] = min(1.0, lstms / record["ways"][UNCHANGED]["seconds"])
    return record


def cell(way: Record) -> str:
    """Returns the ratio of a way, in bold if it is a gain."""
    return f"**{way['ratio']:.2f}**" if way["ratio"] >= GAIN else f"{way['ratio']:.2f}"


def row(entry: Record, show: Callable[[Record], str]) -> list[str]:
    """Returns a cell for each of `COLUMNS`, and one for all other ways."""
    ways = entry["ways"]
    others = [f"{name}: {show(w)}" for name, w in ways.items() if name not in (UNCHANGED, *COLUMNS)]
    return [*(show(ways[c]) if c in ways else "-" for c in COLUMNS), "; ".join(others) or "-"]


def tables(record: Record) -> str:
    """Returns the tables of docs/programs.md: times, then what the programs found."""
    times, results = [], []
    for entry in record["programs"]:
        first = entry["ways"][UNCHANGED]
        name = f"{entry['title']}: {entry['work']} ({entry['version']})"
        totals = [f"{first['seconds']:.2f} s", f"{entry['share']:.0%}"]
        times.append([name, *totals, *row(entry, cell)])
        show = lambda way, base=first["result"]: "same" if way["result"] == base else way["result"]
        if entry["measure"] != TIME_ONLY:
            result = f"{entry['title']}: {entry['measure']}"
            results.append([result, first["result"], *row(entry, show)])
    columns = [*COLUMNS, "other"]
    parts = [
        f"{machine.line(record)}.",
        table(["time", UNCHANGED, "LSTMs", *columns], times, notes=1),
        table(["result", UNCHANGED, *columns], results, notes=1),
    ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=5, help="how often each way runs")
    parser.add_argument("--output", type=Path, help="a JSON file; other programs in it are kept")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    words = sys.argv[1:] if arguments is None else arguments
    record = {"command": machine.command("programs", words), **machine.describe("cpu")}
    path = args.output or machine.result_path("programs", record)
    kept = json.loads(path.read_text())["programs"] if path.exists() else []
    entries = {entry["name"]: entry for entry in kept}
    for name in args.program:
        if PROGRAMS[name].version() is None:
            print(f"left out: pip install {PROGRAMS[name].install}  # {name}", file=sys.stderr)
            continue
        entries[name] = measure(name, args.rounds)
        record["programs"] = [entries[name] for name in PROGRAMS if name in entries]
        write_json(path, record)  # now, because a later program may end the process
    print(tables(record))


if __name__ == "__main__":
    main()
