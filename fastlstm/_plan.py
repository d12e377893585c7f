"""`python -m fastlstm plan`: which engine a plain call would get, on any device."""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch

from fastlstm import _build, _choice

DTYPES = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of a call and of a device, of which a GPU's are an H100's by default."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    about = f"default here: {here}; cuda is an H100 unless the options below say otherwise"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=here, help=about)
    parser.add_argument("--input", type=_positive, help="input_size; default: that of --hidden")
    parser.add_argument("--layers", type=_positive, default=1, help="num_layers; default: 1")
    parser.add_argument("--packed", action="store_true", help="a PackedSequence")
    parser.add_argument("--inference", action="store_true", help="without gradients")
    parser.add_argument("--hidden", type=_positive, required=True, help="hidden_size")
    parser.add_argument("--batch", type=_positive, required=True, help="batch size")
    parser.add_argument("--steps", type=_positive, default=512, help="time steps; default: 512")
    dtypes = [*DTYPES, *DTYPES.values()]
    parser.add_argument("--dtype", choices=dtypes, default="fp32", help="default: fp32")
    parser.add_argument("--bidirectional", action="store_true", help="a layer of two directions")
    parser.add_argument(
        "--no-tf32", action="store_true", help="as torch.backends.cuda.matmul.allow_tf32 = False"
    )
    parser.add_argument("--sms", type=_positive, default=132, help="multiprocessors; default: 132")
    parser.add_argument("--threads", type=_positive, help="of a CPU; default: PyTorch's")
    parser.add_argument(
        "--capability", type=_positive, default=90, metavar="90", help="compute capability"
    )


def free_sms() -> tuple[int, str]:
    """How many multiprocessors FASTLSTM_FREE_SMS leaves to other streams, and a note of it."""
    free = _build.library.free_sms()
    return free, f", of which {free} are left free (FASTLSTM_FREE_SMS)" if free else ""


def run(args: argparse.Namespace) -> None:
    """Prints which engine "auto" chooses, why, and what the planner says of each walk."""
    stack = _choice.Stack(
        DTYPES.get(args.dtype, args.dtype),
        args.input or args.hidden,
        args.hidden,
        args.batch,
        args.steps,
        num_layers=args.layers,
        directions=2 if args.bidirectional else 1,
        packed=args.packed,
        training=not args.inference,
    )
    print(f"{stack.key()}\n")
    if args.device == "cpu":
        choice = _choice.of_stack(stack, torch.device("cpu"))
        _print_choice(choice, "tiled")
        if choice.engine == "auto":
            _print_cpu(stack, args.threads or torch.get_num_threads())
        return
    if reason := _build.unavailable_reason():
        raise SystemExit(f"the planner is in the extension, which is not used: {reason}")
    free, note = free_sms()
    if free >= args.sms:
        raise SystemExit(f"FASTLSTM_FREE_SMS={free} leaves none of {args.sms} SMs")
    gpu = _choice.Gpu(args.sms, args.capability, not args.no_tf32, free)
    print(f"sm_{args.capability} with {args.sms} SMs{note}")
    _print_choice(_choice.unmeasured(torch.device("cuda")), "stepwise")
    if _choice.fits(stack, gpu):
        print('\nThe engine "persistent" would divide a layer so:')
        _print_walks(_choice.divisions(stack, gpu))
    else:
        print('The engine "persistent" cannot serve it.')


def _print_choice(choice: _choice.Choice, ours: str) -> None:
    print(f"auto: {ours if choice.engine == 'auto' else choice.engine} ({choice.why})")


def _print_cpu(stack: _choice.Stack, threads: int) -> None:
    """The walks of the first layer on this processor."""
    names = "dtype input_size hidden_size batch steps directions training".split()
    task = {name: getattr(stack, name) for name in names}
    machine = {"threads": threads, "l2_cache_bytes": _build.library.build_info()["l2_cache_bytes"]}
    plan = functools.partial(_build.library.plan_cpu, **task, **machine)
    _print_walks([plan(backward=back) for back in ([False, True] if stack.training else [False])])
    print("\nTimes are predictions, in microseconds; none was measured.")


def _print_walks(plans: list[Any]) -> None:
    """What the planner says of forward, and of backward if there is one."""
    for name, plan in zip(("forward", "backward"), plans, strict=False):
        print(f"\n{name}")
        for key, value in plan.items():
            text = f"{value:.2f}" if isinstance(value, float) else value
            print(f"  {key.replace('_', ' '):<24}{text}")
