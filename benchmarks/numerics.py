"""Print the error of every engine, and of nn.LSTM, against float64, as Markdown.

    python benchmarks/numerics.py
    python benchmarks/numerics.py --write docs/reference/figures.md

The error of a tensor is the root mean square of its deviation over the root mean square of the
truth. The truth is nn.LSTM in float64 on the same tensors, which were rounded to the dtype before.
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
from fastlstm.__main__ import engines_of
from fastlstm.functional import ENGINES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, T, I, H)
SHAPE = (32, 64, 128, 256)
# What is printed.
TENSORS = ("output", *(f"gradient of {n}" for n in ("input", "weight_hh_l0", "bias_ih_l0")))


def results(module: nn.Module, leaves: list[Tensor], given: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of everything, by name."""
    x, h_0, c_0 = leaves = [t.detach().clone().requires_grad_() for t in leaves]
    output, (h_n, c_n) = module(x, (h_0, c_0))
    outputs = [output, h_n, c_n]
    # The gradient of bias_hh is that of bias_ih.
    weights = {n: p for n, p in module.named_parameters() if not n.startswith("bias_hh")}
    gradients = torch.autograd.grad(outputs, [*leaves, *weights.values()], given)
    names = ["output", "h_n", "c_n"]
    names += [f"gradient of {n}" for n in ("input", "h_0", "c_0", *weights)]
    return dict(zip(names, [t.detach() for t in [*outputs, *gradients]], strict=True))


def errors(
    dtype: torch.dtype, device: str, shape: tuple[int, int, int, int], engines: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The relative error of each tensor, for nn.LSTM and then for each engine."""
    batch, steps, input_size, hidden_size = shape
    torch.manual_seed(0)
    exact = nn.LSTM(input_size, hidden_size).to(device, dtype).double()
    shapes = [(steps, batch, input_size), *[(1, batch, hidden_size)] * 2]
    shapes += [(steps, batch, hidden_size), *[(1, batch, hidden_size)] * 2]
    tensors = [torch.randn(s).to(device, dtype) for s in shapes]

    def found(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        module.to(device, dtype).load_state_dict(exact.state_dict())
        rounded = [t.to(dtype) for t in tensors]
        return results(module, rounded[:3], rounded[3:])

    truth = found(exact, torch.float64)

    def error(module: nn.Module) -> dict[str, float]:
        return {
            name: ((t.double() - truth[name]).norm() / truth[name].norm()).item()
            for name, t in found(module, dtype).items()
        }

    by_name = {"nn.LSTM": error(nn.LSTM(input_size, hidden_size))}
    for engine in engines:
        module = fastlstm.LSTM(input_size, hidden_size)
        module.engine = engine
        by_name[engine] = error(module)
    return by_name


def report(device: str) -> str:
    parts = [f"{machine.line(machine.describe(device))}; (B, T, I, H) = {SHAPE}."]
    for dtype in DTYPES:
        serving = engines_of(torch.device(device))[2].split(", ")
        found = errors(dtype, device, SHAPE, [e for e in ENGINES if e in serving and e != "torch"])
        rows = [
            [tensor, *(f"{by_tensor[tensor]:.1e}" for by_tensor in found.values())]
            for tensor in TENSORS
        ]
        parts.append(table([str(dtype).removeprefix("torch."), *found], rows))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    args = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False
    text = report(args.device)
    publish(text, args.write, "numerics")


if __name__ == "__main__":
    main()
