"""The pictures uploaded to `captioning serve`, in a folder that stays small."""

import math
import secrets
import shutil
import threading
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from captioning.config import setting
from captioning.data import EXTENSIONS
from captioning.errors import CaptioningError

MAX_FILES = 1000
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Limits:
    """Limits of uploads."""

    max_megabytes: float = setting("largest upload", 20.0)
    max_megapixels: float = setting("largest picture", 64.0)
    keep_megabytes: float = setting(
        "size of all uploads that are kept (the oldest are deleted first, and all after an hour); "
        "the same again for uploads that are arriving",
        200.0,
    )

    def __post_init__(self) -> None:
        for field, value in zip(fields(self), astuple(self), strict=True):
            if not 1e-6 <= value < math.inf:
                raise CaptioningError(f"{field.name}: expected > 0, got {value}")
        if self.keep_megabytes < self.max_megabytes:
            raise CaptioningError(
                f"keep_megabytes: expected at least max_megabytes, {self.max_megabytes}, "
                f"got {self.keep_megabytes}"
            )

    @property
    def upload_bytes(self) -> int:
        return int(self.max_megabytes * 1e6)

    @property
    def pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    @property
    def kept_bytes(self) -> int:
        return int(self.keep_megabytes * 1e6)


class Uploads:
    """Keeps files for an hour, or until newer files need the space.

    Args:
        folder: is created, and holds nothing else.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir()
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = threading.Lock()

    def keep(self, file: BinaryIO, size: int, name: str) -> Path:
        """Copy a file of `size` bytes under a name that cannot be guessed.

        Args:
            file: is read from its current position.
            size: its length.
            name: its old name, of which only a picture's extension is kept.

        Raises:
            OSError: the disk is full; no part of the file is left.
        """
        suffix = Path(name).suffix.lower()
        path = self.folder / (secrets.token_hex(16) + (suffix if suffix in EXTENSIONS else ""))
        with self._lock:
            self._sweep(size, MAX_FILES - 1)
            try:
                with path.open("wb") as out:
                    shutil.copyfileobj(file, out)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return path

    def __contains__(self, path: str) -> bool:
        """Whether a path is that of a kept file."""
        return path in map(str, self.folder.iterdir())

    def sweep(self) -> None:
        """Delete files older than an hour."""
        with self._lock:
            self._sweep(0, MAX_FILES)

    def _sweep(self, size: int, max_files: int) -> None:
        """Delete the oldest, so that `size` more bytes fit."""
        kept = sorted(((p.stat().st_mtime, p) for p in self.folder.iterdir()), reverse=True)
        for i, (modified, path) in enumerate(kept):
            size += path.stat().st_size
            old = time.time() - modified > MAX_SECONDS
            if old or size > self.max_bytes or i >= max_files:
                path.unlink()
