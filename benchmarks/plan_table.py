"""Print what the CUDA planner predicts for an H100, as the table of docs/cuda.md.

python benchmarks/plan_table.py --write docs/cuda.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from markdown import publish, table

from fastlstm import _build

BATCHES = (1, 16, 64, 128)
ROWS = (("bf16", "bfloat16", (256, 512, 1024)), ("TF32", "float32", (256, 512)))
H100 = {"sm_count": 132, "capability": 90}


def cell(hidden_size: int, batch: int, dtype: str, backward: bool) -> str:
    plan = _build.library.plan_cuda(
        hidden_size=hidden_size,
        batch=batch,
        steps=512,
        directions=1,
        dtype=dtype,
        allow_tf32=True,
        backward=backward,
        **H100,
    )
    return f"{plan['step_us']:.1f}" if plan["engine"] == "persistent" else "stepwise"


def predictions() -> str:
    """The table: microseconds a step, forward / backward."""
    rows = [
        [f"{name} H {hidden}"]
        + [" / ".join(cell(hidden, batch, dtype, b) for b in (False, True)) for batch in BATCHES]
        for name, dtype, sizes in ROWS
        for hidden in sizes
    ]
    header = ["us a step, H100, forward / backward, predicted", *(f"B {b}" for b in BATCHES)]
    return table(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put it into this file")
    args = parser.parse_args(arguments)
    publish(predictions(), args.write, "plan")


if __name__ == "__main__":
    main()
