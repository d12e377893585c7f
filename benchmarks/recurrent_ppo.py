"""Time the training of recurrent policies in RL libraries: nn.LSTM, converted, and with `reset=`.

    python benchmarks/recurrent_ppo.py
    python benchmarks/recurrent_ppo.py --library ppo_sb3 --hidden 256 --rounds 3
    python benchmarks/recurrent_ppo.py --write docs/reference/figures.md

The programs in `examples/` train the same policy from the same seed. The variants take turns in one
process, on one thread. A figure is the CPU time of the training with nn.LSTM divided by the CPU
time with the LSTM of the column, as the median over the rounds. The time includes the environments
and the optimizer. The libraries must be installed: `pip install ".[works-with]"`.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import machine
import torch
from markdown import publish, table
from timing import cpu_time_clock

sys.path.insert(0, str(machine.ROOT / "examples"))

# For each program in examples/, the package that it demonstrates.
LIBRARIES = {
    "ppo_sb3": "sb3-contrib",
    "ppo_cleanrl": "gymnasium",
    "ppo_rl_games": "rl-games",
    "ppo_torchrl": "torchrl",
}


def seconds(example: Any, lstm: str, steps: int, hidden: int) -> float:
    """Trains a policy once and returns the CPU time in seconds."""
    return cpu_time_clock(lambda: example.train(lstm, steps, hidden), 1)


def measure(name: str, steps: int, hidden: int, rounds: int) -> list[str]:
    """Returns a row of the table. `steps` are those of all environments together."""
    example = importlib.import_module(name)
    for lstm in example.LSTMS:  # warm up
        example.train(lstm, 1024, hidden)
    turn = lambda: {lstm: seconds(example, lstm, steps, hidden) for lstm in example.LSTMS}
    times = [turn() for _ in range(rounds)]
    library = LIBRARIES[name]
    speed = steps / statistics.median(t["nn.LSTM"] for t in times)
    row = [f"`{name}.py`, {library} {version(library)}, H {hidden}", f"{speed:,.0f}"]
    for lstm in ("convert", "reset"):
        ratios = [t["nn.LSTM"] / t[lstm] for t in times if lstm in t]
        row.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--library", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--hidden", nargs="+", type=int, default=[64, 256])
    add("--steps", type=int, default=8192, help="steps of all environments together")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--write", type=Path, metavar="FILE", help="also put the table into this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = product(args.library, args.hidden)
    rows = [measure(name, args.steps, hidden, args.rounds) for name, hidden in cases]
    head = ["whole training", "frames a second, nn.LSTM"]
    head += ["nn.LSTM / converted", "nn.LSTM / `reset=`"]
    text = f"{machine.line(machine.describe('cpu'))}.\n\n{table(head, rows)}"
    publish(text, args.write, "training")


if __name__ == "__main__":
    main()
