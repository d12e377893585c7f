"""The child process of a check: computes cases, and prints a row of JSON for each."""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
import sys
from operator import truediv

import torch

from ..engine.call import Call, Results
from ..engine.engines import BY_NAME, Engine
from ..engine.records import FAILED, PASSED
from ..engine.timing import runner, times_of
from ..prepack import formats
from ..prepack.run import run_prepacked
from .cases import BITS, PREPACKED_BITS, TIMED, compute, draw, expected_results, judge
from .parent import NOT_SERVED, READY, UNCHECKED, Case, Row

_NO_MEMORY = re.compile("MemoryError|out of memory|enough memory|allocate memory|ALLOC_FAILED")
_SECONDS = 0.05  # how long an engine and nn.LSTM are timed, both together
_expected_results = functools.cache(expected_results)  # the same for every engine


def main() -> None:
    """Computes the cases that the parent gave, up to the first that raises an error."""
    device = torch.device(sys.argv[1])
    torch.zeros(1, device=device)  # a device that cannot be used raises here, before any case
    _print(READY)
    for case in json.loads(sys.argv[2]):
        try:
            row = _row(case, device)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if not _NO_MEMORY.search(text):
                _print(json.dumps({"result": FAILED, "reason": text.partition("\n")[0]}))
                return  # after an error a GPU may not work in this process any more
            row = {"result": UNCHECKED, "reason": "out of memory"}
        _print(json.dumps(row))


def _print(text: str) -> None:
    """Prints a line, after a line break in case a library has printed half a line."""
    print(f"\n{text}", flush=True)


def _row(case: Case, device: torch.device) -> Row:
    """Runs a case twice, compares it with the equations on the CPU, and times a typical call."""
    name, option, kind = case["engine"], case["option"], case["dtype"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    engine = _prepacked_engine(name) if name in PREPACKED_BITS else BY_NAME[name]
    call = draw(option, kind, device)
    if engine.why_not(call):
        return {"result": NOT_SERVED}
    differentiates = name not in PREPACKED_BITS
    first, second = (compute(engine.run, call, call.input.dtype, differentiates) for _ in range(2))
    correct = _expected_results(option, kind, torch.device("cpu"))
    error, reason = judge(option, PREPACKED_BITS.get(name, BITS[kind]), first, correct)
    unequal = [key for key in first if not torch.equal(first[key], second[key])]
    if unequal and name != "torch" and not reason:  # cuDNN does not promise the same bits
        reason = f"other bits when it ran again: {', '.join(unequal)}"
    row: Row = {"result": FAILED if reason else PASSED, "reason": reason}
    row["error"] = error if math.isfinite(error) else None
    return row | _time(engine, call, option) if option in TIMED else row


def _time(engine: Engine, call: Call, option: str) -> Row:
    for weight in call.weights:
        weight.requires_grad_("training" in option)
    with torch.set_grad_enabled("training" in option):
        runs = [runner(call, each) for each in (BY_NAME["torch"], engine)]
        theirs, ours = times_of(runs, call.input.device, _SECONDS)
    ratio = statistics.median(map(truediv, theirs, ours))
    return {"milliseconds": 1e3 * statistics.median(ours), "ratio": ratio}


def _prepacked_engine(name: str) -> Engine:
    """Returns an engine that prepacks the weights of a call, and runs it as prepacked layers do."""
    weight_dtype = getattr(torch, name.partition(" in ")[2] or "float32")

    def why_not(call: Call) -> str | None:
        if call.regularizers is not None or "layer_norm" in call.layout:
            return "it has no recurrent dropout and no layer normalization"
        return BY_NAME["op"].why_not(call)

    def run(call: Call) -> Results:
        rows = len(call.weights[0])  # 4H for W_ih and W_hh; W_hr has fewer rows, and no gates
        pack = functools.partial(formats.pack, scale=None, format=weight_dtype)
        weights = [pack(w, by_gates=len(w) == rows) if w.dim() == 2 else w for w in call.weights]
        layout = f"{call.layout} {formats.name_of(weight_dtype)}".strip()
        call = call._replace(hx=call.state(), weights=weights, layout=layout)
        return run_prepacked(call, torch.float32, name)

    return Engine(name, why_not, run)
