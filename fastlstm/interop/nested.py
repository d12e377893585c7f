"""Nested tensors of layout torch.jagged as padded rows with lengths, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal import nested_tensor

# The public nested_tensor_from_jagged calls this function after a check that logs a warning.
_from_jagged: Any = nested_tensor.nested_view_from_values_offsets_lengths


def run(forward: Callable[..., Any], input: Any, hx: Any, batch_first: bool) -> tuple[Any, Any]:
    """Runs `forward` on the padded rows of a nested tensor [B,j,input_size].

    `forward` takes a padded input, hx and, by keyword, lengths. Without `batch_first` it takes the
    steps first. The output becomes a nested tensor with the offsets of the input.
    """
    is_jagged = input.layout is torch.jagged
    if not is_jagged or input.dim() != 3 or not isinstance(input.size(2), int):
        expected = "a nested tensor of layout torch.jagged and shape (batch, j, input_size)"
        got = tuple(input.shape) if is_jagged else input.layout
        raise TypeError(f"input: expected {expected}, got {got}")
    if not input.size(0):
        raise RuntimeError("input: expected a nested tensor with rows, got one without")
    values, offsets, stored_lengths = input.values(), input.offsets(), input.lengths()
    lengths = offsets.diff() if stored_lengths is None else stored_lengths
    if stored_lengths is not None and bool((lengths > offsets.diff()).any()):
        raise RuntimeError("input: expected a nested tensor whose rows do not overlap")
    steps = torch.arange(longest := input._get_max_seqlen(), device=values.device)
    is_real_step = steps < lengths.unsqueeze(1)
    indices = (offsets[:-1].unsqueeze(1) + steps).clamp_max(len(values) - 1)
    padded: Tensor = values.index_select(0, indices.flatten()).unflatten(0, indices.shape)
    padded = torch.where(is_real_step.unsqueeze(-1), padded, 0.0)
    padded = padded if batch_first else padded.transpose(0, 1)
    output, state = forward(padded, hx, lengths=lengths)
    results = (output if batch_first else output.transpose(0, 1))[is_real_step]
    if stored_lengths is not None:  # there may be gaps between the rows
        zeros = results.new_zeros(len(values), results.size(1))
        results = zeros.index_copy(0, indices[is_real_step], results)
    return _from_jagged(results, offsets, stored_lengths, max_seqlen=longest), state
