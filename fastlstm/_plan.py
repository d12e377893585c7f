"""`python -m fastlstm plan`: what the CUDA planner would choose, for any device."""

from __future__ import annotations

import argparse

from fastlstm import _build

DTYPES = {
    "fp32": "float32",
    "fp64": "float64",
    "bf16": "bfloat16",
    "fp16": "float16",
}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _dtype(text: str) -> str:
    name = DTYPES.get(text, text)
    if name not in DTYPES.values():
        names = ", ".join([*DTYPES, *DTYPES.values()])
        raise argparse.ArgumentTypeError(f"expected one of {names}, got {text}")
    return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of a layer and of a device. The device defaults to an H100."""
    parser.add_argument("--hidden", type=_positive, required=True, help="hidden_size")
    parser.add_argument("--batch", type=_positive, required=True, help="batch size")
    parser.add_argument("--steps", type=_positive, default=512, help="time steps; default: 512")
    parser.add_argument("--dtype", type=_dtype, default="float32", help="default: fp32")
    parser.add_argument("--bidirectional", action="store_true", help="a layer of two directions")
    parser.add_argument(
        "--no-tf32", action="store_true", help="as torch.backends.cudnn.allow_tf32 = False"
    )
    parser.add_argument("--sms", type=_positive, default=132, help="multiprocessors; default: 132")
    parser.add_argument(
        "--capability", type=_positive, default=90, metavar="90", help="compute capability"
    )


def free_sms() -> int:
    """How many multiprocessors FASTLSTM_FREE_SMS leaves to other streams."""
    try:
        count: int = _build.library.free_sms()
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return count


def free_sms_note(free: int) -> str:
    return f", of which {free} are left free (FASTLSTM_FREE_SMS)" if free else ""


def run(args: argparse.Namespace) -> None:
    """Prints engine, division of the work and predicted time per step, forward and backward."""
    if reason := _build.unavailable_reason():
        raise SystemExit(f"the planner is in the extension, which is not used: {reason}")
    free = free_sms()
    if free >= args.sms:
        raise SystemExit(f"FASTLSTM_FREE_SMS={free} leaves none of {args.sms} SMs")
    print(
        f"hidden_size {args.hidden}, batch {args.batch}, {args.steps} steps, {args.dtype}, "
        f"sm_{args.capability} with {args.sms} SMs{free_sms_note(free)}"
    )
    for backward in (False, True):
        plan = _build.library.plan_cuda(
            args.hidden,
            args.batch,
            args.steps,
            2 if args.bidirectional else 1,
            args.dtype,
            not args.no_tf32,
            backward,
            args.sms - free,
            args.capability,
        )
        print(f"\n{'backward' if backward else 'forward'}: {plan['engine']}")
        if plan["engine"] == "persistent":
            print(
                f"  {plan['blocks']} blocks: {plan['directions']} direction(s) x "
                f"{plan['row_groups']} row groups x {plan['unit_blocks']} parts of "
                f"{plan['units']} units\n"
                f"  {plan['group_rows']} rows a group, {plan['row_tile']} at a time\n"
                f"  {plan['shared_bytes']:,} of {plan['shared_bytes_available']:,} bytes of shared "
                f"memory a block\n"
                f"  {plan['step_us']:.2f} us a step, stepwise {plan['stepwise_step_us']:.2f} us"
            )
        else:
            print(f"  {plan['stepwise_step_us']:.2f} us a step")
    print("\nTimes are predictions from data sheets; none was measured.")
