"""Prepacked layers and calls of them, for the tests module/test_prepacked*.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastlstm import LSTM, LSTMCell, prepack

SMALLER_DTYPES = [torch.bfloat16, torch.int8]
# input_size, hidden_size and options. If 4 does not divide a size, int8 panels are padded.
LAYERS: list[tuple[int, int, dict[str, Any]]] = [
    (1, 24, {}),
    (33, 50, {"batch_first": True}),
    (64, 64, {"bias": False}),
    (40, 100, {"proj_size": 30}),
    (24, 37, {"num_layers": 2, "bidirectional": True}),
    (7, 20, {"num_layers": 2, "bidirectional": True, "proj_size": 5, "batch_first": True}),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
every_weights = pytest.mark.parametrize("weights", SMALLER_DTYPES, ids=str)


def make(layer: tuple[int, int, dict[str, Any]], dtype: torch.dtype = torch.float32) -> LSTM:
    torch.manual_seed(0)
    return LSTM(*layer[:2], **layer[2], dtype=dtype).eval()


def small(**options: Any) -> LSTM:
    return make((6, 10, options))


def prepacked_copy(module: nn.Module, weights: Any = None) -> Any:
    return prepack(copy.deepcopy(module), weights)


def flat(results: Any) -> list[Tensor]:
    """Returns all tensors of nested tuples, and the data of a PackedSequence."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for part in results for tensor in flat(part)]


def same_bits(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def calls(lstm: LSTM, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Yields each form of a call: its name, arguments and options."""
    T, B = 7, 5
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def sequence(steps: int, batch: int) -> Tensor:
        x = draw(steps, batch, lstm.input_size)
        return x.transpose(0, 1).contiguous() if lstm.batch_first else x

    states = lstm.num_layers * (2 if lstm.bidirectional else 1)

    def state(*batch: int) -> tuple[Tensor, Tensor]:
        sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
        h, c = (draw(states, *batch, size) for size in sizes)
        return h, c

    x, lengths = sequence(T, B), torch.tensor([3, 7, 0, 1, 5])
    reset = torch.rand(*x.shape[:2], generator=generator) < 0.3
    yield "dense", (x,), {}
    yield "state", (x, state(B)), {}
    yield "cells", (x, state(B)), {"return_cell_states": True}
    yield "lengths", (x, state(B)), {"lengths": lengths, "return_cell_states": True}
    yield "reset", (x, state(B)), {"reset": reset}
    yield "reset and lengths", (x,), {"reset": reset, "lengths": lengths}
    for batch in (1, B, 60):
        yield f"one step, batch {batch}", (sequence(1, batch), state(batch)), {}
    strided = state(2 * B)
    yield "strided", (sequence(1, B), tuple(s[:, ::2] for s in strided)), {}
    yield "batch 0", (sequence(T, 0),), {}
    yield "unbatched", (draw(T, lstm.input_size), state()), {"return_cell_states": True}
    for enforce_sorted in (True, False):
        sizes = lengths.sort(descending=True)[0] if enforce_sorted else lengths
        packed = pack_padded_sequence(x, sizes.clamp_min(1), lstm.batch_first, enforce_sorted)
        yield f"packed, sorted {enforce_sorted}", (packed, state(B)), {"return_cell_states": True}


class Tagger(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = LSTM(16, 32, num_layers=2, bidirectional=True, **options)
        self.cell = LSTMCell(64, 24)
        self.linear = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.cell(self.lstm(x)[0][-1])[0])


def prepacked_tagger(seed: int = 0, weights: Any = None, **options: Any) -> Tagger:
    torch.manual_seed(seed)
    return prepack(Tagger(**options).eval(), weights)


X = torch.linspace(-1, 1, 5 * 3 * 16).view(5, 3, 16)  # an input of Tagger


def in_a_model(**layers: nn.Module) -> nn.Module:
    return nn.ModuleDict(layers).eval()
