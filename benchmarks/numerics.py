"""Print the errors of nn.LSTM and of fastlstm.LSTM against float64, as Markdown.

    python benchmarks/numerics.py
    python benchmarks/numerics.py --write docs/reference/figures.md

The error of a tensor is the root mean square of its deviation from the exact tensor, divided by the
root mean square of the exact tensor. The exact tensors are results of nn.LSTM in float64, on the
same input and weights, which are rounded to the dtype first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import machine
import torch
from markdown import publish, table
from torch import Tensor, nn

import fastlstm
from fastlstm.functional import ENGINES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BATCH, STEPS, INPUT, HIDDEN = 32, 64, 128, 256
WEIGHTS = ("weight_hh_l0", "bias_ih_l0")
NAMES = ("output", *(f"gradient of {name}" for name in ("input", *WEIGHTS)))


def results(module: nn.Module, x: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Returns the tensors that `NAMES` lists, for x [T,B,I] and grad_output [T,B,H]."""
    x = x.detach().clone().requires_grad_()
    output, _ = module(x)
    leaves = [x, *map(module.get_parameter, WEIGHTS)]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def errors(dtype: torch.dtype, device: str, engine: str) -> list[list[float]]:
    """Returns the relative errors of nn.LSTM and of fastlstm.LSTM, in the order of `NAMES`."""
    torch.manual_seed(0)
    ours = fastlstm.LSTM(INPUT, HIDDEN)
    ours.engine = engine
    exact = nn.LSTM(INPUT, HIDDEN).to(device, dtype).double()
    tensors = [torch.randn(STEPS, BATCH, size).to(device, dtype) for size in (INPUT, HIDDEN)]
    truth = results(exact, *(t.double() for t in tensors))

    def error(module: nn.Module) -> list[float]:
        module.to(device, dtype).load_state_dict(exact.state_dict())
        pairs = zip(results(module, *tensors), truth, strict=True)
        return [((result - true).norm() / true.norm()).item() for result, true in pairs]

    return [error(nn.LSTM(INPUT, HIDDEN)), error(ours)]


def report(device: str, engine: str) -> str:
    """Returns the table of errors in Markdown, below a line that describes the machine."""
    columns, header = [], ["relative error"]
    for dtype in DTYPES:
        columns += errors(dtype, device, engine)
        header += [f"{str(dtype).removeprefix('torch.')}: nn.LSTM", "fastlstm.LSTM"]
    rows = [
        [name, *(f"{e:.1e}" for e in each)] for name, *each in zip(NAMES, *columns, strict=True)
    ]
    where = machine.line(machine.describe(device))
    shape = f"(B, T, I, H) = ({BATCH}, {STEPS}, {INPUT}, {HIDDEN})"
    return f"{where}; {shape}.\n\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default=default)
    add("--engine", choices=ENGINES, default="auto", help="engine of fastlstm.LSTM; default: auto")
    add("--write", type=Path, metavar="FILE.md", help="also put the table into this file")
    args = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False
    publish(report(args.device, args.engine), args.write, "numerics")


if __name__ == "__main__":
    main()
