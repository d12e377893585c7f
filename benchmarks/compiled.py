"""nn.LSTM under torch.compile beside eager nn.LSTM, in a process that can be stopped.

Compilation unrolls the steps of a training pass, so it may take minutes. What is not finished
within the limit is reported as such. A graph break counts as a failure, since eager code would run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import torch
from cases import Case
from timing import CLOCKS, Effort, alternate, settle_malloc
from workload import build, check_agreement, settings


def ratios(cases: Sequence[Case], device: str, limit: float) -> dict[Case, float | str]:
    """Time of eager nn.LSTM / compiled nn.LSTM of each case, or why there is none.

    Args:
        cases: what to measure; those that compile fastest come first.
        device: "cpu" or "cuda".
        limit: seconds for all cases together, compilation included.
    """
    order = sorted(cases, key=lambda c: (c.mode == "training", c.steps * c.num_layers))
    request = json.dumps([device, [dataclasses.asdict(case) for case in order]])
    child = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        text=True,
        start_new_session=True,  # the compiler starts processes of its own
    )
    late = f"not compiled within {limit:g} s"
    try:
        output, errors = child.communicate(request, timeout=limit)
        if child.returncode:
            late = errors.strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
    done = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
    results: dict[Case, float | str] = dict.fromkeys(cases, late)
    results.update(zip(order, done, strict=False))
    return results


def _measure(case: Case, device: str) -> float | str:
    torch._dynamo.config.allow_rnn = True
    torch._dynamo.reset()
    with settings(case):
        eager = build(case, "torch.nn", device)
        try:
            compiled = build(
                case, "torch.nn", device, lambda module: torch.compile(module, fullgraph=True)
            )
            check_agreement(case, eager, compiled)
        except Exception as error:  # whatever the compiler raises is the result
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return alternate(eager.step, compiled.step, CLOCKS[device], Effort(0.5, 5)).ratio


if __name__ == "__main__":
    device, cases = json.load(sys.stdin)
    settle_malloc()
    for case in cases:
        print(json.dumps(_measure(Case(**case), device)), flush=True)
