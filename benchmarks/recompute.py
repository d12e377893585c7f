"""What `recompute=True` saves and what it costs, as a Markdown table.

    python benchmarks/recompute.py
    python benchmarks/recompute.py --write docs/howto/memory.md

One training step (forward, backward, gradients of input and weights) with and without it, called in
alternation in one process. *Saved* is what the graph holds between forward and backward beyond
input and weights; *peak* the most that torch's allocator hands out during the step; *time* is the
median ratio with its quartiles. The exit status is 1 if it saves less than 2 times or costs 1.35
times or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from markdown import publish, table
from memory import allocated
from timing import CLOCKS, Effort, alternate, settle_malloc

import fastlstm

# steps, batch, input_size, hidden_size, layers, dtype
CASES = [
    (20, 128, 256, 512, 1, torch.float32),
    (100, 64, 128, 256, 1, torch.float32),
    (400, 16, 256, 256, 2, torch.float32),
    (100, 64, 128, 256, 1, torch.bfloat16),
    (100, 64, 128, 256, 1, torch.float64),
]
LEAST_SAVING, MOST_TIME = 2.0, 1.35


def training_step(lstm: fastlstm.LSTM, x: torch.Tensor) -> Callable[[], object]:
    leaves = [x, *lstm.parameters()]
    grad = torch.randn_like(lstm(x)[0].detach())
    return lambda: torch.autograd.grad(lstm(x)[0], leaves, grad)


def saved_bytes(lstm: fastlstm.LSTM, x: torch.Tensor) -> int:
    """Memory that the graph of one forward pass holds, beyond the input and the weights."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lstm(x)
    for leaf in (x, *lstm.parameters()):
        saved.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(saved.values())


def measure(case: tuple[Any, ...], device: str, effort: Effort) -> tuple[list[str], bool]:
    """A row of the table, and whether both limits are met."""
    steps, batch, input_size, hidden_size, layers, dtype = case
    torch.manual_seed(0)
    plain = fastlstm.LSTM(input_size, hidden_size, layers, device=device, dtype=dtype)
    sparing = fastlstm.LSTM(
        input_size, hidden_size, layers, device=device, dtype=dtype, recompute=True
    )
    sparing.load_state_dict(plain.state_dict())
    x = torch.randn(steps, batch, input_size, device=device, dtype=dtype, requires_grad=True)
    saving = saved_bytes(plain, x) / saved_bytes(sparing, x)
    both = training_step(sparing, x), training_step(plain, x)
    pairs = alternate(*both, CLOCKS[device], effort)
    # The profiler slows what runs after it, so memory comes last; on a GPU it sees nothing.
    peak = "-" if device == "cuda" else f"{allocated(both[1]) / allocated(both[0]):.2f}"
    low, high = pairs.quartiles
    size = f"{str(dtype).removeprefix('torch.')}, T {steps}, B {batch}, I {input_size}, "
    row = [f"{size}H {hidden_size}, {layers} layer{'s' * (layers > 1)}", f"{saving:.2f}", peak]
    row.append(f"{pairs.ratio:.2f} ({low:.2f} to {high:.2f})")
    return row, saving >= LEAST_SAVING and pairs.ratio < MOST_TIME


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=tuple(CLOCKS), default="cpu")
    parser.add_argument("--seconds", type=float, default=4, help="of a case (default: 4)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="into its section `recompute`")
    args = parser.parse_args()
    settle_malloc()
    rows = [measure(case, args.device, Effort(args.seconds)) for case in CASES]
    head = ["", "saved, without / with", "peak, without / with", "time, with / without"]
    text = f"{machine.title(args.device)}.\n\n{table(head, [row for row, _ in rows])}"
    publish(text, args.write, "recompute")
    sys.exit(not all(met for _, met in rows))


if __name__ == "__main__":
    main()
