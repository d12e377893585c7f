"""Printing: each message on one line, whatever names and words contain."""

import sys
from collections.abc import Iterable
from typing import Any


def printable(text: object) -> str:
    """Text on one line, with characters escaped that a terminal would obey or refuse."""
    escape = lambda c: c.encode("unicode_escape").decode()
    joins = "\u200d"  # emojis
    return "".join(c if c.isprintable() or c == joins else escape(c) for c in str(text))


def short(value: Any) -> str:
    """A value for a message, cut if it is long or deeply nested."""
    try:
        return repr(value)[:100]
    except (RecursionError, ValueError):  # ValueError: an integer of too many digits
        return f"a {type(value).__name__}"


def _is_silent() -> bool:
    """Whether this is one of several processes that train together, and not the first."""
    from torch import distributed as dist  # not at the top: `captioning --help` is quick

    return dist.is_available() and dist.is_initialized() and dist.get_rank() > 0


def say(*lines: object, error: bool = False) -> None:
    """Print lines to stdout or stderr, above progress bars; one of several processes prints."""
    stream = sys.stderr if error else sys.stdout
    tqdm = sys.modules.get("tqdm")  # if it was not imported, no progress bar can be on the screen
    write = tqdm.tqdm.write if tqdm else print
    for line in lines if error or not _is_silent() else ():
        write(printable(line), file=stream)
    stream.flush()  # somebody may read the address of `serve` from a pipe


def progress(work: Iterable[Any] | None, title: str | None, **more: Any) -> Any:
    """`tqdm(work)` on stderr; where that is no terminal, a line for each tenth of the work.

    Without a title it is not shown.
    """
    from tqdm import tqdm  # not at the top: __main__ says how to install it

    class Lines(tqdm):  # type: ignore[misc]
        tenths = 0

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            done = 10 * self.n // max(1, self.total or 1)
            if done > self.tenths and msg is None:
                self.tenths = done
                print(self, file=self.fp, flush=True)

        def clear(self, *_: Any, **__: Any) -> None:
            """There is no bar to remove."""

    more["disable"] = title is None or _is_silent()
    if sys.stderr.isatty():
        return tqdm(work, title, **more)
    line = "{desc}: {n_fmt}/{total_fmt} in {elapsed}, {rate_fmt}{postfix}"
    options = {"bar_format": line, "leave": False, "mininterval": 0, "miniters": 1}
    return Lines(work, title, **options, **more)
