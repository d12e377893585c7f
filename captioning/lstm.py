"""The LSTM by name, so that results can be compared with nn.LSTM's."""

from typing import Any

import torch
from torch import nn

import fastlstm
from captioning.config import check_choice
from captioning.errors import CaptioningError

LSTMS = ("fastlstm", "torch", "reference")
WEIGHTS = ("float32", "bfloat16", "int8")
HELP = "which LSTM runs; torch: nn.LSTM; reference: fastlstm in plain PyTorch"


def make_lstm(
    kind: str, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
) -> nn.Module:
    """A batch_first LSTM: fastlstm.LSTM, torch.nn.LSTM, or fastlstm.LSTM in plain PyTorch."""
    check_choice("lstm", kind, LSTMS)
    dropout = dropout if num_layers > 1 else 0.0  # nn.LSTM warns otherwise
    layers = nn.LSTM if kind == "torch" else fastlstm.LSTM
    lstm = layers(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
    if kind == "reference":
        lstm.engine = "reference"
    return lstm


def make_lstm_cell(kind: str, input_size: int, hidden_size: int) -> nn.Module:
    """One step of it: fastlstm.LSTMCell, torch.nn.LSTMCell, or the first in plain PyTorch."""
    check_choice("lstm", kind, LSTMS)
    cell = (nn.LSTMCell if kind == "torch" else fastlstm.LSTMCell)(input_size, hidden_size)
    if kind == "reference":
        cell.engine = "reference"
    return cell


def freeze(decoder: Any, weights: str = "float32") -> None:
    """Packs the weights of a decoder's LSTM once, to write captions on the CPU, in place.

    In float32 the captions stay the same, and an LSTM that cannot be packed (nn.LSTM, the
    reference, on a GPU) stays as it is.

    Args:
        decoder: a `captioning.decoders.Decoder` in eval mode.
        weights: one of `WEIGHTS`, which the products of the LSTM read.

    Raises:
        CaptioningError: an LSTM that cannot be packed was to have other weights than float32.
    """
    check_choice("weights", weights, WEIGHTS)
    lstm = decoder.lstm
    device = next(decoder.parameters()).device.type
    own = isinstance(lstm, (fastlstm.LSTM, fastlstm.LSTMCell)) and lstm.engine != "reference"
    if own and device == "cpu" and fastlstm._build.has_kernels("cpu"):
        fastlstm.prepack(decoder, getattr(torch, weights))
    elif weights != "float32":
        raise CaptioningError(
            f"--weights {weights}: expected --lstm fastlstm with its extension, and --device cpu"
        )
