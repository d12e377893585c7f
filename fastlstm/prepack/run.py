"""Runs a call with prepacked weights."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_variadic

from ..engine.call import Call, Results, autocasts, replaced, state_dtype
from ..engine.engines import transforms_active
from ..engine.stack import run_extension, run_layers


def run_prepacked(call: Call, dtype: torch.dtype, name: str) -> Results:
    """Runs a call, whose `hx` is not None, by the op `fastlstm::lstm_prepacked`.

    `dtype` is that of the layer; autocast casts to it. `name` is its class, for messages.
    """
    casts = autocasts("cpu") and call.input.is_floating_point()
    if casts and torch.float64 not in (call.input.dtype, dtype):
        h_0, c_0 = call.state()
        state = h_0.to(dtype), c_0 if c_0.dtype == state_dtype(dtype) else c_0.to(dtype)
        call = replaced(call, input=call.input.to(dtype), hx=state)
    if call.input.dtype != dtype:
        raise ValueError(f"{name}: expected input of dtype {dtype}, got {call.input.dtype}")
    if _is_differentiated(call):
        problem = f"{name}: prepacked weights give no gradients and serve no torch.func transforms"
        remedy = "call in no_grad() and outside torch.func, or turn it back: fastlstm.unpack(model)"
        raise RuntimeError(f"{problem}; {remedy}")
    # A compiler, a tracer, a dispatch mode or a tensor subclass has to see the op.
    is_traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    is_traced = is_traced or bool(torch._C._len_torch_dispatch_stack())
    if is_traced or has_torch_function_variadic(call.input, *call.state()):
        return run_layers(call, torch.ops.fastlstm.lstm_prepacked, call.return_cell_states)
    return run_extension(call, "auto")


def _is_differentiated(call: Call) -> bool:
    """Whether input or state require a gradient, have a tangent or are transformed."""
    tensors = (call.input, *call.state())
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    if forward_ad._current_level >= 0:
        duals = [forward_ad.unpack_dual(t) for t in tensors]  # type: ignore[no-untyped-call]
        if any(dual.tangent is not None for dual in duals):
            return True
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return transforms_active() and any(map(is_wrapped, tensors))
