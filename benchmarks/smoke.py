"""The first test on a new GPU: the persistent engine against stepwise, and whether either hangs.

    python benchmarks/smoke.py

Each dtype, forward and backward, runs in a process of its own, side by side, so one that hangs or
crashes does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from sweep import Entry, build

STEPS, BATCH, HIDDEN_SIZE = 12, 16, 256
# Largest difference of the two engines, over the largest value: rounding, many times over.
LARGEST = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1, "float16": 2e-2}
READY = "ready"  # what a process prints once it has a device
SECONDS_TO_START = 90.0
CASES = [(kind, walk) for kind in LARGEST for walk in ("forward", "backward")]


def difference(
    kind: str,
    walk: str,
    engine: str = "persistent",
    device: str = "cuda",
    hidden: int = HIDDEN_SIZE,
) -> float:
    """The largest difference between an engine and stepwise, over the largest value."""
    entry: Entry = {
        "dtype": "float32" if kind == "tf32" else kind,
        "hidden_size": hidden,
        "batch": BATCH,
        "backward": walk == "backward",
    }
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    ours, expected = (
        torch.cat([t.flatten() for t in _results(entry | {"engine": name}, device)]).double()
        for name in (engine, "stepwise")
    )
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def _results(entry: Entry, device: str) -> Sequence[torch.Tensor]:
    """output, h_n and c_n, or the gradients of the gates."""
    found: Any = build(entry, STEPS, device)()
    results: Sequence[torch.Tensor] = found[3] if entry["backward"] else found[:3]
    return results


def run_case(kind: str, walk: str) -> None:
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # which may take long
    print(READY, flush=True)
    found = difference(kind, walk)
    print(f"differs by {found:.1e} of the largest value, {LARGEST[kind]:.0e} allowed")
    if not found <= LARGEST[kind]:  # nor a NaN
        raise SystemExit(1)


class Child:
    """A case in a process of its own, whose time counts from when it has a device."""

    def __init__(self, case: tuple[str, str]) -> None:
        self.case, self.lines, self.since = case, list[str](), time.monotonic()
        self.allowed = SECONDS_TO_START
        self.process = subprocess.Popen(
            [sys.executable, __file__, *case],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def watch(self, seconds: float) -> None:
        """Reads what it prints to its end, and notes when it is ready."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip() == READY:
                self.since, self.allowed = time.monotonic(), seconds
            else:
                self.lines.append(line.strip())

    def finish(self, seconds: float) -> bool:
        """Waits, but kills it when its time is over; whether it has passed."""
        reader = threading.Thread(target=self.watch, args=(seconds,))
        reader.start()
        while self.process.poll() is None:
            if time.monotonic() - self.since > self.allowed:
                self.process.kill()
                self.lines.append(f"hangs: killed after {self.allowed:g} s")
                self.process.wait()
            time.sleep(0.02)
        reader.join()
        status = self.process.returncode
        words = "ok" if status == 0 else f"FAILED ({status})"
        print(f"{' '.join(self.case)}: {words}: {'; '.join(self.lines)}", flush=True)
        return status == 0


def run_all(seconds: float) -> int:
    """Starts a process for each case; returns how many failed."""
    children = [Child(case) for case in CASES]
    with ThreadPoolExecutor(len(children)) as pool:
        passed = sum(pool.map(lambda child: child.finish(seconds), children))
    print(f"{len(CASES) - passed} of {len(CASES)} failed")
    return len(CASES) - passed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", nargs="?", choices=LARGEST, help="one case only, in this process")
    parser.add_argument("walk", nargs="?", choices=("forward", "backward"), default="forward")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case; default: 10")
    args = parser.parse_args(arguments)
    if args.kind is None:
        return min(1, run_all(args.seconds))
    run_case(args.kind, args.walk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
