"""Prints messages and the progress of work. A message is on one line, whatever it contains."""

import sys
from collections.abc import Iterable
from typing import Any


def printable(text: object) -> str:
    """Escapes control characters and others that cannot be printed, such as line breaks."""
    escape = lambda c: c.encode("unicode_escape").decode()
    joiner = "\u200d"  # joins several emoji into one
    return "".join(c if c.isprintable() or c == joiner else escape(c) for c in str(text))


def abbreviate(value: Any) -> str:
    """Returns a value as text for a message: at most 100 characters of its repr, or its type."""
    try:
        return repr(value)[:100]
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        return f"a {type(value).__name__}"


def _is_silent() -> bool:
    """Returns True in all processes that train together, except the first."""
    from torch import distributed as dist  # not at the top, because its import takes seconds

    return dist.is_available() and dist.is_initialized() and dist.get_rank() > 0


def say(*lines: object, error: bool = False) -> None:
    """Prints above a progress bar: errors to stderr, other lines to stdout (only in process 0)."""
    stream = sys.stderr if error else sys.stdout
    tqdm = sys.modules.get("tqdm")  # without it there is no progress bar
    write = tqdm.tqdm.write if tqdm else print
    for line in lines if error or not _is_silent() else ():
        write(printable(line), file=stream)
    stream.flush()  # a program may wait for the line, such as the address that `serve` prints


def progress(work: Iterable[Any] | None, title: str | None, **options: Any) -> Any:
    """Returns `tqdm(work, title, **options)`, which shows the progress of work on stderr.

    If stderr is not a terminal, a line is printed after each tenth of the work. Without a title,
    and in all but the first of several processes, nothing is shown.
    """
    from tqdm import tqdm  # not at the top, so that __main__ can report that it is missing

    class ProgressLines(tqdm):  # type: ignore[misc]
        tenths = 0  # how many tenths of the work were done at the last line

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Prints a line if another tenth is done; tqdm calls this after each item."""
            done = 10 * self.n // max(1, self.total or 1)
            if done > self.tenths and msg is None:
                self.tenths = done
                print(self, file=self.fp, flush=True)

        def clear(self, *_: Any, **__: Any) -> None:
            """Does nothing, because there is no bar to remove."""

    options["disable"] = title is None or _is_silent()
    if sys.stderr.isatty():
        return tqdm(work, title, **options)
    line = "{desc}: {n_fmt}/{total_fmt} in {elapsed}, {rate_fmt}{postfix}"
    options |= {"bar_format": line, "leave": False, "mininterval": 0, "miniters": 1}
    return ProgressLines(work, title, **options)
