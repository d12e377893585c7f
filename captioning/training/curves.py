"""The curves of training for TensorBoard."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captioning.console import say
from captioning.files import writing


class Curves:
    """A SummaryWriter that fails as the other writers here do, on a full disk for instance.

    Args:
        writer: a torch.utils.tensorboard.SummaryWriter.
        folder: where it writes.
    """

    def __init__(self, writer: Any, folder: Path) -> None:
        self.writer, self.folder = writer, folder

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            with writing(self.folder):
                getattr(self.writer, name)(*arguments)

        return call


def open_curves(folder: Path, progress: bool) -> Curves | None:
    """Curves in `folder`; None if that is not possible, with the reason printed if `progress`."""
    reason = None
    try:
        from torch.utils.tensorboard import SummaryWriter

        str(folder).encode()
    except ImportError:
        reason = "pip install 'fastlstm[tensorboard]'"
    except UnicodeEncodeError:
        reason = "its folders need names in UTF-8"
    if reason:
        if progress:
            say(f"no curves in TensorBoard: {reason}")
        return None
    _silence_writers()
    with writing(folder):
        return Curves(SummaryWriter(str(folder)), folder)


@functools.cache  # once
def _silence_writers() -> None:
    """The writer's thread would print a traceback of an error that the next call raises anyway."""
    before = threading.excepthook

    def hook(call: threading.ExceptHookArgs) -> None:
        if not (isinstance(call.exc_value, OSError) and type(call.thread).__name__ == _THREAD):
            before(call)

    threading.excepthook = hook


_THREAD = "_AsyncWriterThread"
