"""The curves of training for TensorBoard."""

import threading
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from captioning.files import writing


def why_no_curves(folder: Path) -> str | None:
    """What hinders writing curves to `folder`; None if nothing does."""
    try:
        import torch.utils.tensorboard  # noqa: F401

        str(folder).encode()
    except ImportError:
        return "pip install 'fastlstm[tensorboard]'"
    except UnicodeEncodeError:
        return "its folders need names in UTF-8"
    return None


def add_curves(folder: Path, points: Iterable[tuple[str, float, int]]) -> None:
    """Add points to the curves in `folder`: the curve's name, the value and the step."""
    from torch.utils.tensorboard import SummaryWriter

    # Its thread would print a traceback of an error that is raised here anyway.
    silent = mock.patch.object(threading, "excepthook")
    with writing(folder), silent, SummaryWriter(str(folder)) as log:
        for point in points:
            log.add_scalar(*point)
