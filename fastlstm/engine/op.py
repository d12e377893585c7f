"""Runs a call by the op `torch.ops.fastlstm.lstm`, also under `torch.func`.

torch.func refuses the op's own autograd, which is C++. So two `autograd.Function`s call the op:
`_Layer` computes the layer, `_BatchGrads` the gradients that have a batch dimension (of input,
state and gates). vmap folds the mapped dimension into the batch, so `vmap(grad(...))` walks all
samples at once. The gradients of the weights are plain products. If weights are mapped (an
ensemble), each member has a call of its own. Second derivatives are those of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.overrides import has_torch_function_variadic

from .. import _build
from . import reference
from .call import Call, LstmCall, Results, autocasts, live_steps, only_live, replaced
from .stack import run_extension, run_layers

_Dims = tuple[int | None, ...]  # a dimension of each argument or result, or None


def run_op(call: Call, engine: str) -> Results:
    """Runs a call by the op, layer by layer. `engine` is the op's argument, such as "tiled"."""
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._are_functorch_transforms_active():
        return run_layers(replaced(call, hx=call.state()), lstm_layer, engine)
    # Dynamo and tensor subclasses know torch.ops only. torch.jit.trace has to see how the zeros of
    # a state get their batch size.
    is_traced = is_compiling or torch._C._is_tracing()
    if is_traced or has_torch_function_variadic(call.input, *(call.hx or ()), *call.weights):
        call, save_cells = replaced(call, hx=call.state()), call.return_cell_states
        return run_layers(call, torch.ops.fastlstm.lstm, save_cells, False, engine)
    return run_extension(call, engine)


def serves_transforms(call: Call) -> bool:
    """Whether the op can serve a call under the transforms of torch.func that are active."""
    if torch.compiler.is_compiling() or autocasts(call.input.device.type):
        return False
    has_mask = "recurrent_dropout" in call.extra_options()
    if has_mask or call.batch_sizes is not None or call.layout not in ("", "bias"):
        return False
    functionalize = torch._C._functorch.TransformType.Functionalize  # cannot run a `Function`
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return all(transform.key() != functionalize for transform in stack)


def lstm_layer(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs a layer as `reference.lstm_layer` does, by the engine that the last argument names."""
    *fields, engine = arguments
    apply: Any = _Layer.apply
    call = LstmCall(*fields)
    tensors = call.lengths, call.reset, call.input, call.h_0, call.c_0, *call.weights
    output, h_n, c_n, cells, _ = apply(engine, call.layout, *tensors)
    return output, h_n, c_n, cells


def _layer_call(layout: Any, lengths: Any, reset: Any, *tensors: Any) -> LstmCall:
    """The call of a layer, from the arguments of `_Layer` without `engine`."""
    input, h_0, c_0, *weights = tensors
    return LstmCall(input, h_0, c_0, weights, layout, lengths=lengths, reset=reset)


# The batch dimension of engine, layout, lengths, reset, input, h_0 and c_0.
_BATCH_DIM: _Dims = (None, None, 0, 1, 1, 1, 1)


class _Layer(Function):
    """Maps engine, layout, lengths, reset, input, h_0, c_0, weights to the results of the op."""

    @staticmethod
    def forward(engine: str, *arguments: Any) -> Any:
        options = {"save_cells": True, "save_gates": True}
        return torch.ops.fastlstm.lstm(*_layer_call(*arguments), **options, engine=engine)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.engine, ctx.layout, *tensors = inputs
        ctx.save_for_backward(output[0], output[3], output[4], *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        output, cells, gates, *tensors = ctx.saved_tensors
        if all(g is None for g in grads):
            return None, None, *(None for _ in tensors)
        call = _layer_call(ctx.layout, *tensors)
        input, lengths = call.input, call.lengths
        if forward_ad._current_level >= 0:  # forward mode, which `_BatchGrads` lacks
            gradients: Any = _batch_grads(grads[:4], call)
        else:
            apply: Any = _BatchGrads.apply
            gradients = apply(*grads[:4], output, cells, gates, ctx.engine, ctx.layout, *tensors)
        input_state_grads, d_gates = gradients[:3], gradients[3:]
        if lengths is not None:  # a NaN in the padding must not reach dL/dW_ih
            input = only_live(input, live_steps(input, lengths))
        weight_grads: list[Tensor] = []
        rows = input.shape[0] * input.shape[1]  # `flatten` fails under is_grads_batched
        for k, h in enumerate(output.chunk(len(d_gates), -1)):
            d_rows = d_gates[k].reshape(rows, d_gates[k].shape[-1])
            h_prev = _previous_hidden(h, call.h_0[k], lengths, call.reset, reverse=k == 1)
            weight_grads += [d_rows.t() @ t.reshape(rows, t.shape[-1]) for t in (input, h_prev)]
            if call.layout:  # "bias": `serves_transforms` admits no other layout
                bias_grad = d_rows.sum(0)
                weight_grads += [bias_grad, bias_grad.clone()]  # users scale gradients in place
        return None, None, None, None, *input_state_grads, *weight_grads

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> Any:
        return _fold(_Layer, _BATCH_DIM, info, in_dims, args)


class _BatchGrads(Function):
    """Takes dL/d(output, h_n, c_n, cells), then output, cells, gates, then `_Layer`'s arguments.

    Returns dL/dinput, dL/dh_0, dL/dc_0, and dL/d(pre-activations) [T,B,4H] of each direction.
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        grads_and_saved, engine, call = args[:7], args[7], _layer_call(*args[8:])
        requested = {"input_needs_grad": True, "state_needs_grad": True, "return_d_gates": True}
        backward = torch.ops.fastlstm.lstm_backward
        *gradients, d_gates = backward(*call, *grads_and_saved, **requested, engine=engine)
        return *gradients, *d_gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layout = inputs[8]
        ctx.save_for_backward(*inputs[:4], *inputs[9:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *upstream, lengths, reset = ctx.saved_tensors[:6]
        tensors = ctx.saved_tensors[6:]  # input, h_0, c_0 and the weights
        are_given = [g is not None for g in upstream]

        def recompute(*floating: Tensor) -> tuple[Tensor, ...]:
            remaining = iter(floating)
            upstream = [next(remaining) if is_given else None for is_given in are_given]
            return _batch_grads(upstream, _layer_call(ctx.layout, lengths, reset, *remaining))

        floating = [t for t in (*upstream, *tensors) if t is not None]
        gradients = iter(torch.func.vjp(recompute, *floating)[1](grads))
        d_upstream = [next(gradients) if is_given else None for is_given in are_given]
        # None for output, cells, gates (`recompute` makes them), engine, layout, lengths and reset.
        return *d_upstream, *[None] * 7, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> Any:
        return _fold(_BatchGrads, (1, 1, 1, 2, 1, 2, 2, *_BATCH_DIM), info, in_dims, args)


def _batch_grads(grads: Sequence[Tensor | None], call: LstmCall) -> tuple[Tensor, ...]:
    """Computes by the reference what `_BatchGrads` returns, so that it can be differentiated."""
    input, directions = call.input, call.directions
    width = directions[0].W_ih.shape[0]  # 4H
    eye = torch.eye(width, dtype=input.dtype, device=input.device)
    zero = torch.zeros_like(eye)

    def layer(input: Tensor, h_0: Tensor, c_0: Tensor, *offsets: Tensor) -> Any:
        """Runs the layer with `offsets` added to its gates, as features with identity weights."""
        wide: list[Tensor] = []
        for w in directions:
            identities = [eye if w is other else zero for other in directions]
            wide += replaced(w, W_ih=torch.cat([w.W_ih, *identities], 1)).tensors()
        input = torch.cat([input, *offsets], -1)
        return reference.lstm_layer(*replaced(call, input=input, h_0=h_0, c_0=c_0, weights=wide))

    offsets = [input.new_zeros(*input.shape[:2], width)] * len(directions)  # gradients: d_gates
    results, pull_back, *_ = torch.func.vjp(layer, input, call.h_0, call.c_0, *offsets)
    grads = [torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True)]
    return cast(tuple[Tensor, ...], pull_back(tuple(grads)))


def _previous_hidden(
    output: Tensor, h_0: Tensor, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> Tensor:
    """Returns h_{t-1} of every step [T,B,H], 0 at a reset, from the `output` of one direction."""
    if reverse:
        h_prev = torch.cat([output[1:], h_0.unsqueeze(0)])
        if lengths is not None:
            steps = torch.arange(len(output), device=output.device).unsqueeze(1)
            h_prev = torch.where((steps == lengths - 1).unsqueeze(-1), h_0, h_prev)
    else:
        h_prev = torch.cat([h_0.unsqueeze(0), output[:-1]])
    return h_prev if reset is None else torch.where(reset.unsqueeze(-1), 0.0, h_prev)


def _fold(function: Any, batch_dims: _Dims, info: Any, in_dims: _Dims, args: Any) -> Any:
    """The vmap of a Function: folds the mapped dimension into the batch.

    If a weight is mapped too, each member is a call of its own. `batch_dims` has the batch
    dimension of each argument before the weights. Of a result it is the last but one.
    """
    size, first_weight = info.batch_size, len(batch_dims)
    if any(dim is not None for dim in in_dims[first_weight:]):
        stacked = _by_member(function.apply, info, in_dims, args)
        return stacked, (0,) * len(stacked)

    def fold(tensor: Any, mapped_dim: int | None, batch_dim: int | None) -> Any:
        if batch_dim is None or tensor is None:
            return tensor
        if mapped_dim is None:
            tensor = tensor.unsqueeze(0).expand(size, *tensor.shape)
        return tensor.movedim(mapped_dim or 0, batch_dim).flatten(batch_dim, batch_dim + 1)

    c_0, c_dim = args[first_weight - 1], in_dims[first_weight - 1]
    batch = c_0.size(1 if c_dim is None or c_dim > 1 else 2)  # `unflatten` refuses -1 if size is 0
    folded = [fold(*each) for each in zip(args, in_dims, batch_dims, strict=False)]
    results = function.apply(*folded, *args[first_weight:])
    dims = tuple(r.dim() - 2 for r in results)
    return tuple(r.unflatten(-2, (size, batch)) for r in results), dims


def _by_member(run: Callable[..., Any], info: Any, in_dims: Any, args: Any) -> tuple[Tensor, ...]:
    """Runs once for each member of the mapped dimension, and stacks the results at dimension 0."""

    def member(value: Any, dims: Any, k: int) -> Any:
        if isinstance(value, (tuple, list)):
            return [member(*each, k) for each in zip(value, dims, strict=True)]
        return value if dims is None else value.select(dims, k)

    results = [run(*member(args, in_dims, k)) for k in range(info.batch_size)]
    return tuple(torch.stack(members) for members in zip(*results, strict=True))


def _vmap_of_backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The vmap of lstm_backward, sample by sample. PyTorch's fallback takes no lists of tensors."""
    if not info.batch_size:
        raise RuntimeError("lstm_backward: expected at least one sample under vmap")

    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        *gradients, d_weights = torch.ops.fastlstm.lstm_backward(*inputs)
        return *gradients, *d_weights

    d_input, d_h_0, d_c_0, *d_weights = _by_member(backward, info, in_dims, args)
    return (d_input, d_h_0, d_c_0, d_weights), (0, 0, 0, [0] * len(d_weights))


if _build.extension_available():
    torch.library.register_vmap("fastlstm::lstm_backward", _vmap_of_backward)
