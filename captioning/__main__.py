"""The command line: ``python -m captioning <command>``, installed as ``captioning``."""

import argparse
import sys
from pathlib import Path

from captioning.errors import CaptioningError


def add_demo(commands) -> None:  # noqa: ANN001
    parser = commands.add_parser(
        "demo",
        help="train on drawn pictures, caption others, write a report (minutes on a CPU)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lstm", choices=("fastlstm", "torch", "reference"), default="fastlstm")
    parser.add_argument("--fresh", action="store_true", help="train again even if it was done")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    from captioning.demo import demo

    demo(args.output, args.epochs, args.lstm, args.fresh, args.seed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="captioning", description="Image captioning on an LSTM.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_demo(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (CaptioningError, OSError) as error:
        print(f"captioning: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncaptioning: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
