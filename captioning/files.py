"""Reads and writes files. A full disk or a killed process does not damage the old file."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioning.errors import CaptioningError


def write_atomically(path: str | Path, write: Callable[[Any], Any]) -> None:
    """Calls ``write(file)`` on a temporary file next to `path`, and then moves it to `path`.

    The temporary file is in a new folder, which no other writer of `path` has. The folder is
    removed even after an error.
    """
    path = Path(os.path.realpath(path))  # so that a symbolic link is not replaced by a file
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".captioning-", dir=path.parent) as folder:
        temporary = Path(folder, "file")
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def check_output(*paths: Path | None) -> None:
    """Refuses files that cannot be written, such as folders and devices, before the work begins."""
    for path in filter(None, paths):
        if path.exists() and not path.is_file():
            raise CaptioningError(f"cannot write {path}: it is a folder or a device")
        if any(parent.is_file() for parent in path.parents):
            raise CaptioningError(f"cannot write {path}: a part of the path is a file")


def check_folder(path: Path) -> None:
    """Refuses an output folder whose path, or a part of it, is a file."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise CaptioningError(f"--output {path}: expected a folder, but {part} is a file")


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    """Writes data as JSON; see `write_atomically`."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False))


def write_text(path: str | Path, text: str) -> None:
    """Writes text as UTF-8; see `write_atomically`."""
    # `text` may have a file name that is not UTF-8. Python represents its bytes by surrogates,
    # which UTF-8 cannot encode. They are written as escapes such as \udc80, which JSON can read.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark."""
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path}: expected text in UTF-8, got {error}") from error


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; the error for a damaged file says where the damage is."""
    try:
        return json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise CaptioningError(f"{path} is not valid JSON (truncated?): {error}") from error
