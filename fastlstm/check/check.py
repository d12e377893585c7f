"""`check` compares each engine with the LSTM's equations on the user's machine, and times it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import _build
from ..engine import records
from ..engine.records import PASSED
from .cases import PREPACKED_BITS, cases_of
from .first_use import SECONDS
from .parent import Row, check_cases


def check(
    device: torch.device | str | None = None, *, seconds: float = SECONDS, quiet: bool = False
) -> dict[str, Any]:
    """Compares the results and gradients of each engine with the equations, and times it.

    Every engine of the device computes calls with each option and dtype that it serves. The results
    are compared with `fastlstm.reference` in float64 on the CPU. A second run of fastlstm's engines
    has to give the same bits. On a CPU, prepacked layers are checked too, and every instruction set
    of the processor. Typical calls are timed next to nn.LSTM. Child processes do all this, so that
    a kernel that hangs or crashes does no harm. The verdict on each engine is kept for this
    machine, torch and build of fastlstm, in the file that FASTLSTM_RECORDS names.

    Args:
        device: "cpu" or a GPU. None is the GPU if fastlstm has kernels for it, else the CPU.
        seconds: the time limit. Cases that are left at its end are not checked.
        quiet: whether to print nothing: no table, and no count of checked cases on a terminal.

    Returns:
        A dictionary that can be written as JSON:

        - machine: the processor or GPU and driver, torch, and the build of fastlstm;
        - passed: whether each case was checked and is right;
        - cases: a dictionary for each, with its engine, dtype, option, instructions (the
          environment variable that selects an instruction set of the CPU, "" for the highest),
          result ("passed", "failed" or "not checked"), the reason if it did not pass, and the
          largest error, in roundoffs of the dtype. A typical call also has the milliseconds of the
          engine, and a ratio, which is nn.LSTM's time divided by the engine's.

    Raises:
        ValueError: `device` is neither a CPU nor a GPU, or `seconds` is not positive.
    """
    device = _device_of(device)
    if not seconds > 0:
        raise ValueError(f"seconds: expected a positive number, got {seconds!r}")
    deadline = time.monotonic() + seconds
    types_by_engine = _build.engines_of_the_op() if _build.has_kernels(device.type) else {}
    ours = [name for name, types in types_by_engine.items() if device.type in types]
    instruction_variables: list[str] = []
    if ours and device.type == "cpu":
        ours, instruction_variables = [*ours, *PREPACKED_BITS], _instruction_variables()
    cases = {"": cases_of(["torch", *ours], device, timed=True)}
    cases |= {variable: cases_of(ours, device) for variable in instruction_variables}
    show = _progress(sum(map(len, cases.values()))) if not quiet else lambda row: None
    rows = [row for var in cases for row in check_cases(device, cases[var], deadline, var, show)]
    passed = all(row["result"] == PASSED for row in rows)
    report = {"machine": records.machine(device), "passed": passed, "cases": rows}
    if not quiet:
        print(_table(report))
    return report


def _device_of(device: torch.device | str | None) -> torch.device:
    """The device to check, with an index if it is a GPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() and _build.has_kernels("cuda") else "cpu"
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    return torch.device("cpu") if device.type == "cpu" else torch.device("cuda", device.index or 0)


def _instruction_variables() -> list[str]:
    """The environment variables that select each instruction set below that of the processor."""
    names = "default", "avx2", "avx512"
    highest = torch.backends.cpu.get_cpu_capability().lower()
    lower = names[: names.index(highest)] if highest in names else ()
    without_amx = ["FASTLSTM_AMX=0"] if torch.cpu._is_amx_tile_supported() else []
    return [*without_amx, *(f"ATEN_CPU_CAPABILITY={name}" for name in reversed(lower))]


def _progress(total: int) -> Callable[[Row], object]:
    """A function that counts cases on a terminal, by tqdm if that is installed."""
    if not sys.stderr.isatty():
        return lambda row: None
    try:
        from tqdm import tqdm
    except ImportError:
        count = iter(range(1, total + 1))
        return lambda row: sys.stderr.write(f"\rcheck: {next(count)} of {total}\r")
    bar = tqdm(total=total, desc="check", leave=False)
    return lambda row: bar.update()


def _table(report: dict[str, Any]) -> str:
    """A line for each engine, then the cases that did not pass, by reason, and the times."""
    cases = report["cases"]
    lines = [f"fastlstm.check on {report['machine']}", ""]
    lines += [f"{'engine':<54}{'passed':>12}{'largest error, in roundoffs':>30}"]
    by_engine = _grouped(cases, "engine", "instructions")
    for name, rows in by_engine.items():
        errors = [row["error"] for row in rows if row["result"] == PASSED]
        error = f"{max(errors):.1f}" if errors else "-"
        lines.append(f"{name:<54}{f'{len(errors)} of {len(rows)}':>12}{error:>30}")
    not_passed = [row for row in cases if row["result"] != PASSED]
    for reason, rows_of_reason in _grouped(not_passed, "result", "reason").items():
        lines += ["", f"{reason}:"]
        for name, rows in _grouped(rows_of_reason, "engine", "instructions").items():
            calls = "; ".join(f"{row['dtype']}, {row['option']}" for row in rows)
            is_every_case = len(rows) == len(by_engine[name])
            lines.append(f"  {name}: {'every case' if is_every_case else calls}")
    timed = [row for row in cases if "ratio" in row]
    lines += ["", f"{'call':<40}{'engine':>12}{'ms':>10}{'nn.LSTM / engine':>18}"] if timed else []
    for row in timed:
        call = f"{row['option']}, {row['dtype']}"
        figures = f"{row['milliseconds']:>10.3f}{row['ratio']:>18.2f}"
        lines.append(f"{call:<40}{row['engine']:>12}{figures}")
    return "\n".join([*lines, "", f"{len(cases) - len(not_passed)} of {len(cases)} cases passed"])


def _grouped(rows: list[Row], *keys: str) -> dict[str, list[Row]]:
    """Groups rows by their values of `keys`. These values, joined by commas, name a group."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(row[key] for key in keys if row[key]), []).append(row)
    return groups


def main(device: str | None, seconds: float, path: Path | None) -> int:
    """`python -m fastlstm check`: the exit status, 1 unless every case passed."""
    try:
        report = check(device, seconds=seconds)
    except ValueError as error:
        raise SystemExit(f"check: {error}") from None
    if path is not None:
        records.write_text(path, json.dumps(report, indent=1))
    return 0 if report["passed"] else 1
