"""FlopCounterMode counts the matrix products of the ops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastlstm
from fastlstm import _build

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
T, B, I, H, P = 5, 3, 4, 6, 2


def flops_of(lstm: nn.Module, x: object, backward: bool) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        output, _ = lstm(x)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def expected(rows: int, input_size: int, output_size: int = H, projection: int = 0) -> int:
    """A multiplication and an addition for each weight and row."""
    return 2 * rows * (4 * H * (input_size + output_size) + projection * H)


@pytest.mark.parametrize("backward", [False, True])
def test_the_formulas(backward: bool) -> None:
    x, times = torch.randn(T, B, I), 3 if backward else 1
    assert flops_of(fastlstm.LSTM(I, H), x, backward) == times * 8 * T * B * H * (I + H)
    deep = fastlstm.LSTM(I, H, num_layers=2, bidirectional=True)
    layers = expected(T * B, I) + expected(T * B, 2 * H)
    assert flops_of(deep, x, backward) == times * 2 * layers
    projected = fastlstm.LSTM(I, H, proj_size=P)
    assert flops_of(projected, x, backward) == times * expected(T * B, I, P, P)
    packed = pack_padded_sequence(x, torch.tensor([5, 2, 1]))
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        output, _ = fastlstm.LSTM(I, H)(packed)
        if backward:
            output.data.sum().backward()
    assert counter.get_total_flops() == times * expected(8, I)


@pytest.mark.parametrize("backward", [False, True])
def test_a_cell(backward: bool) -> None:
    cell = fastlstm.LSTMCell(I, H)
    assert flops_of(cell, torch.randn(B, I), backward) == (3 if backward else 1) * expected(B, I)


@pytest.mark.parametrize("weights", [None, torch.int8])
def test_packed_weights(weights: torch.dtype | None) -> None:
    lstm = fastlstm.prepack(fastlstm.LSTM(I, H).eval(), weights)
    assert flops_of(lstm, torch.randn(T, B, I), False) == expected(T * B, I)
    cell = fastlstm.prepack(fastlstm.LSTMCell(I, H).eval(), weights)
    assert flops_of(cell, torch.randn(B, I), False) == expected(B, I)
