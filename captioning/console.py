"""Printing: each message on one line, whatever names and words contain."""

import re
import sys
from collections.abc import Iterable
from typing import Any

# Control characters, ends of lines and paragraphs, marks that change the direction of writing, and
# surrogates, which stand for the bytes of file names that are not UTF-8.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    """Text on one line, with characters escaped that a terminal would obey or refuse."""
    return _UNPRINTABLE.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    if "\udc80" <= found[0] <= "\udcff":  # a byte, by os.fsdecode
        return f"\\x{ord(found[0]) - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


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
    from tqdm import tqdm  # not at the top: __main__ says how to install it

    stream = sys.stderr if error else sys.stdout
    for line in lines if error or not _is_silent() else ():
        tqdm.write(printable(line), file=stream)
    stream.flush()  # somebody may read the address of `serve` from a pipe


def progress(work: Iterable[Any] | None, title: str | None, **more: Any) -> Any:
    """`tqdm(work)` on stderr; where that is no terminal, a line for each tenth of the work.

    Without a title it is not shown.
    """
    from tqdm import tqdm

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
