"""`python -m fastlstm plan`: the engine of a call without options, and why not the others."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from fastlstm import _build
from fastlstm.engine import engines
from fastlstm.engine.call import Call, stack_shapes

DTYPE_NAMES = ("float32", "float64", "bfloat16", "float16")
GPU_NOTE = """\
On a GPU calls with no option except lengths= run PyTorch's own LSTM (cuDNN), at the speed of
nn.LSTM. Other options and compiled graphs run our kernels, which have never run on a GPU.
`python -m fastlstm check` compares their results with the equations."""


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=here, help=f"default: {here}")
    parser.add_argument("--input", type=_size, help="input_size; default: that of --hidden")
    parser.add_argument("--hidden", type=_size, required=True, help="hidden_size")
    parser.add_argument("--batch", type=_size, required=True, help="batch size")
    parser.add_argument("--steps", type=_size, default=512, help="time steps; default: 512")
    parser.add_argument("--layers", type=_size, default=1, help="num_layers; default: 1")
    parser.add_argument("--bidirectional", action="store_true", help="layers of two directions")
    parser.add_argument("--inference", action="store_true", help="without gradients")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="float32", help="default: float32")


def run(args: argparse.Namespace) -> None:
    """Prints the engine of "auto", whether others serve the call, and the plan of our kernels."""
    call = _plain_call(args)
    with torch.set_grad_enabled(not args.inference):
        chosen = engines.choose(call)
        print(f"auto: {chosen.name}\n")
    for engine in engines.BY_NAME.values():
        if engine is not chosen:
            print(f"  {engine.name:<12}{engine.why_not(call) or 'serves the call too'}")
    if args.device == "cpu" and engines.BY_NAME["op"].why_not(call) is None:
        _print_cpu_plans(args, call)
    if args.device == "cuda":
        print(f"\n{GPU_NOTE}")


def _plain_call(args: argparse.Namespace) -> Call:
    """A call of these sizes. Its tensors are fake: they have a shape and no memory."""
    I, H, L, D = args.input or args.hidden, args.hidden, args.layers, 1 + args.bidirectional
    options: dict[str, Any] = {"dtype": getattr(torch, args.dtype), "device": args.device}
    with torch._subclasses.FakeTensorMode():
        weights = [torch.empty(*s, **options) for s in stack_shapes("bias", I, H, H, L, D)]
        return Call(torch.empty(args.steps, args.batch, I, **options), None, weights, "bias", L, D)


def _print_cpu_plans(args: argparse.Namespace, call: Call) -> None:
    """Prints how the first layer is computed: forward, and in training also backward."""
    sizes: dict[str, Any] = dict(dtype=args.dtype, batch=args.batch, steps=args.steps)
    sizes |= dict(input_size=call.input.size(-1), hidden_size=args.hidden)
    sizes |= dict(directions=call.num_directions, training=not args.inference)
    sizes["l2_cache_bytes"] = _build.library.build_info()["l2_cache_bytes"]
    for backward in [False] if args.inference else [False, True]:
        plan = _build.library.plan_cpu(**sizes, threads=torch.get_num_threads(), backward=backward)
        print(f"\n{'backward' if backward else 'forward'}")
        for key, value in plan.items():
            print(f"  {key.replace('_', ' '):<24}{value}")
