"""Fit the constants of the CUDA planner to steps that a GPU took: sweep.py's, or gpu-check's.

    python benchmarks/fit_plan.py gpu-check.json

Prints each constant as in csrc/cuda/plan.h and as fitted, with its standard error. A constant on
which no time depends is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep import Entry, plan

from fastlstm import _build
from fastlstm._choice import CUDNN_STEP_US

# What the times of steps can show. The clock is in the record; the others are facts or do not show.
FITTED = (
    "trip_us",
    "cell_us",
    "l2_gb_per_s",
    "sm_bytes_per_clock",
    "shared_bytes_per_clock",
    "marking_share",
    "repeated_polls",
    "stepwise_us",
    "host_step_us",
    "gemm_share",
)
LARGEST_CHANGE = 8.0  # of a constant, up or down
Constants = dict[str, float]


class Fit:
    """The constants that predict measured steps best: least squares of the logarithms.

    Attributes:
        before: the constants as compiled.
        constants: fitted, those of `FITTED` on which the times depend.
        standard_errors: of each of `constants`, as a share of it.
        errors: median of |measured / predicted - 1|, before and after.
    """

    def __init__(self, entries: Sequence[Entry], sms: int, capability: int) -> None:
        self.entries, self.sms, self.capability = entries, sms, capability
        self.before: Constants = _build.library.cuda_constants(sm_count=sms, capability=capability)
        self.constants, self.standard_errors = self._fit()
        self.errors = tuple(self._error(c) for c in ({}, self.constants))

    def predicted(self, constants: Mapping[str, float]) -> list[float]:
        return [
            plan(entry, self.sms, self.capability, dict(constants))["step_us"]
            for entry in self.entries
        ]

    def _fit(self) -> tuple[Constants, Constants]:
        import numpy as np
        from scipy.optimize import least_squares

        measured = [entry["step_us"] for entry in self.entries]

        def constants(logarithms: Sequence[float]) -> Constants:
            pairs = zip(FITTED, logarithms, strict=True)
            return {name: self.before[name] * math.exp(x) for name, x in pairs}

        def residuals(logarithms: Sequence[float]) -> list[float]:
            predicted = self.predicted(constants(logarithms))
            return [math.log(p / m) for p, m in zip(predicted, measured, strict=True)]

        # Robust: a few steps may have been measured while something else ran.
        found = least_squares(
            residuals,
            [0.0] * len(FITTED),
            bounds=(-math.log(LARGEST_CHANGE), math.log(LARGEST_CHANGE)),
            loss="soft_l1",
            f_scale=0.1,
            diff_step=1e-3,
            xtol=1e-10,
            ftol=1e-10,
        )
        matters = (abs(found.jac) > 1e-6).any(axis=0)
        names = [name for name, used in zip(FITTED, matters, strict=True) if used]
        noise = 1.4826 * np.median(np.abs(residuals(found.x)))  # standard deviation, robust
        covariance = np.linalg.pinv(found.jac[:, matters].T @ found.jac[:, matters])
        errors = noise * np.sqrt(covariance.diagonal())
        fitted = constants(found.x)
        return {n: fitted[n] for n in names}, dict(zip(names, errors.tolist(), strict=True))

    def _error(self, constants: Constants) -> float:
        pairs = zip(self.entries, self.predicted(constants), strict=True)
        return statistics.median(abs(float(entry["step_us"]) / p - 1) for entry, p in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    args = parser.parse_args(arguments)
    record: dict[str, Any] = json.loads(args.record.read_text())
    entries = [entry for entry in record.get("sweep", []) if entry.get("step_us", 0) > 0]
    if len(entries) < len(FITTED):
        parser.error(
            f"{args.record}: expected the steps of a sweep, {len(FITTED)} or more, "
            f"got {len(entries)}"
        )
    fit = Fit(entries, record["machine"]["sms"], record["machine"]["gpu_capability"])
    print(f"{len(entries)} steps; median error {fit.errors[0]:.1%}, fitted {fit.errors[1]:.1%}\n")
    print(f"{'constant':<24}{'plan.h':>10}{'fitted':>10}")
    for name in FITTED:
        new = "kept".rjust(10)
        if name in fit.constants:
            new = f"{fit.constants[name]:10.3g}  +- {fit.standard_errors[name]:.0%}"
        print(f"{name:<24}{fit.before[name]:>10.3g}{new}")
    if cudnn := record.get("cudnn_us"):
        # Of fastlstm/_choice.py: a plain call goes to ours only where that is well below.
        print(f"{'cudnn_us':<24}{CUDNN_STEP_US:>10.3g}{statistics.median(cudnn):10.3g}", end="")
        print(f"  from {min(cudnn):.3g} to {max(cudnn):.3g}")


if __name__ == "__main__":
    main()
