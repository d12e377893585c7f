"""What recurrent dropout and zoneout cost in training, as a Markdown table.

    python benchmarks/regularizers.py
    python benchmarks/regularizers.py --write docs/howto/regularizers.md

Ratios of the times of a training step (forward, backward, gradients of input and weights), both
called in alternation in one process: a loop over nn.LSTMCell with the same masks, and the stepwise
engine, to fastlstm (above 1 fastlstm is faster); and fastlstm to itself without the masks. Drawing
them is part of every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from markdown import publish, table
from timing import CLOCKS, Effort, alternate, settle_malloc
from torch import Tensor, nn

import fastlstm

SHAPES = [(20, 128, 256, 512), (100, 64, 128, 256), (35, 32, 200, 200)]  # T, B, I, H
RATES: dict[str, dict[str, Any]] = {
    "recurrent dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout_h": 0.1, "zoneout_c": 0.3},
}


class CellLoop(nn.Module):
    """What one writes without fastlstm."""

    def __init__(self, lstm: fastlstm.LSTM) -> None:
        super().__init__()
        self.rates = (lstm.recurrent_dropout, lstm.zoneout_h, lstm.zoneout_c)
        self.cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size, device=lstm.weight_hh_l0.device)
        for name, weight in self.cell.named_parameters():
            weight.data.copy_(lstm.get_parameter(f"{name}_l0"))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        dropout, zoneout_h, zoneout_c = self.rates
        h = c = x.new_zeros(x.size(1), self.cell.hidden_size)
        mask = F.dropout(torch.ones_like(h), dropout)
        outputs = []
        for x_t in x:
            new_h, new_c = self.cell(x_t, (h * mask if dropout else h, c))
            h = torch.where(torch.rand_like(h) < zoneout_h, h, new_h) if zoneout_h else new_h
            c = torch.where(torch.rand_like(c) < zoneout_c, c, new_c) if zoneout_c else new_c
            outputs.append(h)
        return (torch.stack(outputs),)


def training_step(module: nn.Module, x: Tensor) -> Callable[[], object]:
    leaves = [x, *module.parameters()]
    grad = torch.randn_like(module(x)[0].detach())
    return lambda: torch.autograd.grad(module(x)[0], leaves, grad)


def measure(shape: tuple[int, ...], what: str, device: str, effort: Effort) -> list[str]:
    steps, batch, input_size, hidden_size = shape
    torch.manual_seed(0)
    rates = RATES[what]
    lstm = fastlstm.LSTM(input_size, hidden_size, **rates, device=device)
    plain = fastlstm.LSTM(input_size, hidden_size, device=device)
    stepwise = fastlstm.LSTM(input_size, hidden_size, **rates, device=device)
    stepwise.engine = "stepwise"
    x = torch.randn(steps, batch, input_size, device=device, requires_grad=True)
    ours = training_step(lstm, x)
    pairs = [
        (training_step(CellLoop(lstm), x), ours),
        (training_step(stepwise, x), ours),
        (ours, training_step(plain, x)),
    ]
    ratios = [alternate(*pair, CLOCKS[device], effort).ratio for pair in pairs]
    case = f"{what}, T {steps}, B {batch}, I {input_size}, H {hidden_size}"
    return [case, *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=tuple(CLOCKS), default="cpu")
    parser.add_argument("--seconds", type=float, default=3, help="of a ratio (default: 3)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="into its section regularizers")
    args = parser.parse_args()
    settle_malloc()
    effort = Effort(args.seconds)
    rows = [measure(shape, what, args.device, effort) for what in RATES for shape in SHAPES]
    head = ["", "nn.LSTMCell / fastlstm", "stepwise / fastlstm", "with / without"]
    text = f"{machine.title(args.device)}.\n\n{table(head, rows)}"
    publish(text, args.write, "regularizers")


if __name__ == "__main__":
    main()
