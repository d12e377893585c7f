"""The child process of a check: computes the cases of each engine, and prints what it finds."""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
import sys
from itertools import product
from operator import truediv

import torch

from ..engine.engines import BY_NAME
from ..engine.records import FAILED, PASSED
from ..engine.timing import in_turn, runner
from .cases import CASES, TIMED, draw, dtype_of, expected, judge, kinds_of, results
from .child import BEGUN, COMPLETE, UNCHECKED, Row

_NO_MEMORY = re.compile("MemoryError|out of memory|enough memory|allocate memory|ALLOC_FAILED")
_SECONDS = 0.05  # of a call that is timed
_expected = functools.cache(expected)  # for one engine after the other


def main() -> None:
    """Does the task that the parent gave: a row before each case, and one after it."""
    task, device_name, *engines = sys.argv[1:]
    device = torch.device(device_name)
    torch.zeros(1, device=device)  # an error here is none of an engine's
    timed = [(case, "bfloat16" if "bfloat16" in case else "float32") for case in TIMED]
    cases = timed if task == "times" else [*product(CASES, kinds_of(device))]
    for engine, (case, kind) in product(engines, cases):
        row = {"engine": engine, "dtype": kind, "option": case}
        _print({**row, "result": BEGUN})
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
        try:
            found = (_time if task == "times" else _check)(engine, case, kind, device)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if not _NO_MEMORY.search(text):
                _print({**row, "result": FAILED, "reason": text.partition("\n")[0]})
                return  # a GPU may serve this process no more
            found = {"result": UNCHECKED, "reason": "memory"}
        if found:
            _print({**row, **found})
    _print({"result": COMPLETE})


def _print(row: Row) -> None:
    print(json.dumps(row), flush=True)


def _check(engine: str, case: str, kind: str, device: torch.device) -> Row:
    """Compares a case with the equations on the CPU, and with itself; {} if it is not served."""
    by, call = BY_NAME[engine], draw(case, kind, device)
    if by.why_not(call):
        return {}
    found, again = (results(by.run, call, dtype_of(kind)) for _ in range(2))
    error, reason = judge(case, kind, found, _expected(case, kind, torch.device("cpu")))
    other = [name for name in found if not torch.equal(found[name], again[name])]
    if other and engine != "torch" and not reason:  # cuDNN does not promise the same bits
        reason = f"other bits when it ran again: {', '.join(other)}"
    result = FAILED if reason else PASSED
    return {"result": result, "reason": reason, "error": error if math.isfinite(error) else None}


def _time(engine: str, case: str, kind: str, device: torch.device) -> Row:
    """Times a call next to nn.LSTM."""
    call = draw(case, kind, device)
    if BY_NAME[engine].why_not(call):
        return {}
    for weight in call.weights:
        weight.requires_grad_("training" in case)
    with torch.set_grad_enabled("training" in case):
        steps = [runner(call, by) for by in (BY_NAME["torch"], BY_NAME[engine])]
        theirs, ours = in_turn(steps, device, _SECONDS)
    ratio = statistics.median(map(truediv, theirs, ours))
    return {"result": PASSED, "milliseconds": 1e3 * statistics.median(ours), "ratio": ratio}
