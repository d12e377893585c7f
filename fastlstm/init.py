"""Initial values for LSTMs, in the style of `torch.nn.init`: in place, and returning the module.

The functions take a `fastlstm.LSTM`, a `torch.nn.LSTM`, or the LSTMCell of either, with any number
of layers and directions. A new module has the initial values of torch.nn.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .modules.cell import LSTMCell
from .modules.lstm import LSTM

__all__ = ["forget_bias_", "orthogonal_"]

_Module = TypeVar("_Module", bound=nn.Module)


def forget_bias_(lstm: _Module, value: float = 1.0) -> _Module:
    """Sets the forget gate's bias, so that a new LSTM remembers: f = sigmoid(value) at zero input.

    b_ih gets the value and b_hh zero, because the two are added. Other gates keep their bias.
    Source: Gers, Schmidhuber & Cummins (2000); value 1: Jozefowicz, Zaremba & Sutskever (2015).

    Raises:
        TypeError: `lstm` is no LSTM or LSTMCell.
        ValueError: `lstm` has no biases, or a bias is parametrized.
    """
    with torch.no_grad():
        for b_ih, b_hh in _parameters(lstm, "bias_ih", "bias_hh"):
            b_ih.chunk(4)[1].fill_(value)  # the rows have the order i, f, g, o
            b_hh.chunk(4)[1].zero_()
    return lstm


def orthogonal_(
    lstm: _Module, gain: float = 1.0, generator: torch.Generator | None = None
) -> _Module:
    """Makes the rows of each gate in each W_hh a random (semi-)orthogonal matrix times gain.

    Calls `torch.nn.init.orthogonal_` for each gate. Source: Saxe, McClelland & Ganguli (2014).

    Args:
        lstm: the module.
        gain, generator: as in `torch.nn.init.orthogonal_`.

    Raises:
        TypeError: `lstm` is no LSTM or LSTMCell.
        ValueError: W_hh is parametrized.
    """
    for (W_hh,) in _parameters(lstm, "weight_hh"):
        for gate in W_hh.data.chunk(4):
            nn.init.orthogonal_(gate, gain, generator)
    return lstm


def _parameters(lstm: nn.Module, *names: str) -> list[list[Tensor]]:
    """The parameters of every layer and direction. `names` are without the suffix of a layer."""
    if isinstance(lstm, (LSTMCell, nn.LSTMCell)):
        suffixes = [""]
    elif isinstance(lstm, (LSTM, nn.LSTM)):
        directions = ("", "_reverse") if lstm.bidirectional else ("",)
        suffixes = [f"_l{k}{reverse}" for k in range(lstm.num_layers) for reverse in directions]
    else:
        raise TypeError(f"lstm: expected an LSTM or an LSTMCell, got {type(lstm).__name__}")
    if "bias_ih" in names and not lstm.bias:
        raise ValueError("lstm: expected a module with biases, got one with bias=False")
    for name in (name + suffix for suffix in suffixes for name in names):
        if lstm._parameters.get(name) is None:
            got = "a tensor that parametrization or pruning computes; initialize before that"
            raise ValueError(f"lstm: expected {name} to be a parameter, got {got}")
    return [[lstm.get_parameter(name + suffix) for name in names] for suffix in suffixes]
