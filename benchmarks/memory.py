"""Measures the peak memory of one training step, without the weights and the input.

A new process measures two numbers, because neither of them includes everything:

- `allocated` is the largest total size of the tensors that torch's allocator has given out. It is
  exact and the same in every run.
- `resident` is how much the resident memory of the process grew, including memory that libraries
  allocate themselves. It can be measured on Linux only. To make it repeatable to a few pages,
  malloc is configured to map every block of 16 KiB or more, and is asked before the step to return
  smaller free blocks to the system.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import Case
from torch.autograd.profiler import profile
from workload import build, settings

from fastlstm import _build

# Bytes under the keys "allocated" and "resident"; a number that cannot be measured is missing.
Peak = dict[str, int]


def measure(cases: Sequence[Case], implementation: str) -> list[Peak]:
    """Measures each training case in a new process; see `workload.build` for `implementation`.

    Returns one peak for each case, which is empty if the implementation refuses the case.
    """
    request = json.dumps([implementation, [dataclasses.asdict(case) for case in cases]])
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=16384:glibc.malloc.mmap_max=1000000",
        "MKL_DISABLE_FAST_MM": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    options: Any = {"env": environment, "capture_output": True, "text": True}
    child = subprocess.run([sys.executable, __file__], input=request, **options)
    if child.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{child.stderr}")
    peaks: list[Peak] = json.loads(child.stdout.splitlines()[-1])
    return peaks


def _peak_if_supported(case: Case, implementation: str) -> Peak:
    try:
        return _peak(case, implementation)
    except RuntimeError:  # the timing of the case will report it
        return {}


def allocated(step: Callable[[], object]) -> int:
    """Returns the largest total size of the tensors allocated during `step`, in bytes."""
    with profile(profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _resident(step: Callable[[], object]) -> int | None:
    """Returns by how many bytes the resident memory grew during `step`, or None if unknown."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak resident memory
    # The C library has no malloc_trim, or the system or container does not allow the reset.
    except (AttributeError, OSError):
        return None
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _peak(case: Case, implementation: str) -> Peak:
    peak: Peak = {}
    with settings(case):
        workload = build(case, implementation, "cpu")
        workload.step()
        # Libraries allocate scratch memory only in some steps, so the largest of three is taken.
        for name, method in (("allocated", allocated), *[("resident", _resident)] * 3):
            workload.clear()
            gc.collect()
            if _build.library:
                _build.library.release_scratch()  # so that the step's own scratch memory counts
            if (value := method(workload.step)) is not None:
                peak[name] = max(value, peak.get(name, 0))
    return peak


if __name__ == "__main__":
    implementation, cases = json.load(sys.stdin)
    print(json.dumps([_peak_if_supported(Case(**case), implementation) for case in cases]))
