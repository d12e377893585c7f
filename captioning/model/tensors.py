"""Reads untrusted files of torch.save: runs no code in them, and notices every flipped bit."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from captioning.console import short
from captioning.errors import CaptioningError
from captioning.files import open_regular


def load_tensors(path: str | Path, hint: str = "") -> Any:
    """Load the tensors and plain containers that torch.save wrote to `path`, on the CPU.

    Files of PyTorch before 1.6 have no checksums, so damage in them may go unnoticed. Anything that
    would run code is refused; to the error for another kind of file `hint` is added.
    """
    with open_regular(path) as file:
        is_zip = file.read(4) == b"PK\3\4"  # as PyTorch decides
        try:
            if is_zip:
                _verify(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles of older versions
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged zip or pickle raises anything
            reason = f": {' '.join(str(error).split())[:200]}" if is_zip else hint
            raise CaptioningError(f"{path} is not a file of tensors, or damaged{reason}") from error


def _verify(file: BinaryIO) -> None:
    """Check the CRC and the kind of each record, which PyTorch does not."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            # PyTorch reads a record that is marked as a folder as empty.
            if record.compress_type != zipfile.ZIP_STORED or record.external_attr:
                raise ValueError(f"{record.filename} was not written by torch.save")
        if broken := archive.testzip():
            raise ValueError(f"the CRC of {broken} is wrong")


def check_numbers(given: Mapping[Any, Any], what: str) -> None:
    """Refuse tensors, by name, that are not finite numbers, each stored in the file."""
    for name, tensor in given.items():
        if isinstance(tensor, Tensor) and (problem := _problem(tensor)):
            raise CaptioningError(f"{what}: expected numbers as {short(name)}, got {problem}")


def _problem(tensor: Tensor) -> str | None:
    if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else tensor.layout
        return f"a {str(kind).removeprefix('torch.')} tensor"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "more of them than the file has"
    finite = not tensor.is_floating_point() or tensor.float().isfinite().all()
    return None if finite else "some that are not finite"


def check_fit(expected: Mapping[str, Tensor], given: Any, what: str) -> None:
    """Refuse weights that do not fit a module, whose `state_dict` is `expected`."""
    if not isinstance(given, Mapping):
        raise CaptioningError(f"{what}: expected tensors by name, got {type(given).__name__}")
    for name, tensor in expected.items():
        found = given.get(name)
        if isinstance(found, Tensor):
            floating = found.is_floating_point() == tensor.is_floating_point()
            if floating and found.shape == tensor.shape:
                continue
            got = f"{tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}"
        elif name not in given and name.endswith("num_batches_tracked"):
            continue  # PyTorch before 0.4.1 did not count them
        else:
            got = type(found).__name__ if name in given else "none"
        raise CaptioningError(f"{what}: expected {name} {tuple(tensor.shape)}, got {got}")
    if unknown := [name for name in given if name not in expected]:
        raise CaptioningError(f"{what}: expected no {unknown[0]}")
