"""What `fastlstm.tune` measured: a JSON object of engines by call, read at import.

A call has an entry where another engine was faster than the one that would run anyway.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import warnings
from pathlib import Path

import torch

from . import _build
from ._call import Call

tuned: dict[str, str] = {}  # engines by call
noted: dict[str, Call] | None = None  # while tune runs a model: its calls


def load() -> Path | None:
    """Reads the file; where it is, unless there is to be none, or it is not ours."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    given = os.environ.get("FASTLSTM_TUNE") or f"{cache}/fastlstm/tuned.json"
    if given == "off":
        return None
    file = Path(os.path.expanduser(given))
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not all(isinstance(name, str) for name in found.values()):
            raise ValueError("expected names of engines")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        problem = f"is not what fastlstm.tune writes ({error!r}); delete it"
        if file.is_dir():
            problem = "is a folder; set FASTLSTM_TUNE to the path of a file"
        warnings.warn(
            f"fastlstm ignores {file}, which {problem}, or set FASTLSTM_TUNE=off",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    tuned.update(found)
    return file


def store(call: str, engine: str | None) -> None:
    """Makes "auto" follow an engine for a call, None for none, here and in later processes.

    The file is written whole and moved into its place: of two processes at once the last one wins.
    """
    file = load()
    tuned.pop(call, None)
    if engine is not None:
        tuned[call] = engine
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = Path(f"{file}.{os.getpid()}.new")
        new.write_text(json.dumps(tuned, indent=1), encoding="utf-8")
        os.replace(new, file)


def engine(call: Call) -> str | None:
    """The engine that was faster for a plain call of a stack, if there is one."""
    if call.is_cell or call.options() or not isinstance(call.input.numel(), int):
        return None  # sizes may be symbols under a tracer
    key = (
        f"{describe(call)}; {_machine(call.input.device, torch.get_num_threads())}, {_precision()}"
    )
    if noted is not None:
        noted.setdefault(key, call)
    return tuned.get(key)


def describe(call: Call) -> str:
    """What calls that count as alike have in common: batch and steps up to a power of two."""
    steps, batch = (1 << (size - 1).bit_length() for size in call.steps_and_batch())
    tensors = (call.input, *(call.hx or ()), *call.weights)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    mode = "training" if trains else "inference"
    form = "padded" if call.batch_sizes is None else "packed"
    sizes = call.input.size(-1), call.weights[0].size(0) // 4, call.weights[1].size(-1)
    return (
        f"{mode} on {call.input.device.type} in {call.dtype()}, {form}, batch up to {batch}, steps "
        f"up to {steps}, input, hidden and output size {sizes}, num_layers {call.num_layers}, "
        f"directions {call.directions}, {call.layout or 'no bias'}"
    )


@functools.cache
def _machine(device: torch.device, threads: int) -> str:
    """What the time of a call depends on besides it."""
    cpus = Path("/proc/cpuinfo")  # of Linux alone
    found = re.search("model name.*: (.*)", cpus.read_text()) if cpus.exists() else None
    name = found[1] if found else platform.processor()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    commit = _build.build_record().get("commit")
    return f"{name}, {threads} threads, torch {torch.__version__}, fastlstm {commit}"


def _precision() -> str:
    """How float32 is multiplied by PyTorch's LSTM on a CPU and a GPU, and by ours on a GPU."""
    ask = getattr(torch._C, "_get_fp32_precision_getter", lambda *_: "as torch 2.8 does")
    ways = ("mkldnn", "rnn"), ("cuda", "rnn"), ("cuda", "matmul")
    return f"float32 {', '.join(ask(*way) for way in ways)}"
