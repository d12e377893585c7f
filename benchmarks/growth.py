"""Measure how much the memory of a process grows over thousands of calls of different shapes.

    python benchmarks/growth.py
    python benchmarks/growth.py --write docs/reference/figures.md

Each cell of the table is one process with an LSTM(64, 128) and batches of 1 to 32 rows and 1 to 64
steps. nn.LSTM and fastlstm.LSTM get the same batches. The growth is the resident memory after all
calls minus the resident memory after the first fifty calls. It can be measured on Linux only.
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
    """Returns the resident memory of this process in bytes."""
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
    """Calls an LSTM and returns by how many bytes this process grew after the warm-up calls."""
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
    add = parser.add_argument
    add("--calls", type=int, default=3000)
    add("--write", type=Path, metavar="FILE.md", help="also put the table into this file")
    # Only the processes that this command starts get --measure.
    add("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        implementation, kind = args.measure
        print(growth(implementation, kind, args.calls))
        return
    rows = []
    for kind in KINDS:
        row = [kind]
        for implementation in ("nn.LSTM", "fastlstm.LSTM"):
            command = [sys.executable, __file__, "--calls", str(args.calls)]
            command += ["--measure", implementation, kind]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row.append(f"{json.loads(printed) / 2**20:.0f}")
        rows.append(row)
        print(*row, flush=True)
    text = f"{machine.line(machine.describe('cpu'))}; {args.calls} calls.\n\n"
    text += table(["MiB", "nn.LSTM", "fastlstm.LSTM"], rows)
    publish(text, args.write, "growth")


if __name__ == "__main__":
    main()
