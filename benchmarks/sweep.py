"""Time a step of many divisions of the persistent engine's work, and of stepwise, on a GPU.

    python benchmarks/sweep.py sweep.json && python benchmarks/fit_plan.py sweep.json

A step is the slope between T = 64 and T = 512 of the op itself, forward and backward alone, with a
small input and without gradients of weights: so no GEMM around the walk counts. What T = 64 takes
beside its steps is the start. A call of two steps is as long as the host needs to launch it.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from report import write_rows
from timing import Effort, Step, cuda_clock, median_time

import fastlstm
from fastlstm import _build

SHORT, LONG = 64, 512
INPUT_SIZE = 16
EFFORT = Effort(seconds=0.02, sample=2e-3)
# dtype, allow_tf32, hidden_size, batch
SHAPES = (
    ("bfloat16", True, 512, 16),
    ("bfloat16", True, 512, 64),
    ("bfloat16", True, 1024, 16),
    ("float32", True, 512, 16),
    ("bfloat16", True, 256, 128),
    ("float32", True, 256, 64),
    ("float32", False, 512, 16),
    ("bfloat16", True, 300, 32),
)

Entry = dict[str, Any]


def plan(
    entry: Entry, sms: int, capability: int, constants: dict[str, float], clock_ghz: float = 0.0
) -> Entry:
    """What the planner says of an entry's division: see `_C.plan_cuda`."""
    names = "hidden_size batch steps directions dtype allow_tf32 backward engine".split()
    task = {name: entry[name] for name in names}
    found: Entry = _build.library.plan_cuda(
        **task, sm_count=sms, capability=capability, clock_ghz=clock_ghz, constants=constants
    )
    return found


def walks(steps: int) -> Iterator[Entry]:
    """Every shape, forward and backward."""
    for dtype, allow_tf32, hidden_size, batch in SHAPES:
        for backward in (False, True):
            yield {
                "dtype": dtype,
                "allow_tf32": allow_tf32,
                "hidden_size": hidden_size,
                "batch": batch,
                "steps": steps,
                "directions": 1,
                "backward": backward,
            }


def title(entry: Entry) -> str:
    name = "TF32" if entry["dtype"] == "float32" and entry["allow_tf32"] else entry["dtype"]
    walk = "backward" if entry["backward"] else "forward"
    return f"{name} H {entry['hidden_size']} B {entry['batch']} {walk} {entry['engine']}"


def entries(sms: int, capability: int) -> Iterator[Entry]:
    """Every walk with stepwise and with all tiles that fit, in few and in many row groups."""
    for walk in walks(LONG):
        yield walk | {"engine": "stepwise"}
        for units in (8, 16, 32):
            most = min(sms // -(-walk["hidden_size"] // units), -(-walk["batch"] // 8))
            for row_tile, row_groups in product((8, 16), sorted({1, most // 2, most} - {0})):
                entry = walk | {"engine": f"persistent:{units}x{row_tile}x{row_groups}"}
                if plan(entry, sms, capability, {})["engine"] == "persistent":
                    yield entry


def build(entry: Entry, steps: int, device: str = "cuda") -> Step:
    """The walk of an entry alone, as a call."""
    H, B, dtype = entry["hidden_size"], entry["batch"], getattr(torch, entry["dtype"])
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, state, d_output = draw(steps, B, INPUT_SIZE), draw(1, B, H), draw(steps, B, H)
    weights = [draw(4 * H, INPUT_SIZE) / 4, draw(4 * H, H) / H**0.5]
    arguments: tuple[Any, ...] = (x, state, state, weights, "", *[None] * 4)
    engine, backward = entry["engine"], entry["backward"]
    if not backward:
        return lambda: torch.ops.fastlstm.lstm(*arguments, False, False, engine)
    output, _, _, cells, gates = torch.ops.fastlstm.lstm(*arguments, True, True, "stepwise")
    saved = (output, cells, gates)
    return lambda: torch.ops.fastlstm.lstm_backward(
        *arguments, d_output, None, None, None, *saved, False, False, True, engine
    )


def measure(entry: Entry) -> dict[str, float]:
    """Microseconds of a step, and of what comes before the first."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = entry["allow_tf32"]
    try:
        with torch.no_grad():
            long, short = (
                median_time(build(entry, steps), cuda_clock, EFFORT) for steps in (LONG, SHORT)
            )
    finally:
        torch.backends.cudnn.allow_tf32 = before
    step = (long - short) / (LONG - SHORT)
    return {"step_us": 1e6 * step, "start_us": 1e6 * (short - SHORT * step)}


def host_us(walk: Entry) -> float:
    """Microseconds of two steps by the module: of a walk, two of which make a step of training."""
    H, training = walk["hidden_size"], walk["backward"]
    lstm = fastlstm.LSTM(INPUT_SIZE, H, device="cuda", dtype=getattr(torch, walk["dtype"]))
    lstm.engine = "persistent"
    torch.backends.cudnn.allow_tf32 = walk["allow_tf32"]
    step = call_of(lstm, 2, walk["batch"], training)
    return 1e6 * median_time(step, cuda_clock, EFFORT) / (1 + training)


def call_of(lstm: torch.nn.RNNBase, steps: int, batch: int, training: bool) -> Step:
    """A call of a module, in training with the gradients of its weights."""
    weights = list(lstm.parameters())
    like = weights[0].new_empty(0)
    x = torch.randn(steps, batch, lstm.input_size).to(like)

    def call() -> object:
        with torch.set_grad_enabled(training):
            output = lstm(x)[0]
        return torch.autograd.grad(output.sum(), weights) if training else output

    return call


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, metavar="FILE.json")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end after this long")
    args = parser.parse_args(arguments)
    end = time.monotonic() + (args.limit or math.inf)
    record = machine.describe("cuda") | {"complete": False, "sweep": []}
    record["host_us"] = [host_us(walk) for walk in walks(2)]
    sms, capability, ghz = (record["machine"][k] for k in ("sms", "gpu_capability", "gpu_ghz"))
    todo = list(entries(sms, capability))
    random.Random(0).shuffle(todo)  # so that any part of it covers all shapes

    def found(entry: Entry) -> tuple[str, Entry]:
        predicted = plan(entry, sms, capability, {}, ghz)["step_us"]
        try:
            result = entry | {"predicted_us": predicted} | measure(entry)
        except RuntimeError as error:
            result = entry | {"error": str(error).splitlines()[0]}
        measured = f"{result['step_us']:.2f} us" if "step_us" in result else result["error"]
        return f"{title(entry)}: {measured}, predicted {predicted:.2f}", result

    write_rows(args.output, record, "sweep", todo, found, end)


if __name__ == "__main__":
    main()
