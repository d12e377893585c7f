"""Formulas of the ops for `torch.utils.flop_counter.FlopCounterMode`: it counts matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = tuple[int, ...]


def _forward(
    input: Shape,
    h_0: Shape,
    c_0: Shape,
    weights: Any,
    layout: str = "bias",
    *_: Any,
    **options: Any,
) -> int:
    """Counts 2 operations for each weight, row and step: 8 T B H (I + H) without a projection.

    Every row counts with all steps, whatever `lengths` says.
    """
    rows = math.prod(input[:-1])  # T * B, or the rows of packed data
    directions, hidden_size, output_size = h_0[0], c_0[-1], h_0[-1]
    weights_per_direction = 4 * hidden_size * (input[-1] + output_size)
    if "projection" in layout:
        weights_per_direction += hidden_size * output_size
    return 2 * rows * directions * weights_per_direction


def _backward(*call: Any, **options: Any) -> int:
    """Counts twice the operations of forward: the gradients of both factors of each product."""
    return 2 * _forward(*call)


def register() -> None:
    """Registers the formulas of the ops that the extension has."""
    formulas = {"lstm": _forward, "lstm_prepacked": _forward, "lstm_backward": _backward}
    for name, formula in formulas.items():
        if hasattr(torch.ops.fastlstm, name):
            register_flop_formula(getattr(torch.ops.fastlstm, name))(formula)
