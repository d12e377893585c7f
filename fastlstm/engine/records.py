"""What `fastlstm.check` found on this machine: a JSON object of strings, read at import.

For each engine, machine, torch and build of fastlstm that was checked it holds the verdict.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # on Windows
    fcntl: Any = None  # type: ignore[no-redef]

checked: dict[str, str] = {}  # verdicts by engine and machine
build: dict[str, Any] = {}  # the record of the loaded build, which is part of each key
PASSED, FAILED = "passed", "failed"  # how a verdict begins


def load() -> None:
    """Reads the file, if there is one and FASTLSTM_RECORDS is not "off"."""
    checked.update((_read(file) if (file := _file()) else None) or {})


def store(key: str, verdict: str) -> None:
    """Keeps a verdict under its key, for this process and for later ones.

    A file with other content than ours stays as it is. If the file cannot be written, which raises
    an OSError, this process has the verdict nevertheless.
    """
    checked[key] = verdict
    if (file := _file()) is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "w") as lock:
        # Windows and some file systems have no such locks.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        entries = _read(file)
        if entries is not None:
            write_text(file, json.dumps(entries | {key: verdict}, indent=1))


def write_text(file: Path, text: str) -> None:
    """Writes text and a line break to a file that is moved into its place when it is complete."""
    new = Path(f"{file}.{os.getpid()}.new")
    new.write_text(text + "\n", encoding="utf-8")
    os.replace(new, file)


def _file() -> Path | None:
    """The path of the file, or None if FASTLSTM_RECORDS is "off"."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.environ.get("FASTLSTM_RECORDS") or f"{cache}/fastlstm/records.json"
    return None if path == "off" else Path(os.path.expanduser(path))


def _read(file: Path) -> dict[str, str] | None:
    """The content of the file, {} if there is no file; None, with a warning, if it is not ours."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not all(isinstance(value, str) for value in entries.values()):
            raise ValueError("expected verdicts")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        problem = f"is not what fastlstm.check writes ({error!r}); delete it"
        if file.is_dir():
            problem = "is a folder; set FASTLSTM_RECORDS to the path of a file"
        text = f"fastlstm ignores {file}, which {problem}, or set FASTLSTM_RECORDS=off"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        return None
    return dict(entries)


def verdict_key(engine: str, device: torch.device, instructions: str = "") -> str:
    """The key of a verdict. `instructions`: "", or NAME=VALUE that selects an instruction set."""
    return "check of " + ", ".join(filter(None, (engine, instructions, machine(device))))


def verdict(engine: str, device: torch.device) -> str:
    """The verdict of a check of an engine on this GPU, or "". Reads the file once per engine."""
    key = verdict_key(engine, device)
    if key not in checked:
        load()  # another process may have checked it
    stored = checked.setdefault(key, "")
    return stored if stored.startswith((PASSED, FAILED)) else ""


@functools.cache
def machine(device: torch.device) -> str:
    """What the results of an engine depend on: the processor or GPU, torch, fastlstm's build."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no GPU"
        parts = [name, _driver()]
    else:
        cpus = Path("/proc/cpuinfo")  # only on Linux
        match = re.search("model name.*: (.*)", cpus.read_text()) if cpus.exists() else None
        name = match[1] if match else platform.processor()
        parts = [name, torch.backends.cpu.get_cpu_capability()]
    built = f"fastlstm {build.get('commit')} of {build.get('date')}"
    return ", ".join([*parts, f"torch {torch.__version__}", built])


def _driver() -> str:
    """The version of NVIDIA's driver, or of the newest CUDA that the driver supports."""
    file = Path("/proc/driver/nvidia/version")  # only on Linux
    match = re.search(r"NVRM version:.*?(\d+\.[\d.]+)", file.read_text()) if file.exists() else None
    newest_cuda = getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")
    return f"driver {match[1] if match else newest_cuda()}"
