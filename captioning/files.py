"""Atomic writes, and reading that forgives nobody."""

import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from captioning.errors import CaptioningError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then move it to `path`.

    A failure (disk full, killed process) leaves the old file as it was; Ctrl-C waits for the new.
    """
    with interrupts_wait():
        _write_atomically(Path(path), write)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back: torch.save makes a RuntimeError of it, import torch swallows it."""
    handler, came = signal.getsignal(signal.SIGINT), []
    # Only the main thread sees Ctrl-C; what ignores it, or dies of it at once, still may.
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *call: came.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def _write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CaptioningError(f"cannot write {path}: {error.strerror}") from error
    try:
        os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp makes private files
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise CaptioningError(
                f"cannot write {path}: {error.strerror}; what was there before is untouched"
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_text(path: str | Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaptioningError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path}: expected text in UTF-8, got {error}") from error


def read_json(path: str | Path, hint: str = "") -> Any:
    """Parse a JSON file; say where it breaks off when it is truncated or damaged, and `hint`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptioningError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        told = f"{error}; {hint}" if hint else error
        raise CaptioningError(f"{path} is not valid JSON (truncated?): {told}") from error
