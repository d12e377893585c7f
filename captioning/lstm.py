"""The LSTM by name, so that results can be compared with nn.LSTM's."""

from torch import nn

import fastlstm
from captioning.config import check_choice

LSTMS = ("fastlstm", "torch", "reference")
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
