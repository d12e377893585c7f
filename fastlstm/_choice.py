"""Who computes a plain call under engine="auto": pure functions of the call and the device.

In this order: PyTorch's own where a GPU refused to launch ours; what `fastlstm.tune` measured;
PyTorch's where ours would go step by step or cuDNN has a persistent kernel too; ours where the
whole call is predicted well ahead. On a CPU it is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _build, _measured
from ._call import DTYPES, LstmCall

# While fastlstm.tune runs a model: its calls of `of`, by device and kind.
noted: dict[tuple[str, str], tuple[LstmCall, Stack]] | None = None

# Of the time predicted for cuDNN ours is to take this at most, until a GPU has measured both: the
# constants of csrc/cuda/plan.h are from data sheets.
AHEAD = 0.55
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
    clock_ghz: float = 0.0  # 0 stands for that of the data sheet


class Choice(NamedTuple):
    """An engine, and the reason."""

    engine: str
    why: str
    no_walk: bool = False  # whether ours would have to go step by step on a GPU


def dtype_of(input: Tensor) -> str:
    """The name of the dtype in which a call is computed: on a GPU that of autocast, if it is on."""
    dtype = input.dtype
    if input.is_cuda and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    return _NAMES[dtype]


def cudnn_class(stack: Stack, gpu: Gpu) -> str:
    """Which kernels cuDNN has for a call: "standard", "small H" or "persist static".

    The last two walk all steps in one launch, as ours do. Follows ATen's rule for sm_80 and newer
    (aten/src/ATen/native/cudnn/RNN.cpp); ours do not run on others.
    """
    if stack.packed or stack.proj_size or stack.dtype == "float64":
        return "standard"
    H, B = stack.hidden_size, stack.batch
    if H <= (128 if stack.training else 192):
        return "small H"
    one_walk = stack.num_layers == stack.directions == 1
    sizes = H % 128 == 0 and H <= 1024 and stack.input_size % 128 == 0
    major, minor = divmod(gpu.capability, 10)
    device = major >= 8 and minor != 6 and gpu.sm_count >= 98 and B % 8 == 0 and B <= 128
    is_persistent = stack.dtype == "float16" and one_walk and sizes and device
    return "persist static" if is_persistent else "standard"


def plans(stack: Stack, gpu: Gpu) -> list[dict[str, Any]]:
    """What the planner says of the walks of each layer, forward and in training backward."""
    plan = functools.partial(
        _build.library.plan_cuda,
        hidden_size=stack.hidden_size,
        batch=max(stack.batch, 1),
        steps=stack.steps,
        directions=stack.directions,
        dtype=stack.dtype,
        allow_tf32=gpu.allow_tf32,
        layers=stack.num_layers,
        sm_count=max(gpu.sm_count - gpu.free_sms, 0),
        capability=gpu.capability,
        clock_ghz=gpu.clock_ghz,
    )
    return [plan(backward=backward) for backward in ([False, True] if stack.training else [False])]


@functools.lru_cache(maxsize=4096)
def on_gpu(stack: Stack, gpu: Gpu) -> Choice:
    """The choice where nothing was measured; "auto" is the persistent engine."""
    walks = plans(stack, gpu)
    if stack.proj_size or stack.batch == 0 or any(w["engine"] == "stepwise" for w in walks):
        return Choice("torch", "ours would go step by step", no_walk=True)
    kind = cudnn_class(stack, gpu)
    if kind != "standard":
        return Choice("torch", f"cuDNN has a persistent kernel too ({kind}); nobody measured which")
    ours, theirs = (sum(walk[who] for walk in walks) for who in ("stack_us", "cudnn_us"))
    times = f"{ours:.0f} us are predicted, of cuDNN {theirs:.0f} or more"
    return Choice("auto" if ours < AHEAD * theirs else "torch", times)


def on_cpu() -> Choice:
    """The choice on this machine where nothing was measured: the op, whose planner decides more."""
    if not _build.has_kernels("cpu"):
        return Choice("torch", "there are no kernels")
    return Choice("auto", "measured ahead on two processors")


def this_gpu(index: int) -> Gpu:
    """A GPU of this machine."""
    sm_count, capability, clock_ghz, _ = _build.gpu(index)
    tf32 = _measured.rnn_precision("cuda") == "tf32"
    return Gpu(sm_count, capability, tf32, _build.library.free_sms(), clock_ghz)


def unmeasured(stack: Stack, device: torch.device) -> Choice:
    """The choice without measurements, on a GPU for which there are kernels or on this CPU."""
    if device.type == "cuda":
        return on_gpu(stack, this_gpu(device.index))
    return on_cpu()


def of_stack(stack: Stack, device: torch.device) -> Choice:
    """The choice of `fastlstm.tune`, if it has measured such a call, else that without."""
    is_gpu = device.type == "cuda"
    if is_gpu and not _measured.forced and _build.library.is_refused(device.index):
        return Choice("torch", "this GPU refused to launch ours", no_walk=True)
    is_known = _measured.active and device.type != "meta"
    engine = _measured.engine(device, stack.key()) if is_known else None
    return Choice(engine, "measured by fastlstm.tune") if engine else unmeasured(stack, device)


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
