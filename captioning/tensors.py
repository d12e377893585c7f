"""Files of torch.save from strangers: nothing in them is run, and no flipped bit goes unnoticed."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from captioning.errors import CaptioningError
from captioning.files import open_regular


def load_tensors(path: str | Path, hint: str = "") -> Any:
    """What torch.save wrote to `path`, on the CPU: tensors and plain containers, or an error.

    Files of PyTorch before 1.6 are no zip and hold no checksums; damage there may go unnoticed.

    Args:
        path: the file.
        hint: what the message says of a file that is something else.

    Raises:
        OSError: it cannot be opened.
        CaptioningError: it is damaged, something else, or wants to run code.
    """
    with open_regular(path) as file:
        is_zip = file.read(4) == b"PK\3\4"  # as PyTorch tells it
        try:
            if is_zip:
                _verify(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that others wrote
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged zip or pickle raises anything
            told = f": {' '.join(str(error).split())[:200]}" if is_zip else hint
            raise CaptioningError(f"{path} is no file of tensors, or damaged{told}") from error


def _verify(file: BinaryIO) -> None:
    """Check what PyTorch does not: the CRC of each record, and that each is read as it is."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            # Its reader takes a record that is marked as a folder for empty, and reads nothing.
            if record.compress_type != zipfile.ZIP_STORED or record.external_attr:
                raise ValueError(f"{record.filename} is not as torch.save writes it")
        if broken := archive.testzip():
            raise ValueError(f"the CRC of {broken} is wrong")


def check_fit(expected: Mapping[str, Tensor], given: Any, what: str) -> None:
    """Refuse weights that are not those of a module.

    Args:
        expected: its `state_dict`; shapes are enough, as on the device "meta".
        given: what came in its place.
        what: what the message calls it.
    """
    if not isinstance(given, Mapping):
        raise CaptioningError(f"{what}: expected tensors by name, got {type(given).__name__}")
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name not in given:
            if name.endswith("num_batches_tracked"):
                continue  # PyTorch before 0.4.1 did not count them
            raise CaptioningError(f"{what}: expected {name} {shape}, got none")
        came = given[name]
        if not isinstance(came, Tensor):
            raise CaptioningError(f"{what}: expected {name} {shape}, got {type(came).__name__}")
        if came.shape != shape or came.is_floating_point() != tensor.is_floating_point():
            told = f"{tuple(came.shape)} {str(came.dtype).removeprefix('torch.')}"
            raise CaptioningError(f"{what}: expected {name} {shape}, got {told}")
    if unknown := [name for name in given if name not in expected]:
        raise CaptioningError(f"{what}: expected no {unknown[0]}")
