"""`python -m fastlstm`: show what was built, for which torch, and which engine runs when."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import torch

import fastlstm
from fastlstm import _build, _plan, functional
from fastlstm._call import DTYPES
from fastlstm.compare import main as compare_command

_ON_A_GPU = """\
  On a GPU a plain call runs PyTorch's own LSTM, at nn.LSTM's speed. A call with an option that
  nn.LSTM lacks runs our stepwise kernels; the persistent ones run by name or after fastlstm.tune
  has measured them."""


def devices() -> list[tuple[torch.device, str]]:
    """The devices that fastlstm knows, with a description of each."""
    cpu = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    found = [(torch.device("cpu"), cpu)]
    note = _plan.free_sms()[1] if _build.extension_available() else ""
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} SMs"
        found.append((torch.device("cuda", index), text + note))
    return found


def serving_engines(device: torch.device, dtype: torch.dtype) -> str:
    """Names the engines that serve a device and dtype, by making one step with each of them."""
    if not _build.has_kernels(device.type):
        return "torch, reference"
    x = torch.ones(1, 8, 32, device=device, dtype=dtype)
    weights = [torch.ones(128, 32, device=device, dtype=dtype)] * 2
    serving, refusals = [], []
    for engine in functional.ENGINES:
        if engine in ("auto", "torch", "reference"):
            continue
        try:
            torch.ops.fastlstm.lstm(x, x, x, weights, layout="", engine=engine)
            serving.append(engine)
        except RuntimeError as error:
            refusals.append(f"{engine}: {str(error).splitlines()[0]}")
    return ", ".join(serving) or f"none ({'; '.join(refusals)})"


def print_row(name: str, *cells: str) -> None:
    """Prints one row of a table."""
    print(f"  {name:<14} {' '.join(f'{cell:<20}' for cell in cells)}".rstrip())


def info() -> None:
    """Prints the build record, the devices, and which engine serves what."""
    print(f"fastlstm {fastlstm.__version__}, Python {platform.python_version()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"torch {torch.__version__} ({cuda})")

    print("\nExtension")
    reason = _build.unavailable_reason()
    if reason is None:
        print("  loaded")
    else:
        print(f"  not used: {reason}\n  to build it: {_build.rebuild_command()}")
    for key, value in _build.build_record().items():
        print_row(key, ", ".join(value) if isinstance(value, list) else str(value or "-"))

    print("\nDevices")
    found = devices()
    for device, text in found:
        print_row(str(device), text)
    if len(found) == 1:
        print_row("cuda", "none visible")

    forced = os.environ.get("FASTLSTM_ENGINE") or "auto"
    print("\nEngines (where there are several, the shape decides)")
    if forced != "auto":
        print(f"  FASTLSTM_ENGINE={forced} decides where the code does not")
    print_row("", *(str(dtype).removeprefix("torch.") for dtype in DTYPES))
    for device, _ in found:
        print_row(str(device), *(serving_engines(device, dtype) for dtype in DTYPES))
    if len(found) > 1:
        without = "  There are no CUDA kernels: on a GPU, calls with options take the reference."
        print(_ON_A_GPU if _build.has_kernels("cuda") else without)
    print("  zoneout_h and zoneout_c are computed by the reference on every device.")
    if _build.has_kernels("cpu"):
        built = _build.library.build_info()
        print(f"\nProducts on the CPU (L2 cache of {built['l2_cache_bytes'] >> 10} KiB a core)")
        print_row("", "tile", "instructions")
        for dtype, (instructions, rows, columns) in built["products"].items():
            print_row(dtype, f"{rows} x {columns}", instructions)


def main(argv: list[str] | None = None) -> None:
    """Runs a command."""
    about = "show what was built, for which torch, and which engine runs for which dtype"
    parser = argparse.ArgumentParser(prog="python -m fastlstm", description=about)
    version = f"fastlstm {fastlstm.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", dest="command")
    commands.add_parser("info", help="show the build record, the devices and the engines (default)")
    about = "show which engine a plain call would get, for any device"
    plan = commands.add_parser("plan", help=about, description=about)
    _plan.add_arguments(plan)
    about = "time a model with nn.LSTM, converted and prepacked"
    timed = commands.add_parser("compare", help=about, description=about)
    returns = "returns the model and the arguments of a call of it"
    timed.add_argument("function", metavar="package.module:function", help=returns)
    timed.add_argument("--training", action="store_true", help="time training steps")
    timed.add_argument("--seconds", type=float, default=1.0, help="for each way; default: 1")
    args = parser.parse_args(argv)
    if args.command == "plan":
        _plan.run(args)
    elif args.command == "compare":
        compare_command(args.function, args.training, args.seconds)
    else:
        info()


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head -1` has read enough; Python would flush once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
