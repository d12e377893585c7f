"""Time nn.LSTM alone on a GPU, over sizes: what fastlstm's choice has to beat.

    python benchmarks/cudnn_grid.py cudnn.json --limit 60

Each row is written as it comes: eager, and replayed from a CUDA graph, in microseconds. Needs no
kernels of fastlstm. `fit_plan.py` takes cuDNN's constants from it.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from report import write_rows
from sweep import EFFORT, call_of
from timing import Step, capture, cuda_clock, median_time

from fastlstm import _choice

Row = dict[str, Any]


def grid(seed: int = 0) -> list[Row]:
    """Shuffled, so that any part of it covers the sizes."""
    names = ("dtype", "hidden_size", "batch", "steps", "layers", "training")
    rows = product(
        ("bfloat16", "float16", "float32"),
        (128, 256, 512, 1024, 2048),
        (1, 16, 64, 256),
        (4, 20, 100),
        (1, 2),
        (False, True),
    )
    found = [dict(zip(names, row, strict=True)) for row in rows]
    random.Random(seed).shuffle(found)
    return found


def build(row: Row, device: str = "cuda") -> Step:
    """A call of nn.LSTM, whose input is as wide as its state."""
    H, dtype = row["hidden_size"], getattr(torch, row["dtype"])
    lstm = torch.nn.LSTM(H, H, row["layers"], device=device, dtype=dtype)
    return call_of(lstm, row["steps"], row["batch"], row["training"])


def measure(row: Row) -> Row:
    """Microseconds of a call, eager and captured; an error in their place where there is one."""
    found: Row = {}
    try:
        step = build(row)
        found["us"] = 1e6 * median_time(step, cuda_clock, EFFORT)
        found["graph_us"] = 1e6 * median_time(capture(step), cuda_clock, EFFORT)
    except RuntimeError as error:
        found["error"] = str(error).splitlines()[0]
    return found


def kind(row: Row, gpu: _choice.Gpu) -> str:
    """Which kernels cuDNN has for it."""
    H, layers = row["hidden_size"], row["layers"]
    stack = _choice.Stack(row["dtype"], H, H, row["batch"], row["steps"], num_layers=layers)
    return _choice.cudnn_class(stack._replace(training=row["training"]), gpu)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, metavar="FILE.json")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="end after this long")
    args = parser.parse_args(arguments)
    end = time.monotonic() + (args.limit or math.inf)
    record = machine.describe("cuda") | {"complete": False, "cudnn": []}
    gpu = _choice.Gpu(record["machine"]["sms"], record["machine"]["gpu_capability"])
    torch.backends.cudnn.allow_tf32 = True

    def found(row: Row) -> tuple[str, Row]:
        result = row | {"cudnn": kind(row, gpu)} | measure(row)
        return ", ".join(f"{name} {value}" for name, value in result.items()), result

    write_rows(args.output, record, "cudnn", grid(), found, end)


if __name__ == "__main__":
    main()
