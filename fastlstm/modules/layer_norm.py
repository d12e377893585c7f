"""`LayerNormLSTM`: an LSTM with layer normalization inside the loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from .lstm import LSTM


class LayerNormLSTM(LSTM):
    """An `LSTM` whose gates and cell are layer-normalized (Ba, Kiros & Hinton, 2016).

    With LN(x) = (x - mean(x)) / sqrt(var(x) + 1e-5) over the elements of x::

        a = LN(W_ih x_t) * gain_ih + b_ih + LN(W_hh h_{t-1}) * gain_hh + b_hh
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(LN(c_t) * gain_c + bias_c)

    LN of the gates is over all 4 * hidden_size elements, with the LSTM's b_ih and b_hh as biases.
    Arguments and `forward` are those of `LSTM`. Its engine is "stepwise" or "reference".

    Besides the parameters of `LSTM` each layer k has gain_ih_l{k} and gain_hh_l{k}
    [4*hidden_size], gain_c_l{k} and bias_c_l{k} [hidden_size], and those with the suffix _reverse.
    Gains start at 1 and bias_c at 0. The other parameters start with the values that nn.LSTM draws
    from the same seed.
    """

    _fastlstm_normalizes = True

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **options: Any) -> None:
        super().__init__(input_size, hidden_size, *args, **options)
        rows = 4 * hidden_size
        sizes = {"gain_ih": rows, "gain_hh": rows, "gain_c": hidden_size, "bias_c": hidden_size}
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for name, size in sizes.items():
                names.append(name + suffix)
                empty = self.get_parameter("weight_ih_l0").new_empty(size)
                self.register_parameter(name + suffix, nn.Parameter(empty))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self._reset_norms()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, and sets gains to 1 and bias_c to 0."""
        super().reset_parameters()
        self._reset_norms()

    def flatten_parameters(self) -> None:
        """Does nothing. Only cuDNN needs weights in one chunk, and it has no such layer."""

    def _reset_norms(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("gain_"):
                nn.init.ones_(parameter)
            elif name.startswith("bias_c_"):
                nn.init.zeros_(parameter)
