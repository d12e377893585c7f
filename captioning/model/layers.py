"""Layers of the decoders: the LSTM, which is chosen by name, and a faster dropout."""

import torch
from torch import Tensor, nn

import fastlstm
from captioning.errors import CaptioningError
from captioning.model.own_lstm import check_own_lstm, own_lstm_class
from captioning.settings import check_choice

LSTMS = ("fastlstm", "torch", "reference")
LSTM_WEIGHTS = ("float32", "bfloat16", "int8")  # dtypes of prepacked weights
LSTM_HELP = "the LSTM: fastlstm, torch (nn.LSTM), reference (fastlstm in plain PyTorch), or "
LSTM_HELP += "FILE.py:CLASS, a module class of your own that is called like nn.LSTM (fastlstm)"


def check_lstm(kind: str, num_layers: int = 1) -> None:
    """Refuses what is neither in `LSTMS` nor "FILE.py:CLASS" with a class like nn.LSTM."""
    if kind not in LSTMS:
        check_own_lstm(kind, num_layers)


def make_lstm(kind: str, *sizes: int, cell: bool = False, **options: float) -> nn.Module:
    """Makes an LSTM, or with `cell` an LSTM cell, with the options of nn.LSTM.

    `kind` is one of `LSTMS`, or "FILE.py:CLASS", which can make no LSTM cell.
    """
    if kind not in LSTMS:
        if cell:
            expected = f"expected one of {LSTMS} with this decoder, which needs an LSTM cell"
            raise CaptioningError(f"lstm: {expected}; got {kind}")
        return own_lstm_class(kind)(*sizes, **options)
    library = nn if kind == "torch" else fastlstm
    lstm = (library.LSTMCell if cell else library.LSTM)(*sizes, **options)
    if kind == "reference":
        lstm.engine = "reference"
    return lstm


class Dropout(nn.Dropout):
    """An `nn.Dropout` that draws its mask four times as fast on a CPU.

    It compares uniform numbers with p. torch draws Bernoulli numbers in double precision, 11 ns
    each, which took a seventh of a training step. A seed gives another mask than with nn.Dropout.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or not input.is_cpu:
            return super().forward(input)
        mask = torch.rand(input.shape).ge_(self.p).mul_(1 / (1 - self.p))
        return input * mask.to(input.dtype)


def prepack_lstms(model: nn.Module, weights: str = "float32") -> None:
    """Prepacks the weights of a model's LSTMs in place, to write captions faster on a CPU.

    `weights` is one of `LSTM_WEIGHTS`; with float32 the captions stay the same. nn.LSTM, the
    reference, and models on a GPU or without an LSTM cannot be prepacked: float32 leaves them as
    they are, and another dtype is an error.
    """
    check_choice("weights", weights, LSTM_WEIGHTS)
    lstms = (m for m in model.modules() if isinstance(m, (fastlstm.LSTM, fastlstm.LSTMCell)))
    on_cpu = next(model.parameters()).device.type == "cpu" and fastlstm.has_kernels("cpu")
    if on_cpu and any(lstm.engine != "reference" for lstm in lstms):
        fastlstm.prepack(model, getattr(torch, weights))
    elif weights != "float32":
        expected = "expected fastlstm with its kernels, --device cpu, and a decoder with an LSTM"
        raise CaptioningError(f"--lstm-weights {weights}: {expected}")
