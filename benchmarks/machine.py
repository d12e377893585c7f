"""Describes what a result depends on: the machine, the versions and the commit.

The description has no paths and no host names, so that it can be published.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastlstm
from fastlstm import _build

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def cpu_model() -> str:
    """Returns the model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # this system is not Linux
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    """Returns what a git command prints, or None if there is no git or no git checkout."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command(program: str, arguments: Sequence[str]) -> str:
    """Returns the command line, with only the names of JSON files and not their folders."""
    words = [Path(a).name if a.endswith(".json") else a for a in arguments]
    return shlex.join(["python", f"benchmarks/{program}.py", *words])


def result_path(kind: str, record: dict[str, Any]) -> Path:
    """Returns the file in `RESULTS` for a result on a CPU, named by its kind, date and commit."""
    date = record["date"][:10].replace("-", "")
    return RESULTS / f"{kind}-cpu-{date}-{(record['git']['commit'] or 'nocommit')[:7]}.json"


def name(record: dict[str, Any]) -> str:
    """Returns the name of the GPU or processor of a result."""
    machine = record["machine"]
    return machine.get("gpu") or machine["cpu"] + (" with AMX" if machine.get("amx") else "")


def line(record: dict[str, Any]) -> str:
    """Returns a line that says on which machine, with which versions and when it was measured."""
    git = record["git"]
    plural = "s" * (record["threads"] > 1)
    words = [
        f"{name(record)}, {record['threads']} thread{plural}, {record['machine']['capability']}",
        f"torch {record['versions']['torch']}",
        f"commit {(git['commit'] or 'unknown')[:7]}{' with changes' if git['dirty'] else ''}",
        record["date"][:10],
    ]
    return "; ".join(words)


def describe(device: str) -> dict[str, Any]:
    """Describes the machine, for "cuda" with its GPU, and the versions, in values for JSON."""
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    build_keys = ("kinds", "torch", "cuda", "nvcc", "cuda_arch_list", "compiler", "commit", "date")
    record = _build.build_record()
    machine: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "amx": _build.has_kernels("cpu")
        and "bfloat16x2" in _build.library.build_info()["products"],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"gpu": properties.name, "sms": properties.multi_processor_count}
        machine["gpu_capability"] = 10 * properties.major + properties.minor
        machine["gpu_memory"] = properties.total_memory
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "threads": torch.get_num_threads(),
        # The values at the start. Each case sets both flags, to True only if its precision is tf32.
        "tf32": {
            "cudnn": torch.backends.cudnn.allow_tf32,
            "matmul": torch.backends.cuda.matmul.allow_tf32,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fastlstm": fastlstm.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": None if changes is None else bool(changes),
        },
        "extension": {key: record[key] for key in build_keys if key in record},
    }
