"""Checks our CUDA kernels on this GPU before their first use, if a check can run at that time.

The kernels of the persistent engine wait for each other and could hang, so they run only after a
check in a child process has passed. The stepwise kernels cannot hang: if `fastlstm.check` has not
checked them on this GPU, a small layer is compared with the equations before their first use.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from ..engine import records
from ..engine.op import run_op
from ..engine.records import PASSED
from .cases import BITS, cases_of, compute, draw, expected_results, judge
from .parent import check_cases, verdict_on

CHECKED_DEVICE_TYPE = "cuda"  # only the kernels for this device type are checked
SECONDS = 60.0  # the time limit of a check
SMALL_CASE = "reset, lengths, both directions"  # the case that is compared before the first use
_problems: dict[tuple[torch.device, torch.dtype], str] = {}  # what is wrong with stepwise, or ""
_lock = threading.Lock()  # one check at a time


def can_check() -> bool:
    """Whether a check can run: there is a GPU, FASTLSTM_CHECK is on, no CUDA graph is captured."""
    value = os.environ.get("FASTLSTM_CHECK") or "on"
    if value not in ("on", "off"):
        raise ValueError(f"FASTLSTM_CHECK: expected on or off, got {value!r}")
    cuda: Any = torch.cuda
    is_capturing = cuda.is_initialized() and cuda.is_current_stream_capturing()
    return value == "on" and cuda.is_available() and not is_capturing


def why_not_persistent(device: torch.device) -> str:
    """Why the persistent engine must not run on a GPU, or "" if it has passed a check."""
    with _lock:
        verdict = records.verdict("persistent", device)
        if not verdict and can_check():
            text = 'fastlstm checks the engine "persistent" on this GPU and keeps the result. This'
            warnings.warn(f"{text} takes up to {SECONDS:.0f} s", RuntimeWarning, stacklevel=2)
            cases = cases_of(["persistent"], device)
            verdict = verdict_on(check_cases(device, cases, time.monotonic() + SECONDS))
    if verdict == PASSED:
        return ""
    return f"it did not pass `python -m fastlstm check` on this GPU: {verdict or 'not checked'}"


def stepwise_is_wrong(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the stepwise kernels compute something else than the equations on a GPU.

    The verdict on record decides. If there is none, a small layer is compared, once in a process;
    if no check can run now, the kernels count as right.
    """
    key = device, dtype
    with _lock:
        if key not in _problems:
            verdict = records.verdict("stepwise", device)
            if not verdict:
                if not can_check():
                    return False
                # A new thread does not inherit the caller's autocast, gradient mode and tracer.
                with ThreadPoolExecutor(1) as thread:
                    verdict = thread.submit(_compare, device, dtype).result()
            _problems[key] = verdict.removeprefix(PASSED)
            if _problems[key]:
                problem = f"fastlstm's kernels are not used on {device} in {dtype}: {verdict}"
                advice = "Please report this with the output of `python -m fastlstm check`."
                text = f"{problem}. The equations in Python run instead, which are slower. {advice}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        return bool(_problems[key])


# torch.compile calls these functions instead of tracing them. torch.compiler.assume_constant_result
# does the same, but imports the compiler.
for _function in (why_not_persistent, stepwise_is_wrong):
    vars(_function)["_dynamo_marked_constant"] = True


def _compare(device: torch.device, dtype: torch.dtype) -> str:
    """Compares a small layer with the equations, both on a GPU; returns what is wrong, or ""."""
    kind = str(dtype).removeprefix("torch.")
    # torch 2.8 lacks this function, and has only `allow_tf32`.
    query = getattr(torch._C, "_get_fp32_precision_getter", None)
    is_tf32 = query("cuda", "matmul") == "tf32" if query else torch.backends.cuda.matmul.allow_tf32
    bits = BITS["tf32" if is_tf32 and kind == "float32" else kind]
    try:
        got = compute(partial(run_op, engine="stepwise"), draw(SMALL_CASE, kind, device), dtype)
        return judge(SMALL_CASE, bits, got, expected_results(SMALL_CASE, kind, device))[1]
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        return str(error).partition("\n")[0]
