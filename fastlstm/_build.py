"""Loads the extension `fastlstm._C` if it fits the running torch; else says why not.

setup.py leaves a record of what it built. A library that was built for another torch may crash on
loading, so the record is compared with this torch before anything is loaded. A wheel has a library
for each of several minor versions of torch, in the folders torch_2_8 and so on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

VERSION = "0.1.0"  # of fastlstm
INTERFACE = 4  # version of the functions of fastlstm._C; equals kInterface of csrc/op/module.cpp
_PACKAGE = Path(__file__).resolve().parent
_why_unavailable: str | None = "it has not been loaded yet"
_why_no_cuda: str | None = None  # why a wheel's CUDA kernels are not loaded
device_types: tuple[str, ...] = ()  # the device types that the loaded extension has kernels for
library: Any = None  # the module fastlstm._C once it is loaded


def extension_available() -> bool:
    """Whether the extension is loaded, so that `torch.ops.fastlstm` exists."""
    return _why_unavailable is None


def unavailable_reason() -> str | None:
    return _why_unavailable


def build_record() -> dict[str, Any]:
    """The record of setup.py: kinds of kernels, torch, CUDA, compiler, commit, date; or {}."""
    try:
        return dict(json.loads((_PACKAGE / "_build_info.json").read_text()))
    except (OSError, ValueError):  # there is no record, or its writing was interrupted
        return {}


def has_kernels(device: torch.device | str) -> bool:
    """Whether the loaded extension has kernels for a device, such as "cpu", "cuda", "cuda:0"."""
    return torch.device(device).type in device_types


def engines_of_the_op() -> dict[str, tuple[str, ...]]:
    """The device types of each engine of `torch.ops.fastlstm.lstm`, by the engine's name."""
    return library.engines() if library is not None else {}


def why_no_kernels(device: torch.device) -> str | None:
    """Why the op cannot run on a device, or None if it can; a meta tensor needs no kernels."""
    if not device_types:
        return f"the extension is not available ({_why_unavailable})"
    if device.type == "meta":
        return None
    if device.type not in device_types:
        return f"the extension is for {', '.join(device_types)}, and the input is on {device.type}"
    if device.type == "cuda" and not torch.compiler.is_compiling():
        return _why_not_this_gpu(device.index or 0)
    return None


@functools.cache
def _why_not_this_gpu(index: int) -> str | None:
    """Why the kernels cannot run on a GPU, or None if they can."""
    _, capability, error = gpu_properties(index)
    if capability:
        return None
    return error or f"its kernels are for {build_record()['cuda_arch_list']}, not for this GPU"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@functools.cache
def gpu_properties(index: int) -> tuple[int, int, str]:
    """Returns a GPU's number of multiprocessors, its compute capability (90 for 9.0), and an error.

    FASTLSTM_FREE_SMS is subtracted from the number. The capability is the GPU's if the kernels were
    built for sm_80 or newer, else that of the kernels, or 0 if they cannot run or CUDA failed.
    """
    sm_count, capability, error = torch.ops.fastlstm.cuda_device(index)
    return sm_count, capability, error.partition("\n")[0]  # CUDA appends hints for debugging


def mismatch(record: dict[str, Any], torch_version: str, torch_cuda: str | None) -> str | None:
    """How the recorded torch differs from the running one, or None if their ABI is the same."""

    def label(version: str, cuda: str | None) -> str:
        return f"torch {version} ({f'CUDA {cuda}' if cuda else 'no CUDA'})"

    built, cuda = record["torch"], record["cuda"]
    if isinstance(built, list):  # the minor versions of a wheel
        fits, built_for = _minor(torch_version) in built, f"torch {', '.join(built)}"
    else:
        same_cuda = (cuda or "").split(".")[0] == (torch_cuda or "").split(".")[0]
        fits, built_for = same_cuda and _minor(built) == _minor(torch_version), label(built, cuda)
    running = label(torch_version, torch_cuda)
    return None if fits else f"it was built for {built_for}, and this is {running}"


def rebuild_command() -> str:
    """The command that builds the extension for the running torch."""
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    if (_PACKAGE.parent / "setup.py").is_file():
        return shlex.join([*pip, "-e", str(_PACKAGE.parent)])
    # Without --no-cache-dir pip may reuse the very wheel that does not fit.
    command = shlex.join([*pip, "--force-reinstall", "--no-cache-dir"])
    return f"{command} <path of the fastlstm source>"


def _load_cuda(path: Path) -> str | None:
    """Loads the CUDA library of a wheel, or returns the reason why the library is not loaded."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"they cannot be loaded: {error}"
    return None


def _load() -> str | None:
    """Imports the extension, or returns the reason why it is not imported."""
    global library, device_types, _why_no_cuda
    record = build_record()
    if not record and (_PACKAGE.parent / "setup.py").is_file():
        problem = f"{_PACKAGE.parent} is a source folder that was not built"
        return f"{problem}; Python imports it, not an installed package"
    if not record:
        return "it was not built"
    if not record["kinds"]:
        return f"it was not built ({record['note']})"
    if reason := mismatch(record, torch.__version__, torch.version.cuda):
        return reason
    folder = _PACKAGE / f"torch_{_minor(torch.__version__).replace('.', '_')}"  # only in a wheel
    sys.modules["fastlstm"].__path__.append(str(folder))
    try:
        library = importlib.import_module("fastlstm._C")
    except ImportError as error:
        return f"it cannot be loaded: {error}"
    if (interface := getattr(library, "interface", None)) != INTERFACE:
        expected = f"expected an extension with interface {INTERFACE}, got {interface}"
        cause = f"it was built from other source files; to build it again: {rebuild_command()}"
        raise ImportError(f"fastlstm: {expected}: {cause}")
    if "cuda" in record["kinds"] and folder.is_dir():
        _why_no_cuda = _load_cuda(folder / "libfastlstm_cuda.so")
    device_types = tuple(kind for kind in record["kinds"] if not (kind == "cuda" and _why_no_cuda))
    return None


# A sentence in the warnings of `warn_of_no_cuda_kernels` and `load`: what runs instead.
_WITHOUT_KERNELS = (
    "calls with no option except lengths= run PyTorch's own LSTM, as fast as nn.LSTM; calls with "
    "other options (reset= and others) run in Python, which is slower."
)


@functools.cache
def warn_of_no_cuda_kernels(device: torch.device) -> None:
    """Warns once if there are no kernels for a GPU: what runs instead, and how to build them."""
    if not (reason := why_no_kernels(device)):
        return
    if "cuda" not in device_types:
        reason = _why_no_cuda or build_record()["note"] or reason
    text = f"fastlstm has no CUDA kernels: {reason}. On a GPU {_WITHOUT_KERNELS}"
    remedy = f"To build them: FASTLSTM_BUILD=cuda {rebuild_command()}"
    warnings.warn(f"{text} {remedy}", RuntimeWarning, stacklevel=2)


def load() -> None:
    """Loads the extension; if it cannot be used, warns once with the reason and the remedy."""
    global _why_unavailable
    _why_unavailable = _load()
    if _why_unavailable is not None:
        text = f"fastlstm runs without its extension: {_why_unavailable}. Now {_WITHOUT_KERNELS}"
        remedy = f"prepack is not available. To build it: {rebuild_command()}"
        warnings.warn(f"{text} {remedy}", RuntimeWarning, stacklevel=3)
