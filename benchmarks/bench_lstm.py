"""Compare the speed of fastlstm with that of torch.nn, torch.ao and onnxruntime on a CPU.

    python benchmarks/bench_lstm.py
    python benchmarks/bench_lstm.py --group dense,packed --seconds 0.5

The command prints a table and writes a JSON file. benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import memory
import peers
import torch
from cases import GROUPS, MODES, Case, Group
from flops import flops, gemm_peak, peak_shapes
from report import Result, Table, means, write_json
from timing import Effort, Pairs, WarmedUp, alternate, wall_clock
from workload import build, check_agreement, ragged_lengths, settings

from fastlstm.functional import ENGINES


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line. The attribute `groups` has the groups to measure."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog=f"groups: {', '.join(group.key for group in GROUPS)}",
    )
    add = parser.add_argument
    add("--group", metavar="KEY,...", help="measure only these groups")
    add("--engine", choices=ENGINES, default="auto", help="engine of fastlstm; default: auto")
    add("--quick", action="store_true", help="measure two small cases of each group and mode")
    add("--seconds", type=float, help="time for each case; default: 1, with --quick 0.2")
    add("--threads", type=int, help="number of CPU threads; default: torch's")
    add("--limit", type=float, metavar="SECONDS", help="start no more cases after this time")
    add("--output", type=Path, metavar="FILE.json", help="default: a file in benchmarks/results")
    args = parser.parse_args(arguments)
    for name in ("seconds", "threads", "limit"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name}: expected a positive number, got {value}")
    if args.output and args.output.suffix != ".json":
        parser.error(f"--output: expected a name that ends in .json, got {args.output}")
    known = {group.key: group for group in GROUPS}
    keys = args.group.split(",") if args.group else list(known)
    if unknown := set(keys) - set(known):
        parser.error(
            f"--group: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}"
        )
    args.groups = [known[key] for key in keys]
    if args.quick:
        args.groups = [smallest(group) for group in args.groups]
    return args


def smallest(group: Group, count: int = 2) -> Group:
    """Returns the group with only the `count` cheapest cases of each mode."""

    def cost(case: Case) -> float:  # an estimate of the seconds that nn.LSTM takes
        return flops(case) / 1e11 + case.steps * 1e-4

    modes = ([case for case in group.cases if case.mode == mode] for mode in MODES)
    cheapest = (case for cases in modes for case in sorted(cases, key=cost)[:count])
    return dataclasses.replace(group, cases=tuple(cheapest))


class Bench:
    """Measures one case after another.

    Attributes:
        engine: the engine of fastlstm.
        effort: how long each case is measured.
        memory: the peak memory of each training case, measured before all timings.
        peaks: the FLOP/s of this CPU in matrix products, by precision.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.engine: str = args.engine
        seconds = args.seconds or (0.2 if args.quick else 1.0)
        self.effort = Effort(seconds, 5 if args.quick else 9)
        cases = [case for group in args.groups for case in group.cases]
        self.memory = self._memory([c for c in cases if c.mode == "training"])
        self.peaks = self._peaks(cases)

    def _memory(self, cases: list[Case]) -> dict[Case, dict[str, memory.Peak]]:
        """Measures the peak memory of each case with torch.nn and with fastlstm."""
        if not cases:
            return {}
        names = self.engine, "torch.nn"
        ours, theirs = (memory.measure(cases, name) for name in names)
        return {
            case: {"torch": their_peak, "fastlstm": our_peak}
            for case, our_peak, their_peak in zip(cases, ours, theirs, strict=True)
        }

    def _peaks(self, cases: list[Case]) -> dict[str, float]:
        """Measures the FLOP/s of oneDNN's matrix products, by precision."""
        peaks = {}
        for precision in dict.fromkeys(case.precision for case in cases):
            large = [c for c in cases if c.precision == precision and c.steps > 1]
            peak = gemm_peak(large[0].dtype, peak_shapes(large)) if large else None
            if peak is not None:
                peaks[precision] = peak
        return peaks

    def _pairs(self, case: Case) -> Pairs:
        """Checks that the peer and fastlstm agree, and times both alternately."""
        theirs, ours = (build(case, name, "cpu") for name in (case.peer, self.engine))
        check_agreement(case, theirs, ours)
        step = WarmedUp(ours.step) if isinstance(theirs.step, peers.Onnxruntime) else ours.step
        return alternate(theirs.step, step, wall_clock, self.effort)

    def measure(self, case: Case) -> Result:
        """Measures one case. benchmarks/README.md describes the entries of the result."""
        with settings(case):
            pairs = self._pairs(case)
            seconds = statistics.median(pairs.candidate)
            result: Result = {
                "seconds": {"torch": statistics.median(pairs.baseline), "fastlstm": seconds},
                "ratio": pairs.ratio,
                "quartiles": pairs.quartiles,
                "pairs": len(pairs.ratios),
            }
            if case in self.memory:
                result["memory"] = self.memory[case]
            if case.precision in self.peaks and case.steps > 1 and not case.prepacked:
                steps = int(ragged_lengths(case.batch, case.steps).sum()) if case.ragged else None
                work = flops(case, steps)
                result["gemm_share"] = work / seconds / self.peaks[case.precision]
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "command": machine.command("bench_lstm", sys.argv[1:] if arguments is None else arguments),
        "device": "cpu",
        "engine": args.engine,
        "quick": args.quick,
        **machine.describe("cpu"),
        "complete": False,
        "groups": [],
    }
    path = args.output or machine.result_path("lstm", record)
    print("Measuring the memory of all training cases and the GEMM peak", file=sys.stderr)
    bench = Bench(args)
    record["gemm_peak"] = bench.peaks
    table = Table(max(len(str(case)) for group in args.groups for case in group.cases))
    print(f"{machine.line(record)}; engine {args.engine}\n{table.legend()}")
    left_out = 0
    for group in args.groups:
        results: list[Result] = []
        record["groups"].append({"key": group.key, "title": group.title, "results": results})
        print(f"\n{group.title}\n{table.header('(B,T,I,H)')}")
        for case in group.cases:
            late = args.limit and time.monotonic() - start > args.limit
            if late or not peers.is_installed(case.peer):
                left_out += 1
                continue
            result: Result = {"case": dataclasses.asdict(case)}
            try:
                result |= bench.measure(case)
            except RuntimeError as error:
                result["error"] = f"{type(error).__name__}: {error}"
            results.append(result)
            print(table.row(str(case), result), flush=True)
            write_json(path, record)  # now, because a later case may end the process
        print(means(results))
    record["complete"] = left_out == 0
    write_json(path, record)
    if left_out:
        print(f"\n{left_out} cases were left out: over the time limit, or the peer is missing")
    print(f"\nwritten: {path}")
    failed = [r for group in record["groups"] for r in group["results"] if "error" in r]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
