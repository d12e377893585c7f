"""What a case did on a GPU: its plan, the kernels that ran, the clock of the multiprocessors."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from cases import Case
from timing import Step
from torch.profiler import ProfilerActivity, profile

from fastlstm import _build

LONGEST_NAME = 160  # of a kernel; templates make them longer
MOST_KERNELS = 12


def plans(case: Case, engine: str, sm_count: int, capability: int) -> dict[str, dict[str, Any]]:
    """The planner's division of the work and predicted time of each pass of a case.

    Args:
        case: any case of an LSTM without a projection.
        engine: "auto" or an engine of the op on a GPU.
        sm_count: multiprocessors of the GPU; those of FASTLSTM_FREE_SMS are left out.
        capability: 10 * major + minor.
    """
    passes = ("forward", "backward") if case.mode == "training" else ("forward",)
    return {
        name: _build.library.plan_cuda(
            hidden_size=case.hidden_size,
            batch=case.batch,
            steps=case.steps,
            directions=1 + case.bidirectional,
            dtype=str(case.dtype).removeprefix("torch."),
            allow_tf32=case.precision == "tf32",
            backward=name == "backward",
            sm_count=max(0, sm_count - _build.library.free_sms()),
            capability=capability,
            engine=engine,
        )
        for name in passes
    }


def count_kernels(events: Iterable[Any], steps: int) -> dict[str, float]:
    """Launches per step of each kernel among a profile's events, the most frequent first."""
    names = Counter(e.name[:LONGEST_NAME] for e in events if e.device_type.name == "CUDA")
    return {name: count / steps for name, count in names.most_common(MOST_KERNELS)}


def kernels(step: Step, steps: int) -> dict[str, float]:
    """Launches per step of each kernel that one call runs, by name; copies and memsets too."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return count_kernels(profiler.events(), steps)


class SmClock:
    """Samples the clock of the multiprocessors, by nvidia-smi, while it is open.

    Without nvidia-smi there are no samples.
    """

    def __init__(self, device: str, milliseconds: int = 100) -> None:
        command = ["nvidia-smi", f"--id={device}", "--query-gpu=clocks.sm", f"-lms={milliseconds}"]
        self.samples: list[tuple[float, float]] = []  # time, MHz
        try:
            self.process = subprocess.Popen(
                [*command, "--format=csv,noheader,nounits"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            try:
                self.samples.append((time.monotonic(), float(line)))
            except ValueError:  # "[N/A]", or a message
                continue

    def median(self, since: float) -> float | None:
        """The median MHz since a time of time.monotonic(), or None without samples."""
        found = [mhz for when, mhz in self.samples if when >= since]
        return statistics.median(found) if found else None

    def close(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()
