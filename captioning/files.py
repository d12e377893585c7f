"""Atomic writes, and reading that forgives nobody."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from captioning.errors import CaptioningError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then move it to `path`.

    A failure (disk full, killed process) leaves the old file as it was.
    """
    path = Path(path)
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


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; say where it breaks off when it is truncated or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptioningError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CaptioningError(f"{path} is not valid JSON (truncated?): {error}") from error
