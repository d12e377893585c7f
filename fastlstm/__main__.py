"""`python -m fastlstm`: show what was built, for which torch, and which engine runs when."""

from __future__ import annotations

import argparse
import platform
import warnings
from pathlib import Path

import torch

from fastlstm import _build, _plan
from fastlstm.check.check import main as check_command
from fastlstm.compare import main as compare_command
from fastlstm.engine import engines
from fastlstm.engine.call import Call


def devices() -> list[tuple[torch.device, str]]:
    """The devices that fastlstm knows, with a description of each."""
    cpu = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    described = [(torch.device("cpu"), cpu)]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} SMs"
        described.append((torch.device("cuda", index), text))
    return described


def _engine_row(device: torch.device) -> tuple[str, ...]:
    """The cells of a device's row: the choice of "auto" for 3 calls, then the usable engines."""
    with torch._subclasses.FakeTensorMode():
        weights = [torch.empty(4, 1, device=device)] * 2
        lengths = torch.empty(1, dtype=torch.int64, device=device)
        plain = Call(torch.empty(1, 1, 1, device=device), None, weights, "")
    serving = [name for name, engine in engines.BY_NAME.items() if not engine.why_not(plain)]
    calls = plain, plain._replace(lengths=lengths), plain._replace(return_cell_states=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table itself shows that kernels are missing
        chosen = [engines.default_engine(call).name for call in calls]
    return *chosen, ", ".join(name for name in serving if name != "op")


def _print_row(name: str, *cells: str) -> None:
    print(f"  {name:<14} {' '.join(f'{cell:<20}' for cell in cells)}".rstrip())


def info() -> None:
    """Prints the build record, the devices, and which engine serves what."""
    print(f"fastlstm {_build.VERSION}, Python {platform.python_version()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"torch {torch.__version__} ({cuda})")

    print("\nExtension")
    reason = _build.unavailable_reason()
    problem = f"not used: {reason}\n  to build it: {_build.rebuild_command()}"
    print(f"  {'loaded' if reason is None else problem}")
    for key, value in _build.build_record().items():
        _print_row(key, ", ".join(value) if isinstance(value, list) else str(value or "-"))

    print("\nDevices")
    described = devices()
    for device, text in described:
        _print_row(str(device), text)
    if len(described) == 1:
        _print_row("cuda", "none visible")

    print("\nEngines (op: one of fastlstm's engines, chosen by the sizes of the call)")
    if engines.DEFAULT != "auto":
        engines.check_engine(engines.DEFAULT)
        print(f"  FASTLSTM_ENGINE={engines.DEFAULT} is used if the code names no engine")
    _print_row("", "without options", "with lengths=", "most other options", "by name")
    for device, _ in described:
        _print_row(str(device), *_engine_row(device))
    print(f"\n{_plan.GPU_NOTE}")
    if _build.has_kernels("cpu"):
        build_info = _build.library.build_info()
        cache = f"L2 cache of {build_info['l2_cache_bytes'] >> 10} KiB a core"
        print(f"\nMatrix products on the CPU ({cache})")
        _print_row("", "tile", "instructions")
        for dtype, (instructions, rows, columns) in build_info["products"].items():
            _print_row(dtype, f"{rows} x {columns}", instructions)


def main(argv: list[str] | None = None) -> None:
    """Runs a command."""
    about = "show what was built, for which torch, and which engine runs when"
    parser = argparse.ArgumentParser(prog="python -m fastlstm", description=about)
    parser.add_argument("--version", action="version", version=f"fastlstm {_build.VERSION}")
    commands = parser.add_subparsers(title="commands", dest="command")
    commands.add_parser("info", help="show the build record, the devices and the engines (default)")
    about = "show which engine a call without options would get, for any device"
    _plan.add_arguments(commands.add_parser("plan", help=about, description=about))
    about = "time a model with nn.LSTM, converted and prepacked"
    compare_parser = commands.add_parser("compare", help=about, description=about)
    function_help = "returns the model, and the arguments with which to call it"
    compare_parser.add_argument("function", metavar="package.module:function", help=function_help)
    compare_parser.add_argument("--training", action="store_true", help="time training steps")
    compare_parser.add_argument("--seconds", type=float, default=1.0, help="per row; default: 1")
    save_help = "write the table into NAME.md, and a chart into NAME.svg"
    compare_parser.add_argument("--save", metavar="NAME", help=save_help)
    about = "compare each engine with the LSTM's equations, and time it next to nn.LSTM"
    check_parser = commands.add_parser("check", help=about, description=about)
    check_parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if usable")
    check_parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    check_parser.add_argument("--seconds", type=float, default=60.0, help="at most; default: 60")
    args = parser.parse_args(argv)
    if args.command == "plan":
        _plan.run(args)
    elif args.command == "compare":
        if not args.seconds >= 0:
            compare_parser.error(f"argument --seconds: expected 0 or more, got {args.seconds}")
        compare_command(args.function, training=args.training, seconds=args.seconds, save=args.save)
    elif args.command == "check":
        raise SystemExit(check_command(args.device, args.seconds, args.json))
    else:
        try:
            info()
        except ValueError as error:  # FASTLSTM_ENGINE names no engine
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
