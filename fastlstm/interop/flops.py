"""Formulas of the ops for `torch.utils.flop_counter.FlopCounterMode`: it counts matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Size = tuple[int, ...]


def _forward(
    input: Size, h_0: Size, c_0: Size, weights: Any, layout: str = "bias", *_: Any, **options: Any
) -> int:
    """2 operations for each weight, row and step. Steps after the end of a row count too."""
    rows = math.prod(input[:-1])  # T * B, or the rows of packed data
    directions, hidden_size, output_size = h_0[0], c_0[-1], h_0[-1]
    weights_per_direction = 4 * hidden_size * (input[-1] + output_size)
    if "projection" in layout:
        weights_per_direction += hidden_size * output_size
    return 2 * rows * directions * weights_per_direction


def _backward(*call: Any, **options: Any) -> int:
    """Twice the operations of forward: each product has the gradients of its two factors."""
    return 2 * _forward(*call)


def register() -> None:
    """Registers the formulas of the ops that the extension has."""
    formulas = {"lstm": _forward, "lstm_prepacked": _forward, "lstm_backward": _backward}
    for name, formula in formulas.items():
        if hasattr(torch.ops.fastlstm, name):
            register_flop_formula(getattr(torch.ops.fastlstm, name))(formula)
