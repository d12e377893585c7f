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

EPILOG = "begin with:  captioning demo\nmore:        captioning COMMAND --help"


class Parser(argparse.ArgumentParser):
    """A parser whose error is two lines: what is wrong, and how to print the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n({self.prog} --help says more)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and reports errors; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what cannot be encoded
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # Python's own flush at exit could not report an error
    except ModuleNotFoundError as error:
        name = (error.name or "captioning").split(".")[0]
        if name in ("captioning", "fastlstm"):
            raise  # a module of this repository is missing, which pip cannot install
        return fail(f"needs {name}: pip install './captioning[serve]', in a clone of fastlstm")
    except BrokenPipeError:  # the reader of the output has ended, as in `| head -1`
        sys.stdout = None  # otherwise Python would flush stdout at exit, and fail again
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
    """Prints an error to stderr; returns the exit status."""
    say(*f"captioning: {message}".splitlines(), error=True)
    return 1


def run(argv: list[str]) -> int:
    """Parses the arguments and runs the command; returns the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    text = "Captions for pictures, by a frozen CNN and an LSTM."
    parser = Parser("captioning", description=text, epilog=EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"captioning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, description=text, formatter_class=formatter)
    name, *arguments = argv or ["--help"]
    if name not in COMMANDS:
        parser.parse_args([name, *arguments])  # exits, with the help, the version or an error
        return 0
    module = importlib.import_module(f"captioning.commands.{name}")
    command = commands.choices[name]
    module.add(command)
    # `parse_intermixed_args` allows options between the checkpoint and the pictures. But if there
    # are no arguments, `parse_args` has the better error: it names all that are required.
    parse = command.parse_intermixed_args if arguments else command.parse_args
    return module.run(parse(arguments)) or 0


if __name__ == "__main__":
    sys.exit(main())
