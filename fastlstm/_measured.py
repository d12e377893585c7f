"""What `fastlstm.tune` measured: one JSON file, read once and replaced as a whole.

Its machines, by name, have entries by call; there is an entry where another engine than the one
that would run anyway was faster.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from . import _build
from ._call import Call

_MOST_BYTES = 1 << 26  # of the file; more was not written by us
Entries = dict[str, dict[str, Any]]  # by call

machines: dict[str, Entries] = {}
noted: dict[str, Call] | None = None  # while tune runs a model: its plain calls by kind
active = False  # whether there is any entry, or calls are noted: else nobody asks


def path() -> Path | None:
    """The file; None if FASTLSTM_TUNE is "off". An OSError where no home folder is known."""
    given = os.environ.get("FASTLSTM_TUNE")
    if given == "off":
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given or f"{cache}/fastlstm/tuned.json").expanduser()
    except RuntimeError as error:
        raise OSError(f"{error} FASTLSTM_TUNE names another place for it.") from None


def read(file: Path) -> dict[str, Entries] | None:
    """The content of a file, {} if there is none; None with a warning if it is no such file."""
    try:
        if file.stat().st_size > _MOST_BYTES or not file.is_file():
            raise ValueError("no regular file, or too large")
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != 1:
            raise ValueError(f"expected format 1, got {record['format']!r}")
        found: dict[str, Entries] = record["machines"]
        for entries in found.values():
            for call, entry in entries.items():
                if not isinstance(entry["engine"], str):
                    raise ValueError(f"engine of {call!r}: expected a name")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(
            f"fastlstm ignores {file}, which is not what fastlstm.tune writes ({error!r}); "
            "delete it, or set FASTLSTM_TUNE=off",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return found


def load() -> None:
    """Reads the file; at import, once."""
    global machines, active
    machines = {}
    with contextlib.suppress(OSError):  # where there is no home, nothing was stored
        file = path()
        machines = (read(file) if file else None) or {}
    active = any(machines.values())


def update(name: str, found: Mapping[str, dict[str, Any] | None]) -> None:
    """Takes entries of a machine, and drops those that are None."""
    global active
    machines[name] = _merged(machines.get(name, {}), found)
    active = any(machines.values())


def _merged(entries: Entries, found: Mapping[str, dict[str, Any] | None]) -> Entries:
    return {call: entry for call, entry in (entries | dict(found)).items() if entry is not None}


def engine(call: Call) -> str | None:
    """The engine that was measured for a plain call of a stack on this machine."""
    if call.is_cell or call.options() or not isinstance(call.input.numel(), int):
        return None  # sizes may be symbols under a tracer
    kind = kind_of(call)
    if noted is not None:
        noted.setdefault(kind, call)
    entry = machines.get(machine(call.input.device), {}).get(kind)
    return None if entry is None else entry["engine"]


def kind_of(call: Call) -> str:
    """The name of all plain calls that count as alike: batch and steps up to a power of two."""
    input, (h_0, c_0), packed = call.input, call.state(), call.batch_sizes is not None
    tensors = (input, h_0, c_0, *call.weights)
    steps = input.size(0) if call.batch_sizes is None else call.batch_sizes.size(0)
    words = {
        "input_size": input.size(-1),
        "hidden_size": c_0.size(-1),
        "batch up to": _power_of_two(h_0.size(1)),
        "steps up to": _power_of_two(steps),
        "proj_size": h_0.size(-1) if "projection" in call.layout else 0,
        "num_layers": call.num_layers,
        "directions": call.directions,
    }
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    flags = {"bias": "bias" in call.layout, "packed": packed, "training": training}
    sizes = [f"{name} {value}" for name, value in words.items()]
    return ", ".join(
        [str(call.dtype()).removeprefix("torch."), *sizes, *(n for n in flags if flags[n])]
    )


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


@contextlib.contextmanager
def note() -> Iterator[dict[str, Call]]:
    """Within it the plain calls are noted, one of each kind."""
    global noted, active
    noted, before, active = {}, active, True
    try:
        yield noted
    finally:
        noted, active = None, before


def store(name: str, found: Mapping[str, dict[str, Any] | None]) -> None:
    """Puts entries into the file, or removes those that are None; an OSError leaves it as is.

    The file is written whole and moved into its place: of two processes at once the last one wins.
    """
    file = path()
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = read(file)
    if everything is None:  # somebody may want it
        raise OSError(f"{file} is not what fastlstm.tune writes")
    everything[name] = _merged(everything.get(name, {}), found)
    new = Path(f"{file}.{os.getpid()}.new")
    new.unlink(missing_ok=True)  # of a process that was killed, or a link of somebody else
    try:
        with open(new, "x", encoding="utf-8") as stream:
            json.dump({"format": 1, "machines": everything}, stream, indent=1)
            stream.write("\n")
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


# What torch.backends asks, in a thirtieth of the time; torch 2.8 has none.
_precision: Any = getattr(torch._C, "_get_fp32_precision_getter", None)


def rnn_precision(device_type: str) -> str:
    """In what PyTorch's LSTM multiplies float32 on a device: "ieee", "tf32", "bf16" or "none"."""
    if _precision is None:
        return "tf32" if device_type == "cuda" and torch.backends.cudnn.allow_tf32 else "ieee"
    return str(_precision("cuda" if device_type == "cuda" else "mkldnn", "rnn"))


def matmul_precision() -> str:
    """In what our engines multiply float32 on a GPU."""
    if _precision is None:
        return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    return str(_precision("cuda", "matmul"))


def machine(device: torch.device) -> str:
    """What measured times depend on besides the call."""
    if device.type == "cuda":
        precision = f"{rnn_precision('cuda')}, ours as {matmul_precision()}"
        return _machine(device.index, 0, precision)
    return _machine(None, torch.get_num_threads(), rnn_precision(device.type))


@functools.lru_cache(maxsize=64)
def _machine(gpu: int | None, threads: int, precision: str) -> str:
    if gpu is None:
        name = f"{_cpu_name()}, {threads} threads"
    else:
        found = torch.cuda.get_device_properties(gpu)
        cudnn: Any = torch.backends.cudnn
        name = f"{found.name}, {found.multi_processor_count} SMs, cuDNN {cudnn.version()}"
    commit = _build.build_record().get("commit") or "unknown"
    versions = f"torch {torch.__version__}, fastlstm {commit}"
    return f"{name}, {versions}, float32 as {precision}"


def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone has the file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x[:10] == "model name"), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
