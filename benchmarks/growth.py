"""How far a process grows over thousands of calls that all have another shape.

    python benchmarks/growth.py
    python benchmarks/growth.py --write docs/reference/figures.md

Each row is one process: an LSTM(64, 128), batches of 1 to 32 rows and 1 to 64 steps, the same ones
for both. Growth is the resident memory after the calls minus that after the first fifty (Linux).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from markdown import publish, table
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

WARM_UP = 50


def resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def packed(call: Callable[..., object], steps: int, batch: int) -> None:
    lengths = torch.randint(1, steps + 1, (batch,))
    call(pack_padded_sequence(torch.randn(steps, batch, 64), lengths, enforce_sorted=False))


def training(call: Callable[..., Any], steps: int, batch: int) -> None:
    call(torch.randn(steps, batch, 64))[0].sum().backward()


def inference(call: Callable[..., object], steps: int, batch: int) -> None:
    call(torch.randn(steps, batch, 64))


KINDS = {"training": training, "inference": inference, "inference, packed": packed}


def growth(implementation: str, kind: str, calls: int) -> int:
    """Bytes that this process grows by."""
    torch.manual_seed(0)
    shapes = random.Random(0)
    lstm = (nn if implementation == "nn.LSTM" else fastlstm).LSTM(64, 128)
    with torch.set_grad_enabled(kind == "training"):
        for call in range(WARM_UP + calls):
            if call == WARM_UP:
                before = resident()
            lstm.zero_grad()
            KINDS[kind](lstm, shapes.randint(1, 64), shapes.randint(1, 32))
    return resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in the process of a row
    args = parser.parse_args()
    if args.measure:
        kind, implementation = args.measure
        print(growth(kind, implementation, args.calls))
        return
    rows = []
    for kind in KINDS:
        row = [kind]
        for implementation in ("nn.LSTM", "fastlstm.LSTM"):
            command = [sys.executable, __file__, "--calls", str(args.calls)]
            command += ["--measure", implementation, kind]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row.append(f"{json.loads(found) / 2**20:.0f}")
        rows.append(row)
        print(*row, flush=True)
    text = f"{machine.line(machine.describe('cpu'))}; {args.calls} calls.\n\n"
    text += table(["MiB", "nn.LSTM", "fastlstm.LSTM"], rows)
    publish(text, args.write, "growth")


if __name__ == "__main__":
    main()
