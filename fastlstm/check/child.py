"""Checks engines in a child process, so that a kernel that hangs or crashes ends only the child.

The child runs `worker.py`, which prints a row of JSON before and after each case.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..engine import records
from ..engine.records import FAILED, PASSED

PROGRAM = "from fastlstm.check import worker; worker.main()"
SILENCE = 20.0  # seconds of a case after which the child counts as hanging
BEGUN, UNCHECKED, COMPLETE = "begun", "not checked", "complete"
_SETTINGS = ("ATEN_CPU_CAPABILITY", "FASTLSTM_AMX")  # of the user; the child has its own

Row = dict[str, Any]


def check_engines(
    device: torch.device,
    engines: Sequence[str],
    end: float,
    settings: Mapping[str, str] = {},
    task: str = "cases",
    show: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Checks engines, and keeps the verdict on each for this process and for later ones.

    If an engine hangs, crashes or raises an error, its other cases are left out, and a new child
    goes on with the engines after it.

    Args:
        device: with an index if it is a GPU.
        engines: their names, in the order in which they are checked.
        end: when to stop, as `time.monotonic` counts.
        settings: environment variables for the child; they choose an instruction set of the CPU.
        task: "cases" compares results, "times" measures how long calls take.
        show: is called with each row, also with that of a case that has begun.

    Returns:
        A row for each case, with its engine, dtype, option, instructions (the settings) and result.
        If it did not pass, there is a reason. If results were compared, there is their error in
        roundoffs. If the call was timed, there are milliseconds and ratio.
    """
    found: list[Row] = []
    left, chosen = list(engines), ", ".join("=".join(pair) for pair in settings.items())
    while left:
        first: Row = {"engine": left[0], "dtype": "", "option": ""}
        for row in _rows([task, str(device), *left], first, end, settings):
            row["instructions"] = chosen
            show(row)
            found += [row] if row["result"] in (PASSED, FAILED, UNCHECKED) else []
        if row["result"] == COMPLETE:
            break
        left = left[left.index(row["engine"]) + 1 :]
        if row["result"] == UNCHECKED:
            found += [{**row, "engine": engine, "dtype": "", "option": ""} for engine in left]
            break
    for engine in engines:
        rows = [row for row in found if row["engine"] == engine]
        verdict = verdict_on(rows)
        if verdict.startswith((PASSED, FAILED)):
            _keep(records.verdict_key(engine, device, chosen), verdict)
    return found


def verdict_on(rows: Sequence[Row]) -> str:
    """The verdict on the engine of some rows: "passed", or the worst result with the reason."""
    for result in (FAILED, UNCHECKED):
        for row in rows:
            if row["result"] == result:
                return f"{result}: {sentence(row)}"
    return PASSED if rows else f"{UNCHECKED}: the engine serves no case"


def sentence(row: Row) -> str:
    """What happened in a case, as "float32, packed: memory"."""
    where = ", ".join(row[key] for key in ("instructions", "dtype", "option") if row[key])
    return f"{where}: {row['reason']}" if where else str(row["reason"])


def _keep(key: str, verdict: str) -> None:
    try:
        records.store(key, verdict)
    except OSError as error:
        warnings.warn(f"fastlstm cannot keep the result of its check: {error}", stacklevel=4)


def _rows(task: Sequence[str], row: Row, end: float, settings: Mapping[str, str]) -> Iterator[Row]:
    """The rows that a child prints. If it breaks off, the last one says why, of the same case."""
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    environment = {**kept, "FASTLSTM_TUNE": "off", **settings}
    program = f"import sys; sys.path[:] = {sys.path!r}; {PROGRAM}"  # it imports this very package
    command = [sys.executable, "-c", program, *task]
    pipes: Any = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    child: Any = subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes)
    said, status, was_killed = "", None, threading.Event()

    def kill() -> None:
        was_killed.set()
        child.kill()

    try:
        while status is None:
            limit = min(max(0.0, end - time.monotonic()), SILENCE if "result" in row else 1e9)
            timer = threading.Timer(limit, kill)
            timer.start()
            line = child.stdout.readline()
            status = None if line else child.wait()
            timer.cancel()
            if line.startswith(('{"engine"', '{"result"')):
                row = json.loads(line)
                yield row
            else:
                said = line.strip() or said  # a warning, or the last line of an error
    finally:
        timer.cancel()
        child.kill()
        child.stdout.close()
    if row.get("result") in (COMPLETE, FAILED):
        return
    result, reason = FAILED, f"the process ended with status {status}: {said}"
    if was_killed.is_set():
        is_over = time.monotonic() >= end
        result = UNCHECKED if is_over else FAILED
        reason = "the time is over" if is_over else f"it hangs: no result after {SILENCE:g} s"
    elif "result" not in row or status == -9:  # the kernel kills what needs too much memory
        result = UNCHECKED
    elif status < 0:
        reason = f"it crashed: {signal.strsignal(-status)} (signal {-status})"
    yield {**row, "result": result, "reason": reason}
