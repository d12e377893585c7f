"""Who computes a plain call under engine="auto": pure functions of the call and the device.

What `fastlstm.tune` measured comes first; else it is PyTorch's own LSTM on a GPU, ours on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _build, _measured
from ._call import DTYPES, LstmCall

# While fastlstm.tune runs a model: its calls of `of`, by device and kind.
noted: dict[tuple[str, str], tuple[LstmCall, Stack]] | None = None

_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


class Stack(NamedTuple):
    """A plain call of a stack of layers, as far as its time depends on it."""

    dtype: str
    input_size: int
    hidden_size: int
    batch: int
    steps: int
    proj_size: int = 0
    num_layers: int = 1
    directions: int = 1
    bias: bool = True
    packed: bool = False
    training: bool = False

    @classmethod
    def of(cls, call: LstmCall, num_layers: int, directions: int) -> Stack:
        """Of a stack that is given together as `call`."""
        input, h_0, c_0, weights, layout, batch_sizes, *_ = call
        return cls(
            dtype=dtype_of(input),
            input_size=input.size(-1),
            hidden_size=c_0.size(-1),
            batch=int(h_0.size(1)),
            steps=int(input.size(0) if batch_sizes is None else batch_sizes.size(0)),
            proj_size=h_0.size(-1) if "projection" in layout else 0,
            num_layers=num_layers,
            directions=directions,
            bias="bias" in layout,
            packed=batch_sizes is not None,
            training=torch.is_grad_enabled()
            and any(t.requires_grad for t in (input, h_0, c_0, *weights)),
        )

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def key(self) -> str:
        """The name of all calls that count as alike: batch and steps up to a power of two."""
        words = [self.dtype]
        for name, value in self._asdict().items():
            if name in ("batch", "steps"):
                words.append(f"{name} up to {1 << (value - 1).bit_length()}")
            elif type(value) is int:
                words.append(f"{name} {value}")
            elif value is True:
                words.append(name)
        return ", ".join(words)


class Gpu(NamedTuple):
    """What a choice knows of a GPU; `capability` is 10 * major + minor."""

    sm_count: int
    capability: int
    allow_tf32: bool = True
    free_sms: int = 0  # of sm_count, for others


class Choice(NamedTuple):
    """An engine, and the reason."""

    engine: str
    why: str


def dtype_of(input: Tensor) -> str:
    """The name of the dtype in which a call is computed: on a GPU that of autocast, if it is on."""
    dtype = input.dtype
    if input.is_cuda and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    return _NAMES[dtype]


def divisions(stack: Stack, gpu: Gpu) -> list[dict[str, int] | None]:
    """How the persistent engine divides a layer's work, forward and in training backward."""
    plan = functools.partial(
        _build.library.plan_cuda,
        hidden_size=stack.hidden_size,
        batch=max(stack.batch, 1),
        steps=stack.steps,
        directions=stack.directions,
        dtype=stack.dtype,
        allow_tf32=gpu.allow_tf32,
        sm_count=max(gpu.sm_count - gpu.free_sms, 0),
        capability=gpu.capability,
    )
    return [plan(backward=backward) for backward in ([False, True] if stack.training else [False])]


@functools.lru_cache(maxsize=4096)
def fits(stack: Stack, gpu: Gpu) -> bool:
    """Whether the persistent engine serves a call."""
    return not stack.proj_size and stack.batch > 0 and all(divisions(stack, gpu))


def on_cpu() -> Choice:
    """The choice on this machine where nothing was measured: the op, whose planner decides more."""
    if not _build.has_kernels("cpu"):
        return Choice("torch", "there are no kernels")
    return Choice("auto", "measured ahead on two processors")


def this_gpu(index: int) -> Gpu:
    """A GPU of this machine."""
    sm_count, capability, _ = _build.gpu(index)
    tf32 = _measured.matmul_precision() == "tf32"
    return Gpu(sm_count, capability, tf32, _build.library.free_sms())


def unmeasured(device: torch.device) -> Choice:
    """The choice without measurements, on a GPU for which there are kernels or on this CPU."""
    if device.type == "cuda":
        return Choice("torch", "fastlstm.tune has not measured ours here")
    return on_cpu()


def of_stack(stack: Stack, device: torch.device) -> Choice:
    """The choice of `fastlstm.tune`, if it has measured such a call, else that without."""
    is_known = _measured.active and device.type != "meta"
    engine = _measured.engine(device, stack.key()) if is_known else None
    if engine is None or (engine == "persistent" and not fits(stack, this_gpu(device.index))):
        return unmeasured(device)
    return Choice(engine, "measured by fastlstm.tune")


def of_step(input: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor], layout: str) -> str:
    """The engine of an LSTMCell on a GPU: PyTorch's own, which has as many kernels, or measured."""
    if not _measured.active:
        return "torch"
    call = LstmCall(input.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), weights, layout)
    return of(call, 1, 1).engine


def of(call: LstmCall, num_layers: int, directions: int) -> Choice:
    """The choice for a plain call that the op and PyTorch's own LSTM can serve."""
    stack, device = Stack.of(call, num_layers, directions), call.input.device
    if noted is not None:
        noted.setdefault((str(device), stack.key()), (call, stack))
    return of_stack(stack, device)
