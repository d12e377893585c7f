"""Peak memory of one training step, beyond the weights and the input.

A fresh process measures it in two ways, since neither sees everything: `allocated`, the
highest sum of the tensors that torch's allocator has handed out (exact, and the same on every run),
and `resident`, how far the process grew in pages really touched, whoever allocated them (Linux).
malloc is told to map every block of 16 KiB or more and to give smaller ones back before the step,
so that the second number does not depend on what ran before and repeats to within a few pages.
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

import torch
from cases import Case
from torch.autograd.profiler import profile
from workload import build, settings

from fastlstm import _build

Peak = dict[str, int]  # bytes by "allocated" and "resident"; what cannot be measured is absent


def measure(cases: Sequence[Case], implementation: str) -> list[Peak]:
    """Measures each case, with no entry where the implementation refuses it.

    For the arguments see `workload.build`.
    """
    request = json.dumps([implementation, [dataclasses.asdict(case) for case in cases]])
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=16384:glibc.malloc.mmap_max=1000000",
        "MKL_DISABLE_FAST_MM": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    child = subprocess.run(
        [sys.executable, __file__], input=request, env=environment, capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{child.stderr}")
    peaks: list[Peak] = json.loads(child.stdout.splitlines()[-1])
    return peaks


def _peak(case: Case, implementation: str) -> Peak:
    try:
        return _cpu_peak(case, implementation)
    except RuntimeError:  # the timing of this case meets the same error and reports it
        return {}


def allocated(step: Callable[[], object]) -> int:
    """The highest sum of the tensors that torch handed out during `step`, in bytes."""
    with profile(profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _resident(step: Callable[[], object]) -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    except (AttributeError, OSError):  # another C library, another system, a guarded container
        return None
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _cpu_peak(case: Case, implementation: str) -> Peak:
    peak: Peak = {}
    with settings(case):
        workload = build(case, implementation, "cpu")
        workload.step()
        # Libraries take scratch memory now and then, so the largest of three growths counts.
        for name, method in (("allocated", allocated), *[("resident", _resident)] * 3):
            workload.clear()
            gc.collect()
            if _build.library:
                _build.library.release_scratch()  # or it would count in no step
            if (value := method(workload.step)) is not None:
                peak[name] = max(value, peak.get(name, 0))
    return peak


if __name__ == "__main__":
    implementation, cases = json.load(sys.stdin)
    print(json.dumps([_peak(Case(**case), implementation) for case in cases]))
