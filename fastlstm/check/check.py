"""`check` compares each engine with the LSTM's equations on the user's machine, and times it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import _build
from ..engine import records
from ..engine.records import FAILED, PASSED
from .child import UNCHECKED, Row, check_engines, sentence
from .gate import SECONDS

# The lower instruction sets that a processor has too, as ATEN_CPU_CAPABILITY names them.
_LOWER = {"AVX512": ("avx2", "default"), "AVX2": ("default",)}


def check(
    device: torch.device | str | None = None, *, seconds: float = SECONDS, quiet: bool = False
) -> dict[str, Any]:
    """Compares the results and gradients of each engine with the equations, and times it.

    Every engine that the device has computes calls with each option and dtype that it serves. They
    are compared with `fastlstm.reference` in float64 on the CPU, and computed again, which has to
    give the same bits. On a CPU that is done with every instruction set that the processor has.
    Then typical calls are timed next to nn.LSTM. All of this runs in child processes, so that a
    kernel that hangs or crashes does no harm.

    The verdict on each engine is kept for this GPU or processor, driver, torch and build of
    fastlstm, in the file of `fastlstm.tune`. On a GPU the engine "persistent" runs only where its
    verdict is good.

    Args:
        device: "cpu", or a GPU; None stands for the GPU if there is one with kernels of ours.
        seconds: how long it may take; cases that are left then are not checked.
        quiet: whether to print nothing; else a table, and on a terminal the case that is computed.

    Returns:
        A dictionary that can be written as JSON:

        - machine: the processor or GPU and driver, torch, and the build of fastlstm;
        - passed: whether each case was checked and is right;
        - cases: a dictionary for each, with its engine, dtype, option, instructions (the
          environment variable that selects an instruction set of the CPU, "" for the highest),
          result ("passed", "failed" or "not checked"), the reason if it did not pass, and its
          error, the largest one, in roundoffs of the dtype;
        - times: a dictionary for each, with its engine, dtype, option, milliseconds, and ratio,
          which is nn.LSTM's time divided by the engine's.

    Raises:
        ValueError: `device` or `seconds` is something else.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() and _build.has_kernels("cuda") else "cpu"
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    device = (
        torch.device("cpu") if device.type == "cpu" else torch.device("cuda", device.index or 0)
    )
    if not seconds > 0:
        raise ValueError(f"seconds: expected a positive number, got {seconds!r}")
    end = time.monotonic() + seconds
    of_the_op = _build.engines_of_the_op().items() if _build.has_kernels(device.type) else ()
    ours = [name for name, types in of_the_op if device.type in types]
    show = _show if not quiet and sys.stderr.isatty() else lambda row: None
    rows = check_engines(device, ["torch", *ours], end, show=show)
    for settings in _lower_sets() if device.type == "cpu" and ours else ():
        rows += check_engines(device, ours, end, settings, show=show)
    failed = {row["engine"] for row in rows if row["result"] != PASSED}
    sound = [name for name in ours if name not in failed]
    rows += check_engines(device, sound, end, task="times", show=show)
    found = {
        "machine": records.machine(device),
        "passed": all(row["result"] == PASSED for row in rows),
        "cases": [row for row in rows if "ratio" not in row],
        "times": [row for row in rows if "ratio" in row],
    }
    if not quiet:
        print(_table(found))
    return found


def _lower_sets() -> list[dict[str, str]]:
    """The environment variables that select each instruction set below that of the processor."""
    names = _LOWER.get(torch.backends.cpu.get_cpu_capability(), ())
    sets = [{"ATEN_CPU_CAPABILITY": name} for name in names]
    return [{"FASTLSTM_AMX": "0"}, *sets] if torch.cpu._is_amx_tile_supported() else sets


def _show(row: Row) -> None:
    """Shows on a terminal which case is computed."""
    case = ", ".join(filter(None, map(row.get, ("engine", "instructions", "dtype", "option"))))
    print(f"\r{case[:78]:<78}", end="\r", file=sys.stderr, flush=True)


def _table(found: dict[str, Any]) -> str:
    """The largest error of each engine in each dtype, what did not pass, and the times."""
    cases, times = found["cases"], found["times"]
    kinds = list(dict.fromkeys(row["dtype"] for row in cases if row["dtype"]))
    lines = [f"fastlstm.check on {found['machine']}", ""]
    lines += [f"{'largest error, in roundoffs':<36}" + "".join(f"{kind:>12}" for kind in kinds)]
    for pair in dict.fromkeys((row["engine"], row["instructions"]) for row in cases):
        of_pair = [row for row in cases if (row["engine"], row["instructions"]) == pair]
        cells = (_cell([row for row in of_pair if row["dtype"] == kind]) for kind in kinds)
        lines.append(f"{', '.join(filter(None, pair)):<36}" + "".join(f"{c:>12}" for c in cells))
    for result in (FAILED, UNCHECKED):
        bad = [f"  {row['engine']}, {sentence(row)}" for row in cases if row["result"] == result]
        lines += ["", f"{result}:", *bad] if bad else []
    lines += ["", f"{'call':<40}{'engine':>12}{'ms':>10}{'nn.LSTM / engine':>18}"] if times else []
    for row in times:
        figures = f"{row['milliseconds']:>10.3f}{row['ratio']:>18.2f}"
        lines.append(f"{row['option']:<40}{row['engine']:>12}{figures}")
    count = sum(row["result"] == PASSED for row in cases)
    return "\n".join([*lines, "", f"{count} of {len(cases)} cases passed"])


def _cell(cases: list[Row]) -> str:
    """The largest error of some cases, or the worst result."""
    results = [row["result"] for row in cases]
    bad = next((result for result in (FAILED, UNCHECKED) if result in results), None)
    return bad or (f"{max(row['error'] for row in cases):.1f}" if cases else "-")


def main(device: str | None, seconds: float, path: Path | None) -> int:
    """`python -m fastlstm check`: the exit status, 1 unless every case passed."""
    try:
        found = check(device, seconds=seconds)
    except ValueError as error:
        raise SystemExit(f"check: {error}") from None
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["passed"] else 1
