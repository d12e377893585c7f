"""Where a step of the persistent engine spends its clocks, as a checked build keeps them.

    FASTLSTM_CHECKED=1 python setup.py build --build-lib build/checked
    PYTHONPATH=build/checked python benchmarks/step_trace.py trace.json

Prints medians over blocks and steps, in clocks of an SM: of a step, and of its product (its last
pass), which begins with waiting for the neighbours. Also how often a thread read 16 bytes that had
not been written yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from report import write_json
from sweep import SHORT, Entry, build, plan, title, walks
from torch import Tensor

FIRST_STEPS = 4  # left out: they find an idle GPU


def summary(entries: Tensor, backward: bool) -> dict[str, float]:
    """Medians of what the blocks recorded.

    Args:
        entries: [blocks, steps, 3] of csrc/cuda/trace.h; zeros where there was no block or step.
        backward: whether the steps were walked from the last to the first.
    """
    entries = entries[entries[:, 0, 0] > 0]
    if backward:
        entries = entries.flip(1)
    entries = entries[:, FIRST_STEPS:].double()
    begins, done, polls = entries.unbind(-1)
    return {
        "step": begins.diff().median().item(),
        "product": (done - begins).median().item(),
        "polls_in_vain": polls.mean().item(),
    }


def measure(entry: Entry) -> dict[str, float]:
    torch.backends.cudnn.allow_tf32 = entry["allow_tf32"]
    step = build(entry, SHORT)
    take = torch.ops.fastlstm.take_trace
    for _ in range(3):
        take(entry["backward"])  # clears it
        step()
    return summary(take(entry["backward"]), entry["backward"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, metavar="FILE.json")
    args = parser.parse_args(arguments)
    if not hasattr(torch.ops.fastlstm, "take_trace"):
        parser.error("expected a build with FASTLSTM_CHECKED=1, which keeps traces")
    found: dict[str, Any]
    record: dict[str, Any] = machine.describe("cuda") | {"trace": []}
    sms, capability = (record["machine"][key] for key in ("sms", "gpu_capability"))
    for walk in walks(SHORT):
        entry = walk | {"engine": "persistent"}
        try:
            found = measure(entry)
        except RuntimeError as error:
            found = {"error": str(error).splitlines()[0]}
        chosen = plan(entry, sms, capability, {})
        record["trace"].append(entry | {"plan": chosen, "clocks": found})
        print(f"{title(entry)}: {found}", flush=True)
        write_json(args.output, record)


if __name__ == "__main__":
    main()
