"""The op under `torch.func`: vmap folds into the batch, and gradients stay apart for each sample.

torch.func refuses the op's own autograd, which is C++. Here the op is called by two
`autograd.Function`s instead. vmap of either is one call with the mapped dimension folded into the
batch. Backward asks the op for the gradient of the gates alone, which belongs to a row; the
gradients of the weights are plain products after it, which vmap turns into batched ones. So
`vmap(grad(...))` walks all samples at once. Where weights are mapped (an ensemble), each member
has a call of its own. Second derivatives are those of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _build, reference
from ._call import LstmCall

_Dims = tuple[int | None, ...]


def serves(call: LstmCall) -> bool:
    """Whether `lstm_layer` can serve a call under the transforms that are active."""
    others = (call.batch_sizes, call.h_mask, call.zoneout_h, call.zoneout_c)
    if call.layout not in ("", "bias") or any(other is not None for other in others):
        return False
    no_function = torch._C._functorch.TransformType.Functionalize  # it knows no `Function`
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return all(transform.key() != no_function for transform in stack)


def lstm_layer(call: LstmCall, engine: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.lstm_layer` by an engine of the op, for calls that it `serves`."""
    apply: Any = _Layer.apply
    state = call.input, call.h_0, call.c_0
    output, h_n, c_n, cells, _ = apply(
        engine, call.layout, call.lengths, call.reset, *state, *call.weights
    )
    return output, h_n, c_n, cells


def _call(
    layout: str, lengths: Any, reset: Any, input: Any, h_0: Any, c_0: Any, *weights: Any
) -> LstmCall:
    """The call of a `Function`, whose arguments are flat."""
    return LstmCall(input, h_0, c_0, weights, layout, None, lengths, reset)


# Where `_call`'s arguments have the batch.
_CALL_WHERE = (None, 0, 1, 1, 1, 1)


class _Layer(Function):
    @staticmethod
    def forward(engine: str, *call: Any) -> Any:
        saved = {"save_cells": True, "save_gates": True}
        return torch.ops.fastlstm.lstm(*_call(*call), **saved, engine=engine)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.engine, ctx.layout, *tensors = inputs
        ctx.save_for_backward(output[0], output[3], output[4], *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        output, cells, gates, *tensors = ctx.saved_tensors
        input, h_0, _, weights, layout, _, lengths, reset, *_ = call = _call(ctx.layout, *tensors)
        none = (None, None, None, None)
        if all(g is None for g in grads):
            return *none, None, None, None, *[None] * len(weights)
        if forward_ad._current_level >= 0:  # the pullback of a vjp inside a jvp
            found: Any = _row_grads(grads[:4], call)
        else:
            apply: Any = _RowGrads.apply
            found = apply(ctx.engine, *grads[:4], output, cells, gates, layout, *tensors)
        grad_input, grad_h_0, grad_c_0, *d_gates = found
        if lengths is not None:  # a NaN in the padding must not reach dL/dW_ih
            steps = torch.arange(input.shape[0], device=input.device).unsqueeze(1)
            input = torch.where((steps < lengths).unsqueeze(-1), input, 0.0)
        grad_weights: list[Tensor] = []
        rows = input.shape[0] * input.shape[1]  # the older vmap has no rule for flatten
        for d, h in enumerate(output.chunk(len(d_gates), -1)):
            d_rows = d_gates[d].reshape(rows, d_gates[d].shape[-1])
            h_prev = _previous_hidden(h, h_0[d], lengths, reset, reverse=d == 1)
            grad_weights += [d_rows.t() @ t.reshape(rows, t.shape[-1]) for t in (input, h_prev)]
            if layout:  # a bias; the other options are not served here
                grad_bias = d_rows.sum(0)
                grad_weights += [grad_bias, grad_bias.clone()]  # users scale them in place
        return *none, grad_input, grad_h_0, grad_c_0, *grad_weights

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> Any:
        return _fold(_Layer, (None, *_CALL_WHERE), (1, 1, 1, 2, 2), info, in_dims, args)


class _RowGrads(Function):
    """dL/dinput, dL/dh_0, dL/dc_0, and of each direction dL/d(pre-activations) [T,B,4H].

    Its arguments are the engine, the gradients of output, h_n, c_n and cells, the saved output,
    cells and gates, then those of `_call`.
    """

    @staticmethod
    def forward(engine: str, *args: Any) -> Any:
        requested = {"input_needs_grad": True, "state_needs_grad": True, "per_row": True}
        *state, d_gates = torch.ops.fastlstm.lstm_backward(
            *_call(*args[7:]), *args[:7], **requested, engine=engine
        )
        return *state, *d_gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *given, ctx.layout = inputs[:9]
        ctx.save_for_backward(*given[:4], *inputs[9:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *given, lengths, reset = ctx.saved_tensors[:6]
        tensors = ctx.saved_tensors[6:]
        there = [g is not None for g in given]

        def function(*floating: Tensor) -> tuple[Tensor, ...]:
            found = iter(floating)
            given_now = [next(found) if is_there else None for is_there in there]
            return _row_grads(given_now, _call(ctx.layout, lengths, reset, *found))

        floating = [t for t in (*given, *tensors) if t is not None]
        found = iter(torch.func.vjp(function, *floating)[1](grads))
        by_given = [next(found) if is_there else None for is_there in there]
        # output, cells and gates were recomputed, so all gradients have gone to the arguments
        return None, *by_given, None, None, None, None, None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: _Dims, *args: Any) -> Any:
        where = (None, 1, 1, 1, 2, 1, 2, 2, *_CALL_WHERE)
        return _fold(_RowGrads, where, (1,) * 5, info, in_dims, args)


def _row_grads(grads: Sequence[Tensor | None], call: LstmCall) -> tuple[Tensor, ...]:
    """`_RowGrads` by the reference, differentiable."""
    input, directions = call.input, call.directions
    units = directions[0].W_ih.shape[0]
    eye = torch.eye(units, dtype=input.dtype, device=input.device)
    zero = torch.zeros_like(eye)

    def layer(input: Tensor, h_0: Tensor, c_0: Tensor, *added: Tensor) -> Any:
        """With something added to the pre-activations: more input, at weights of 1."""
        wide: list[Tensor] = []
        for w in directions:
            ones = [eye if w is other else zero for other in directions]
            wide += w._replace(W_ih=torch.cat([w.W_ih, *ones], 1)).tensors()
        input = torch.cat([input, *added], -1)
        return reference.lstm_layer(*call._replace(input=input, h_0=h_0, c_0=c_0, weights=wide))

    added = [input.new_zeros(*input.shape[:2], units)] * len(directions)
    results, pull, *_ = torch.func.vjp(layer, input, call.h_0, call.c_0, *added)
    pairs = zip(grads, results, strict=True)
    found: tuple[Tensor, ...] = pull(
        tuple(torch.zeros_like(r) if g is None else g for g, r in pairs)
    )
    return found


def _previous_hidden(
    output: Tensor, h_0: Tensor, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> Tensor:
    """h_{t-1} of every step [T,B,H], as W_hh saw it; `output` [T,B,H] is of one direction."""
    if reverse:
        h_prev = torch.cat([output[1:], h_0.unsqueeze(0)])
        if lengths is not None:
            steps = torch.arange(len(output), device=output.device).unsqueeze(1)
            h_prev = torch.where((steps == lengths - 1).unsqueeze(-1), h_0, h_prev)
    else:
        h_prev = torch.cat([h_0.unsqueeze(0), output[:-1]])
    return h_prev if reset is None else torch.where(reset.unsqueeze(-1), 0.0, h_prev)


def _fold(
    function: Any, where: _Dims, results_where: _Dims, info: Any, in_dims: _Dims, args: Any
) -> Any:
    """vmap of a Function whose first arguments have the batch at dimension `where`, weights last.

    Folds the mapped dimension into the batch; where a weight is mapped too, calls member by member.
    """
    size, count = info.batch_size, len(where)
    if any(dim is not None for dim in in_dims[count:]):
        pairs = list(zip(args, in_dims, strict=True))
        members = [
            function.apply(*(a if dim is None else a.select(dim, k) for a, dim in pairs))
            for k in range(size)
        ]
        stacked = tuple(torch.stack(results) for results in zip(*members, strict=True))
        return stacked, (0,) * len(stacked)

    def fold(tensor: Any, mapped: int | None, batch: int | None) -> Any:
        if batch is None or tensor is None:
            return tensor
        if mapped is None:
            tensor = tensor.unsqueeze(0).expand(size, *tensor.shape)
        return tensor.movedim(mapped or 0, batch).flatten(batch, batch + 1)

    c_0, mapped = args[count - 1], in_dims[count - 1]
    batch = c_0.size(1 if mapped is None or mapped > 1 else 2)  # where there are no rows, too
    folded = [fold(*each) for each in zip(args, in_dims, where, strict=False)]
    results = function.apply(*folded, *args[count:])
    dims = results_where[: len(results)]
    return tuple(r.unflatten(d, (size, batch)) for r, d in zip(results, dims, strict=True)), dims


def _backward_of_samples(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """torch.func.vmap over `torch.autograd.grad`: the op's backward, given batched gradients."""
    given = list(zip(args, in_dims, strict=True))
    options = [value for value in args if isinstance(value, (str, bool))]
    pairs = [each for each in given if not isinstance(each[0], (str, bool, list))]
    pairs += [
        each for w, dims in given if isinstance(w, list) for each in zip(w, dims, strict=True)
    ]
    tensors = [t if dim is None else t.movedim(dim, 0) for t, dim in pairs]
    batched = [dim is not None for _, dim in pairs]
    found = _build.library.lstm_backward_of_samples(tensors, batched, *options)
    return (*found[:3], found[3:]), (0, 0, 0, [0] * len(found[3:]))


if _build.extension_available():
    torch.library.register_vmap("fastlstm::lstm_backward", _backward_of_samples)
