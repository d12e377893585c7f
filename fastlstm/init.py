"""Initial values for LSTMs, in the style of `torch.nn.init`: in place, and returning the module.

They take `fastlstm.LSTM`, `torch.nn.LSTM`, and the LSTMCell of either, with any number of layers
and directions. None is applied by default: a new module has the values of torch.nn.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .modules import LSTM, LSTMCell

__all__ = ["chrono_", "forget_bias_", "orthogonal_"]

_Module = TypeVar("_Module", bound=nn.Module)


def forget_bias_(lstm: _Module, value: float = 1.0) -> _Module:
    """Sets the forget gate's bias, so that a new LSTM remembers: f = sigmoid(value) at zero input.

    b_ih holds the value and b_hh zero, since the two are added; other gates stay as they are.
    Source: Gers, Schmidhuber & Cummins (2000); value 1: Jozefowicz, Zaremba & Sutskever (2015).

    Raises:
        TypeError: `lstm` is no LSTM or LSTMCell.
        ValueError: it has no biases, or the bias is parametrized.
    """
    with torch.no_grad():
        for b_ih, b_hh in _biases(lstm):
            _gate(b_ih, 1).fill_(value)
            _gate(b_hh, 1).zero_()
    return lstm


def chrono_(lstm: _Module, max_steps: float, generator: torch.Generator | None = None) -> _Module:
    """Draws the biases of forget and input gate for dependencies of up to `max_steps` steps.

    b_f = log(u), u ~ U(1, max_steps - 1), b_i = -b_f: unit by unit the gates then forget over times
    spread evenly up to `max_steps`. In b_ih; those rows of b_hh become zero.
    Source: Tallec & Ollivier (2018), equation 16.

    Args:
        lstm: the module.
        max_steps: the longest range of dependencies, in steps; at least 2.
        generator: draws u.

    Raises:
        TypeError: `lstm` is no LSTM or LSTMCell.
        ValueError: `max_steps` is below 2, there are no biases, or the bias is parametrized.
    """
    if not max_steps >= 2:
        raise ValueError(f"max_steps: expected a number of steps of at least 2, got {max_steps}")
    with torch.no_grad():
        for b_ih, b_hh in _biases(lstm):
            forget = _gate(b_ih, 1).uniform_(1, max_steps - 1, generator=generator).log_()
            _gate(b_ih, 0).copy_(-forget)
            b_hh[: 2 * forget.numel()] = 0
    return lstm


def orthogonal_(
    lstm: _Module, gain: float = 1.0, generator: torch.Generator | None = None
) -> _Module:
    """Makes the [H,P] block of each gate in each W_hh a random (semi-)orthogonal matrix times gain.

    Source: Saxe, McClelland & Ganguli (2014), by `torch.nn.init.orthogonal_`.

    Args:
        lstm: the module.
        gain: factor of the matrices.
        generator: draws them.

    Raises:
        TypeError: `lstm` is no LSTM or LSTMCell.
        ValueError: W_hh is parametrized.
    """
    for suffix in _suffixes(lstm):
        W_hh = _parameter(lstm, f"weight_hh{suffix}")
        for k in range(4):
            nn.init.orthogonal_(_gate(W_hh.data, k), gain, generator)
    return lstm


def _suffixes(lstm: nn.Module) -> list[str]:
    """The suffixes of the names of the parameters, one for each layer and direction."""
    if isinstance(lstm, (LSTMCell, nn.LSTMCell)):
        return [""]
    if not isinstance(lstm, (LSTM, nn.LSTM)):
        raise TypeError(f"lstm: expected an LSTM or an LSTMCell, got {type(lstm).__name__}")
    directions = ("", "_reverse") if lstm.bidirectional else ("",)
    return [f"_l{k}{reverse}" for k in range(lstm.num_layers) for reverse in directions]


def _biases(lstm: nn.Module) -> list[tuple[Tensor, Tensor]]:
    suffixes = _suffixes(lstm)
    if not lstm.bias:
        raise ValueError("lstm: expected a module with biases, got one with bias=False")
    return [
        (_parameter(lstm, f"bias_ih{suffix}"), _parameter(lstm, f"bias_hh{suffix}"))
        for suffix in suffixes
    ]


def _parameter(lstm: nn.Module, name: str) -> Tensor:
    parameter = lstm._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"lstm: expected {name} to be a parameter, got one made from others (a parametrization "
            "or pruning); initialise before that"
        )
    return parameter


def _gate(parameter: Tensor, k: int) -> Tensor:
    """The rows of one gate; gates stand in the order i, f, g, o."""
    return parameter.chunk(4)[k]
