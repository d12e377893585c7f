"""Compare fastlstm.LSTM with torch.nn.LSTM: time, memory, and what bounds both.

    python benchmarks/bench_lstm.py --device cpu
    python benchmarks/bench_lstm.py --device cuda --group bf16-inference,bf16-training

Prints a table and writes a JSON file and a plot. benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compiled
import floor
import gpu
import machine
import memory
import peers
import torch
from cases import CPU_GROUPS, CUDA_GROUPS, Case, Group, cudnn_class
from report import Result, Table, peer_lines, verdicts, write_json, write_plot
from timing import CLOCKS, Effort, Pairs, alternate, capture, median_time, settle_malloc
from workload import build, check_agreement, ragged_lengths, settings

from fastlstm import _choice
from fastlstm.functional import ENGINES

GROUPS = {"cpu": CPU_GROUPS, "cuda": CUDA_GROUPS}
SECONDS = {"cpu": 2.5, "cuda": 0.4}  # of each case
COMPILE_LIMIT = {"cpu": 150.0, "cuda": 60.0}  # seconds for all cases together
SHORT_STEPS = 64  # the second point of the slope that gives the time of a step
RESULTS = Path(__file__).resolve().parent / "results"


def engine_name(text: str) -> str:
    if text not in ENGINES and not re.fullmatch(r"persistent:\d+x\d+x\d+", text):
        names = f"{', '.join(ENGINES)} or persistent:UNITSxROW_TILExROW_GROUPS"
        raise argparse.ArgumentTypeError(f"expected {names}, got {text}")
    return text


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="\n".join(
            f"groups of {device}: {', '.join(group.key for group in groups)}"
            for device, groups in GROUPS.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=GROUPS, default=default, help=f"default: {default}")
    parser.add_argument("--group", metavar="KEY,...", help="measure only these groups")
    parser.add_argument(
        "--engine",
        type=engine_name,
        default="auto",
        help=f"{', '.join(ENGINES)}, on cuda persistent:UNITSxROW_TILExROW_GROUPS; default: auto",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the two smallest cases of each group, briefly"
    )
    parser.add_argument(
        "--seconds", type=float, help="time for each case; default: 2.5 on cpu, 0.4 on cuda"
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads; default: torch's")
    parser.add_argument(
        "--compile-limit",
        type=float,
        metavar="SECONDS",
        help="time for torch.compile of nn.LSTM in all cases; default: 150 on cpu, 60 on cuda",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--graphs", action="store_true", help="replay CUDA graphs of both instead of calling them"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="start no case after this long; what was measured is still written",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="where to write, the plot beside it; default: benchmarks/results/",
    )
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if args.graphs and args.device != "cuda":
        parser.error("--graphs: expected --device cuda, got --device cpu")
    for name in ("seconds", "threads", "compile_limit", "limit"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')}: expected a positive number, got {value}")
    if args.output and args.output.suffix != ".json":
        parser.error(f"--output: expected a name that ends in .json, got {args.output}")
    known = {group.key: group for group in GROUPS[args.device]}
    keys = args.group.split(",") if args.group else list(known)
    if unknown := set(keys) - set(known):
        parser.error(
            f"--group: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}"
        )
    args.groups = [known[key] for key in keys]
    if args.quick:
        args.no_compile = True
        args.groups = [smallest(group) for group in args.groups]
    return args


def smallest(group: Group, count: int = 2) -> Group:
    """The group with only its cheapest cases."""

    def cost(case: Case) -> float:  # roughly the seconds that nn.LSTM takes
        return floor.flops(case) / 1e11 + case.steps * 1e-4

    return dataclasses.replace(group, cases=tuple(sorted(group.cases, key=cost)[:count]))


class Bench:
    """One run: what all cases share, and the measurements of one case."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device: str = args.device
        self.engine: str = args.engine
        self.graphs: bool = args.graphs
        self.clock = CLOCKS[args.device]
        self.on_h100 = False
        if self.device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            self.sms = properties.multi_processor_count
            self.capability = 10 * properties.major + properties.minor
            self.on_h100 = is_h100(properties.name, self.sms)
            self.sm_clock = gpu.SmClock(f"GPU-{properties.uuid}")
        seconds = args.seconds or (0.2 if args.quick else SECONDS[args.device])
        self.effort = Effort(seconds, 5 if args.quick or args.device == "cuda" else 9)
        self.brief = Effort(seconds / 5, 3)
        cases = [case for group in args.groups for case in group.cases]
        self.memory: dict[Case, dict[str, memory.Peak]] = {}
        if self.device == "cpu":  # in a process of its own; on a GPU beside the time
            self.memory = self._memory([c for c in cases if c.mode == "training"])
        compilable = [
            case
            for group in args.groups
            for case in group.cases
            if group.detailed and case.module == "LSTM"
        ]
        self.compiled: dict[Case, float | str] = {}
        if not args.no_compile:
            limit = args.compile_limit or COMPILE_LIMIT[self.device]
            self.compiled = compiled.ratios(compilable, self.device, limit)
        settle_malloc()
        self.peaks = self._peaks(cases) if self.device == "cpu" else {}

    def _memory(self, cases: list[Case]) -> dict[Case, dict[str, memory.Peak]]:
        if not cases:
            return {}
        names = self.engine, "torch.nn"
        ours, theirs = (memory.measure(cases, name, self.device) for name in names)
        return {
            case: {"torch": b, "fastlstm": a}
            for case, a, b in zip(cases, ours, theirs, strict=True)
        }

    def _peaks(self, cases: list[Case]) -> dict[str, float]:
        """FLOP/s of packed products, by precision."""
        peaks = {}
        for precision in dict.fromkeys(case.precision for case in cases):
            dense = [c for c in cases if c.precision == precision and c.steps > 1]
            peak = floor.gemm_peak(dense[0].dtype, floor.peak_shapes(dense)) if dense else None
            if peak is not None:
                peaks[precision] = peak
        return peaks

    def _pairs(self, case: Case) -> Pairs:
        theirs, ours = (build(case, name, self.device) for name in ("torch.nn", self.engine))
        check_agreement(case, theirs, ours)
        wrap = capture if self.graphs else lambda step: step
        return alternate(wrap(theirs.step), wrap(ours.step), self.clock, self.effort)

    def measure(self, case: Case, detailed: bool) -> Result:
        """Measures one case; see `report.COLUMNS` for the entries."""
        start = time.monotonic()
        with settings(case):
            pairs = self._pairs(case)
            seconds = {
                "torch": statistics.median(pairs.baseline),
                "fastlstm": statistics.median(pairs.candidate),
            }
            result: Result = {
                "seconds": seconds,
                "ratio": pairs.ratio,
                "quartiles": pairs.quartiles,
                "pairs": len(pairs.ratios),
            }
            if detailed and self.device == "cpu":  # on a GPU it takes longer than all the rest
                reference = build(case, "reference", self.device)
                result["reference_ratio"] = seconds["torch"] / median_time(
                    reference.step, self.clock, self.brief
                )
            if case in self.compiled:
                result["compiled_ratio"] = self.compiled[case]
            if self.device == "cuda" and detailed and case.mode == "training":
                self.memory |= self._memory([case])
            if case in self.memory:
                result["memory"] = self.memory[case]
            if case.precision in self.peaks and case.steps > 1:
                rows = int(ragged_lengths(case.batch, case.steps).sum()) if case.ragged else None
                work = floor.flops(case, rows)
                result["gemm_share"] = work / seconds["fastlstm"] / self.peaks[case.precision]
            if self.device == "cuda" and (detailed or case.over_floor) and not case.ragged:
                result["per_step"] = self.per_step(case, seconds)
            if self.device == "cuda":
                result |= self.on_gpu(case, detailed, start)
            if self.device == "cuda" and detailed and single(case):
                result["peers"] = peers.measure(case, self.device, self.clock, self.brief)
        return result

    def on_gpu(self, case: Case, detailed: bool, start: float) -> dict[str, Any]:
        """What the case did: cuDNN's class, the plan, the clock since `start`, the kernels."""
        gpu_here = _choice.Gpu(self.sms, self.capability)
        found: dict[str, Any] = {"cudnn": cudnn_class(case, gpu_here)}
        if self.engine != "reference":
            found["plan"] = gpu.plans(case, self.engine, self.sms, self.capability)
        if (mhz := self.sm_clock.median(start)) is not None:
            found["sm_mhz"] = mhz
        if detailed:
            short = dataclasses.replace(case, steps=SHORT_STEPS)
            try:
                found["kernels_a_step"] = {
                    who: gpu.kernels(build(short, name, self.device).step, SHORT_STEPS)
                    for who, name in (("torch", "torch.nn"), ("fastlstm", self.engine))
                }
            except RuntimeError as error:  # of the profiler; what was measured stays
                found["kernels_a_step"] = f"{type(error).__name__}: {error}"
        return found

    def per_step(self, case: Case, seconds: dict[str, float]) -> dict[str, float]:
        """Seconds of a step: the slope between the case and the same with `SHORT_STEPS` steps."""
        short = self._pairs(dataclasses.replace(case, steps=SHORT_STEPS))
        steps = case.steps - SHORT_STEPS
        slopes = {
            "torch": (seconds["torch"] - statistics.median(short.baseline)) / steps,
            "fastlstm": (seconds["fastlstm"] - statistics.median(short.candidate)) / steps,
        }
        bound = floor.cuda_step(case) if single(case) and self.on_h100 else None
        if bound is not None:
            slopes |= {"floor": bound, "over_floor": slopes["fastlstm"] / bound}
        return slopes


def single(case: Case) -> bool:
    """Whether it is one layer in one direction over rows of one length."""
    return case.num_layers == 1 and not case.bidirectional and not case.ragged


def is_h100(name: str, sms: int) -> bool:
    """Whether the constants in floor.py hold: an H100 SXM or NVL, or an H200, with all its SMs."""
    return sms == floor.SMS and ("H100" in name or "H200" in name)


def output_path(args: argparse.Namespace, commit: str | None) -> Path:
    if args.output:
        return args.output
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return RESULTS / f"lstm-{args.device}-{now}-{(commit or 'nocommit')[:7]}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "benchmark": "lstm",
        "command": machine.command("bench_lstm", sys.argv[1:] if arguments is None else arguments),
        "device": args.device,
        "engine": args.engine,
        "quick": args.quick,
        "cuda_graphs": args.graphs,
        **machine.describe(args.device),
        "complete": False,
        "groups": [],
    }
    path = output_path(args, record["git"]["commit"])
    print("First, for all cases: memory, torch.compile, the GEMM peak", file=sys.stderr)
    bench = Bench(args)
    record["gemm_peak"] = bench.peaks
    labels = [str(case) for group in args.groups for case in group.cases]
    table = Table(args.device, max(map(len, labels)))
    print(summary(record))
    if args.quick:
        print("A quick run: the two smallest cases of each group, few pairs, no torch.compile")
    print(table.legend())
    left_out = 0
    for group in args.groups:
        entry = {
            "key": group.key,
            "title": group.title,
            "geometric_mean": group.geometric_mean,
            "worst": group.worst,
            "results": [],
            "verdicts": [],
        }
        record["groups"].append(entry)
        print(f"\n{group.title}\n{table.header('(B,T,I,H)')}")
        for case in group.cases:
            if args.limit and time.monotonic() - start > args.limit:
                left_out += 1
                continue
            result: Result = {"case": dataclasses.asdict(case)}
            try:
                result |= bench.measure(case, group.detailed)
            except RuntimeError as error:
                result["error"] = f"{type(error).__name__}: {error}"
            entry["results"].append(result)
            print("\n".join([table.row(str(case), result), *peer_lines(result)]), flush=True)
            write_json(path, record)  # a later case may hang, or be killed
        found = verdicts(group, entry["results"])
        entry["verdicts"] = [dataclasses.asdict(v) | {"met": v.met} for v in found]
        print("; ".join(map(str, found)))
    if args.device == "cuda":
        bench.sm_clock.close()
    record["complete"] = left_out == 0
    write_json(path, record)
    if left_out:
        print(f"\n{left_out} cases were left out: the limit of {args.limit:g} s was reached")
    print(f"\nwritten: {path}")
    try:
        write_plot(path.with_suffix(".png"), record)
    except ModuleNotFoundError as error:
        print(f"no plot: {error} (pip install matplotlib)")
    failed = [r for group in record["groups"] for r in group["results"] if "error" in r]
    return 1 if failed else 0


def summary(record: dict[str, Any]) -> str:
    info, versions = record["machine"], record["versions"]
    state = {True: " (dirty)", False: "", None: ""}[record["git"]["dirty"]]
    peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in record["gemm_peak"].items())
    commit = (record["git"]["commit"] or "unknown")[:7]
    return "\n".join(
        [
            f"{info.get('gpu', info['cpu'])}, {record['threads']} threads, {info['capability']}; "
            f"torch {versions['torch']}, fastlstm {versions['fastlstm']}, "
            f"engine {record['engine']}, commit {commit}{state}",
            f"TF32 as found: cudnn {record['tf32']['cudnn']}, matmul {record['tf32']['matmul']}; "
            "on in the cases named tf32, off in the others",
            f"GEMM peak, GFLOP/s: {peaks or '-'}",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
