"""The command line: ``python -m captioning <command>``, installed as ``captioning``."""

import argparse
import importlib
import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from captioning.commands import COMMANDS
from captioning.console import printable
from captioning.errors import CaptioningError
from captioning.files import delay_interrupts

EPILOG = """begin with:  captioning demo
more:        captioning COMMAND --help
"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Adds defaults to the help, and names values PATH, N or X by their type."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        value = action.default
        if value is None or value is False or value == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (%(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        named: dict[object, str] = {Path: "PATH", int: "N", float: "X"}
        return named.get(action.type) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, with the way to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n({self.prog} --help says more)\n")


def module_of(command: str) -> ModuleType:
    """The file of a command."""
    with delay_interrupts():
        return importlib.import_module(f"captioning.commands.{command.replace('-', '_')}")


def main(argv: list[str] | None = None) -> int:
    """Runs a command, and reports what fails; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes what its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv)
        finally:
            flush_output()
    except ModuleNotFoundError as error:
        name = (error.name or "captioning").split(".")[0]
        if name in ("captioning", "fastlstm"):
            raise  # part of this package: pip would not help
        return fail(f"needs {name}: pip install ./captioning")
    except BrokenPipeError:
        return 1  # `| head -1` has read enough
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}")
    except CaptioningError as error:
        return fail(*str(error).splitlines())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            return fail(f"out of memory {str(error).partition(chr(10))[0]}".rstrip())
        raise
    except KeyboardInterrupt:
        print("\ncaptioning: stopped", file=sys.stderr)
        return 130


# PyTorch's messages; only CUDA's error has a class of its own.
_OUT_OF_MEMORY = re.compile("can't allocate memory|[Oo]ut of memory|bad_alloc|Storage size calcul")


def fail(*lines: str) -> int:
    """Prints an error to stderr, and returns the exit status."""
    for i, line in enumerate(lines):
        print(f"captioning: {printable(line)}" if i == 0 else printable(line), file=sys.stderr)
    return 1


def flush_output() -> None:
    """Flush stdout while a failure can still be reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        error.filename = "output"  # which `main` names
        raise


def run(argv: list[str]) -> int:
    """Parses the arguments and runs the command; returns the exit status."""
    parser = Parser(
        prog="captioning",
        description="Captions for pictures, by a frozen CNN and an LSTM.",
        epilog=EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, description=text, formatter_class=Help)
    if argv and argv[0] in COMMANDS:
        module, command = module_of(argv[0]), commands.choices[argv[0]]
        module.add(command)
        # Intermixed: options may stand between the checkpoint and the pictures.
        return module.run(command.parse_intermixed_args(argv[1:])) or 0
    if parser.parse_args(argv or ["--help"]).version:
        from captioning import __version__

        print(f"captioning {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
