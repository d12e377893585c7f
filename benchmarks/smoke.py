"""The first test on a new GPU: the persistent engine against stepwise, and whether either hangs.

    python benchmarks/smoke.py

Each dtype, forward and backward, runs in a process of its own, side by side, so one that hangs or
crashes does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from sweep import Entry, build

STEPS, BATCH, HIDDEN_SIZE = 12, 16, 256
# Largest difference of the two engines, over the largest value: rounding, many times over.
LARGEST = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1, "float16": 2e-2}
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
    found = difference(kind, walk)
    print(f"differs by {found:.1e} of the largest value, {LARGEST[kind]:.0e} allowed")
    if not found <= LARGEST[kind]:  # nor a NaN
        raise SystemExit(1)


def run_all(seconds: float) -> int:
    """Starts a process for each case; returns how many failed."""
    deadline = time.monotonic() + seconds
    children = {
        case: subprocess.Popen(
            [sys.executable, __file__, *case],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for case in CASES
    }
    failed = 0
    for case, child in children.items():
        try:
            output, _ = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
            output += f"hangs: killed after {seconds:g} s"
        failed += child.returncode != 0
        words = "ok" if child.returncode == 0 else f"FAILED ({child.returncode})"
        print(f"{' '.join(case)}: {words}: {'; '.join(output.splitlines())}", flush=True)
    print(f"{failed} of {len(CASES)} failed")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", nargs="?", choices=LARGEST, help="one case only, in this process")
    parser.add_argument("walk", nargs="?", choices=("forward", "backward"), default="forward")
    parser.add_argument("--seconds", type=float, default=20.0, help="for all together; default: 20")
    args = parser.parse_args(arguments)
    if args.kind is None:
        return min(1, run_all(args.seconds))
    run_case(args.kind, args.walk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
