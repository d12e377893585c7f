"""Atomic writes, and strict reading of text and JSON."""

import contextlib
import errno
import json
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from captioning.errors import CaptioningError


@contextlib.contextmanager
def writing(path: str | Path, note: str = "") -> Iterator[None]:
    """Turns an OSError while writing into a message that names the file."""
    try:
        yield
    except OSError as error:
        raise CaptioningError(f"cannot write {path}: {error.strerror or error}{note}") from error


def write_atomically(path: str | Path, write: Callable[[Any], Any]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then move it to `path`.

    A failure (disk full, killed process) leaves the old file unchanged; Ctrl-C waits for the new.
    What a killed process leaves has always the same name, so the next write replaces it.
    """
    with delay_interrupts(), writing(path, "; what was there before is untouched"):
        check_output(Path(path))
        path = Path(os.path.realpath(path))  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder may be gone
                temporary.unlink()
            raise


@contextlib.contextmanager
def delay_interrupts() -> Iterator[None]:
    """Delay Ctrl-C: torch.save turns it into a RuntimeError, import torch swallows it."""
    handler, received = signal.getsignal(signal.SIGINT), []
    # Only the main thread sees Ctrl-C; a process that ignores it, or has no handler, is left alone.
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *call: received.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def check_output(path: Path) -> None:
    """Refuse to replace a folder or a device, which root could."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file")


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    """Write data as JSON, atomically."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False))


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    # Surrogates, as in a file name that is not UTF-8, become the escapes that JSON reads.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def open_regular(path: str | Path, mode: Literal["rb", "r+b"] = "rb") -> BinaryIO:
    """Open a file, but no named pipe, which would block; a CaptioningError if it fails."""
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # open refuses folders
            raise OSError(errno.EINVAL, "Not a regular file")
        return open(path, mode)
    except OSError as error:
        raise CaptioningError(f"cannot read {path}: {error.strerror}") from error


def _read(path: str | Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path}: expected text in UTF-8, got {error}") from error


def read_json(path: str | Path, hint: str = "") -> Any:
    """Parse a JSON file; the message about a damaged one says where, and ends with `hint`."""
    try:
        return json.loads(_read(path).decode())
    except RecursionError as error:
        raise CaptioningError(f"{path}: expected JSON, got too many nested levels") from error
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        reason = f"{error}; {hint}" if hint else error
        raise CaptioningError(f"{path} is not valid JSON (truncated?): {reason}") from error
