"""Fit the constants of the CUDA planner to what a GPU took: sweep.py's and cudnn_grid.py's times.

    python benchmarks/fit_plan.py gpu-check.json

Prints each constant as in csrc/cuda/plan.h and as fitted, those of a step with their standard
error, those of a whole call with the range of what was measured. A constant on which no time
depends is kept.
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

# What the times of steps can show. The clock is in the record; the others are facts or do not show.
FITTED = (
    "trip_clocks",
    "cell_clocks",
    "l2_bytes_per_clock",
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

    def __init__(
        self, entries: Sequence[Entry], sms: int, capability: int, clock_ghz: float = 0.0
    ) -> None:
        self.entries, self.sms, self.capability = entries, sms, capability
        self.clock_ghz = clock_ghz
        self.before: Constants = _build.library.cuda_constants(sm_count=sms, capability=capability)
        self.constants, self.standard_errors = self._fit()
        self.errors = tuple(self._error(c) for c in ({}, self.constants))

    def predicted(self, constants: Mapping[str, float]) -> list[float]:
        return [
            plan(entry, self.sms, self.capability, dict(constants), self.clock_ghz)["step_us"]
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


def starts(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """What was measured of the constants of a whole call, by name."""
    found: dict[str, list[float]] = {
        "prologue_us": [
            entry["start_us"]
            for entry in record.get("sweep", [])
            if "start_us" in entry and entry["engine"] != "stepwise"
        ],
        "host_walk_us": record.get("host_us", []),
        "cudnn_call_us": [],
        "cudnn_step_us": [],
        "cudnn_stacked_step_us": [],
    }
    calls: dict[str, list[dict[str, Any]]] = {}
    for row in record.get("cudnn", []):
        if row.get("cudnn") == "standard" and "us" in row:
            kind = {k: row[k] for k in ("dtype", "hidden_size", "batch", "layers", "training")}
            calls.setdefault(json.dumps(kind), []).append(row)
    for rows in calls.values():
        short, long = (pick(rows, key=lambda row: row["steps"]) for pick in (min, max))
        if short["steps"] == long["steps"]:
            continue
        passes, layers = 1 + long["training"], long["layers"]
        step = (long["us"] - short["us"]) / (long["steps"] - short["steps"]) / passes
        found["cudnn_stacked_step_us" if layers > 1 else "cudnn_step_us"].append(step / layers)
        if layers == 1:
            found["cudnn_call_us"].append(short["us"] / passes - short["steps"] * step)
    return {name: values for name, values in found.items() if values}


def cautious(name: str, values: Sequence[float]) -> float:
    """Of what one constant stands for ours at the third quartile, and cuDNN's at the first."""
    if len(values) < 2:
        return values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first if name.startswith("cudnn") else third


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
    machine = record["machine"]
    fit = Fit(entries, machine["sms"], machine["gpu_capability"], machine.get("gpu_ghz", 0.0))
    print(f"{len(entries)} steps; median error {fit.errors[0]:.1%}, fitted {fit.errors[1]:.1%}\n")
    print(f"{'constant':<24}{'plan.h':>10}{'fitted':>10}")
    for name in FITTED:
        new = "kept".rjust(10)
        if name in fit.constants:
            new = f"{fit.constants[name]:10.3g}  +- {fit.standard_errors[name]:.0%}"
        print(f"{name:<24}{fit.before[name]:>10.3g}{new}")
    for name, values in starts(record).items():
        print(f"{name:<24}{fit.before[name]:>10.3g}{cautious(name, values):10.3g}", end="")
        print(f"  from {min(values):.3g} to {max(values):.3g}")


if __name__ == "__main__":
    main()
