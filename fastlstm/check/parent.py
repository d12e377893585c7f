"""Checks engines in child processes, so that a kernel that hangs or crashes ends only a child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..engine import records
from ..engine.records import FAILED, PASSED

PROGRAM = "from fastlstm.check import worker; worker.main()"
SILENCE = 20.0  # seconds without a result after which the child counts as hanging
READY = "fastlstm is imported"  # the child's first line
UNCHECKED, NOT_SERVED = "not checked", "not served"
_INSTRUCTION_VARIABLES = ("ATEN_CPU_CAPABILITY", "FASTLSTM_AMX")  # the child does not inherit them
# The kernels of the child wait only 1 s.
_CHILD_VARIABLES = {"FASTLSTM_RECORDS": "off", "FASTLSTM_WAIT_SECONDS": "1"}

Case = dict[str, str]  # engine, dtype (a key of BITS) and option (a name in OPTIONS or TIMED)
Row = dict[str, Any]  # an entry of the list "cases" that `check` returns


def check_cases(
    device: torch.device,
    cases: Sequence[Case],
    deadline: float,
    instructions: str = "",
    show: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """Returns a row for each case that its engine serves, and keeps the verdicts.

    If an engine hangs, crashes or raises an error, its other cases are left out, and a new child
    goes on with the engines after it. `device` has an index if it is a GPU, `cases` are sorted by
    engine, `deadline` is a time of `time.monotonic`, and `instructions` is "" or a variable
    NAME=VALUE that chooses an instruction set of the CPU.
    """
    remaining: list[Row] = [{**case, "instructions": instructions} for case in cases]
    served: list[Row] = []
    while remaining:
        rows = []
        for row in _rows_from_child(device, remaining, deadline):
            show(row)
            rows.append(row)
        served += (row for row in rows if row["result"] != NOT_SERVED)
        remaining = remaining[len(rows) :]
        if row["result"] == UNCHECKED:  # the last row; its reason holds for the other cases
            served += ({**case, "result": UNCHECKED, "reason": row["reason"]} for case in remaining)
            break
        remaining = [case for case in remaining if case["engine"] != row["engine"]]
    for engine in dict.fromkeys(case["engine"] for case in cases):
        verdict = verdict_on([row for row in served if row["engine"] == engine])
        if not verdict.startswith((PASSED, FAILED)):
            continue
        try:
            records.store(records.verdict_key(engine, device, instructions), verdict)
        except OSError as error:
            warnings.warn(f"fastlstm cannot keep the result of its check: {error}", stacklevel=3)
    return served


def verdict_on(rows: Sequence[Row]) -> str:
    """The verdict on an engine by its rows: "passed", or the worst result with the reason."""
    for result in (FAILED, UNCHECKED):
        for row in rows:
            if row["result"] == result:
                words = filter(None, (row["instructions"], row["dtype"], row["option"]))
                return f"{result}: {', '.join(words)}: {row['reason']}"
    return PASSED if rows else f"{UNCHECKED}: the engine serves no case"


def _rows_from_child(device: torch.device, cases: Sequence[Row], deadline: float) -> Iterator[Row]:
    """The rows of the cases that a child computes. If it ends early, the last row says why."""
    inherited = {k: value for k, value in os.environ.items() if k not in _INSTRUCTION_VARIABLES}
    variables = [cases[0]["instructions"].split("=")] if cases[0]["instructions"] else []
    environment = {**inherited, **_CHILD_VARIABLES, **dict(variables)}
    program = f"import sys; sys.path[:] = {sys.path!r}; {PROGRAM}"  # it imports this very package
    command = [sys.executable, "-c", program, str(device), json.dumps(cases)]
    pipes: Any = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child: Any = subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes)
    rows: list[Row] = []
    last_text, is_ready, line = "", False, "\n"
    try:
        while line:
            limit = min(deadline, time.monotonic() + SILENCE) if is_ready else deadline
            timer = threading.Timer(max(0.0, limit - time.monotonic()), child.kill)
            timer.start()
            if not (line := child.stdout.readline()):
                child.wait()  # until the child ends, or the timer kills it
            timer.cancel()
            if line.startswith('{"result"'):
                rows.append({**cases[len(rows)], **json.loads(line)})
                yield rows[-1]
            is_ready = is_ready or line.strip() == READY
            last_text = line.strip() or last_text  # a warning, or the last line of an error
    finally:
        timer.cancel()
        child.kill()
        child.stdout.close()
    stopped_at_error = child.returncode == 0 and rows and rows[-1]["result"] == FAILED
    if len(rows) == len(cases) or stopped_at_error:
        return
    result, reason = FAILED, f"the process ended with status {child.returncode}: {last_text}"
    if time.monotonic() >= deadline:
        result, reason = UNCHECKED, "the time is over"
    elif time.monotonic() >= limit:
        reason = f"it hangs: no result after {SILENCE:g} s"
    elif not is_ready or child.returncode == -9:  # the system kills what needs too much memory
        result = UNCHECKED
    elif child.returncode < 0:
        reason = f"it crashed: {signal.strsignal(-child.returncode)} (signal {-child.returncode})"
    yield {**cases[len(rows)], "result": result, "reason": reason}
