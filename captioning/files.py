"""Files: written whole and moved into their place, and read strictly."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioning.errors import CaptioningError


def write_atomically(path: str | Path, write: Callable[[Any], Any]) -> None:
    """Call ``write(file)`` on a temporary file beside `path`, then move it to `path`.

    A failure (disk full, killed process) leaves the old file unchanged.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(*paths: Path | None) -> None:
    """Refuse to replace a folder or a device; commands ask before the work."""
    for path in filter(None, paths):
        below_file = any(parent.is_file() for parent in path.parents)
        if below_file or (path.exists() and not path.is_file()):
            raise CaptioningError(f"cannot write {path}: it is no regular file")


def check_folder(path: Path) -> None:
    """Refuse a folder to write to whose path leads to a file or through one."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise CaptioningError(f"--output: expected a folder, got {path}; {place} is a file")


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    """Write data as JSON, atomically."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False))


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    # Surrogates, as in a file name that is not UTF-8, become the escapes that JSON reads.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    try:
        return Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path}: expected text in UTF-8, got {error}") from error


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; the message about a damaged one says where."""
    try:
        return json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise CaptioningError(f"{path} is not valid JSON (truncated?): {error}") from error
