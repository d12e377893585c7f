"""Measure the overhead of a call: one small step by torch.nn, a fastlstm module and its op.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --batch 8 --hidden 128 --json overhead.json

The table has the microseconds of a forward call, as the median over batches of 50 calls. All
columns of a row take turns. The column *op* is the function of the extension that the module calls,
and *nothing* is a module that returns its input. With one thread the processor time of the thread
is measured, which other processes disturb less than the wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from markdown import table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm
from fastlstm import _build

CALLS = 50  # calls of one batch
Call = Callable[[], object]


class Nothing(nn.Module):
    """A module that returns its input."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        return x


def op(name: str, tensors: Sequence[Any], weights: Sequence[Tensor], layout: str) -> Call | None:
    """Returns a call of a function of the extension, or None if it does not take these tensors.

    `tensors` are the input, h_0 and c_0, then, if needed, batch_sizes, lengths and reset. The
    arguments after `layout` differ between versions of fastlstm, so their names are read from the
    docstring of the function.
    """
    function = getattr(_build.library, name, None)
    signature = re.match(rf"{name}\((.*)\)", getattr(function, "__doc__", None) or "")
    if function is None or signature is None:
        return None
    options: dict[str, Any] = {"save_cells": False, "engine": "auto"}
    options |= zip(("batch_sizes", "lengths", "reset"), tensors[3:], strict=False)
    rest = [options.get(option) for option in signature[1].split(", ")[5:]]
    arguments = (*tensors[:3], weights, layout, *rest)
    return lambda: function(*arguments)


def cases(batch: int, input_size: int, hidden: int) -> dict[str, dict[str, Call | None]]:
    """Returns the calls to measure, by row and column; None if there is no such call."""
    torch.manual_seed(0)
    x, row = torch.randn(1, batch, input_size), torch.randn(batch, input_size)
    h, c = torch.randn(1, batch, hidden), torch.randn(1, batch, hidden)
    step = (h[0], c[0])
    theirs, their_cell = nn.LSTM(input_size, hidden), nn.LSTMCell(input_size, hidden)
    ours, our_cell = (fastlstm.convert(copy.deepcopy(m)) for m in (theirs, their_cell))
    weights, cell_weights = list(ours.parameters()), list(our_cell.parameters())
    deep = nn.LSTM(input_size, hidden, 2, bidirectional=True)
    our_deep = fastlstm.convert(copy.deepcopy(deep))
    packed = pack_sequence(list(x.transpose(0, 1)))
    reset, lengths = torch.zeros(1, batch, dtype=torch.bool), torch.ones(batch, dtype=torch.long)
    nothing = Nothing()

    def lstm(state: Any, lengths: Any = None, reset: Any = None) -> dict[str, Call | None]:
        options = {"lengths": lengths} if lengths is not None else {}
        options |= {"reset": reset} if reset is not None else {}
        tensors = (x, *(state or (None, None)), None, lengths, reset)
        return {
            "nn": None if options else lambda: theirs(x, state),
            "module": lambda: ours(x, state, **options),
            "op": op("lstm", tensors, weights, "bias"),
            "nothing": lambda: nothing(x, state),
        }

    def cell() -> dict[str, Call | None]:
        return {
            "nn": lambda: their_cell(row, step),
            "module": lambda: our_cell(row, step),
            "op": op("lstm_cell", (row, *step), cell_weights, "bias"),
            "nothing": lambda: nothing(row, step),
        }

    def prepacked(module: Any, x: Tensor, state: tuple[Tensor, Tensor], name: str) -> Any:
        module = fastlstm.prepack(copy.deepcopy(module).eval())
        op_call = op(name, (x, *state), module._op_weights(), module._layout)
        return {"nn": None, "module": lambda: module(x, state), "op": op_call}

    def without_op(theirs: Any, ours: Any, x: Tensor | PackedSequence) -> dict[str, Call | None]:
        return {"nn": lambda: theirs(x), "module": lambda: ours(x)}

    return {
        "LSTM": lstm((h, c)),
        "LSTM without a state": lstm(None),
        "LSTM with gradients": lstm((h, c)),
        "LSTM with gradients, without a state": lstm(None),
        "LSTMCell": cell(),
        "LSTMCell with gradients": cell(),
        "prepacked LSTM": prepacked(ours, x, (h, c), "lstm"),
        "prepacked LSTMCell": prepacked(our_cell, row, step, "lstm_cell"),
        "reset": lstm((h, c), reset=reset),
        "lengths": lstm((h, c), lengths=lengths),
        "two layers, bidirectional": without_op(deep, our_deep, x),
        "packed sequence": without_op(theirs, ours, packed),
    }


def measure(columns: dict[str, Call | None], seconds: float) -> dict[str, float]:
    """Measures the calls of a row for some seconds; returns the microseconds, by column."""
    calls = {name: call for name, call in columns.items() if call is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(CALLS):  # warm up: the first calls make plans and allocate memory
            call()
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["module"]) < 3:
        for name in sorted(calls, reverse=len(times["module"]) % 2 == 1):
            call = calls[name]
            start = clock()
            for _ in range(CALLS):
                call()
            times[name].append((clock() - start) / CALLS)
    return {name: 1e6 * statistics.median(each) for name, each in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--batch", type=int, default=1)
    add("--input", type=int, default=64)
    add("--hidden", type=int, default=64)
    add("--threads", type=int, default=1)
    add("--seconds", type=float, default=1.0, help="time for a row; default: 1")
    add("--json", type=Path, metavar="FILE.json", help="also write the figures to this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    microseconds, rows = {}, []
    for name, columns in cases(args.batch, args.input, args.hidden).items():
        with torch.set_grad_enabled("gradients" in name):
            us = microseconds[name] = measure(columns, args.seconds)
        cells = [f"{us[c]:.1f}" if c in us else "-" for c in ("nn", "module", "op", "nothing")]
        cells.append(f"{us['nn'] / us['module']:.2f}" if "nn" in us else "-")
        rows.append([name, *cells])
    sizes = f"B {args.batch}, I {args.input}, H {args.hidden}, {args.threads} thread(s)"
    print(table([f"one step, {sizes}: us", "nn", "module", "op", "nothing", "nn / module"], rows))
    if args.json:
        args.json.write_text(json.dumps(microseconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
