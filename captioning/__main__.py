"""The command line: ``python -m captioning <command>``, installed as ``captioning``."""

import argparse
import importlib
import io
import sys
from typing import NoReturn

from captioning import __version__
from captioning.commands import COMMANDS
from captioning.console import printable, say
from captioning.errors import CaptioningError

EPILOG = """begin with:  captioning demo
more:        captioning COMMAND --help
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, with the way to the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n({self.prog} --help says more)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs a command, and reports what fails; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes what its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # while a failure can still be reported
    except ModuleNotFoundError as error:
        name = (error.name or "captioning").split(".")[0]
        if name in ("captioning", "fastlstm"):
            raise  # part of this package: pip would not help
        return fail(f"needs {name}: pip install './captioning[serve]', in a clone of fastlstm")
    except BrokenPipeError:  # `| head -1` has read enough
        sys.stdout = None  # Python would flush it once more
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}")
    except CaptioningError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("\ncaptioning: stopped", file=sys.stderr)
        return 130


def fail(message: str) -> int:
    """Prints an error to stderr, and returns the exit status."""
    say(*f"captioning: {message}".splitlines(), error=True)
    return 1


def run(argv: list[str]) -> int:
    """Parses the arguments and runs the command; returns the exit status."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="captioning",
        description="Captions for pictures, by a frozen CNN and an LSTM.",
        epilog=EPILOG,
        formatter_class=plain,
    )
    parser.add_argument("--version", action="version", version=f"captioning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, description=text, formatter_class=plain)
    if argv and argv[0] in COMMANDS:
        module = importlib.import_module(f"captioning.commands.{argv[0]}")
        command = commands.choices[argv[0]]
        module.add(command)
        # Intermixed: options may stand between the checkpoint and the pictures. But without any
        # argument `parse_args` names all that are required, and not the options only.
        parse = command.parse_intermixed_args if argv[1:] else command.parse_args
        return module.run(parse(argv[1:])) or 0
    parser.parse_args(argv or ["--help"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
