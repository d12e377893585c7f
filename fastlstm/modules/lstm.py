"""`LSTM`: a drop-in for torch.nn.LSTM.

The modules inherit from nn.RNNBase and nn.RNNCellBase, so parameters, their names, order and
initial values, repr, errors and pickles are those of torch.nn. They do not inherit from nn.LSTM,
because torch.compile refuses its subclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _build
from ..engine import checks, engines
from ..engine.call import Call, Regularizers, Results, State, check_probabilities
from ..engine.stack import run_time_major
from ..interop import fx, nested
from .attributes import (
    check_tensor,
    nn_lstm,
    read_weights,
    run_as_torch,
    run_torch_lstm,
    takes_arguments,
)
from .options import NO_REGULARIZERS, EngineModule


class SequenceModule(nn.Module):
    """Base of LSTM and PrepackedLSTM: arranges the arguments and results of a call."""

    num_layers: int
    batch_first: bool
    bidirectional: bool
    permute_hidden = nn_lstm.permute_hidden
    # The source of the weights for `plain_lstm` of the extension, or None if no call is plain.
    _fastlstm_plain_weights: Callable[[], tuple[Any, ...] | None]
    # Weights, layout and the dtype of the input; see `read_weights`.
    _fastlstm_weights: Callable[[], tuple[list[Any], str | None, Any]]
    _fastlstm_compute: Callable[[Call], Results]  # computes a call after its checks

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_cell_states: bool = False,
    ) -> tuple[Any, ...]:
        """Runs the LSTM over the sequences, as `nn.LSTM.forward` does.

        The letters of the shapes are those of `functional.lstm`, which describes the options too.

        Args:
            input: [T,B,input_size] ([B,T,input_size] if batch_first); [T,input_size] unbatched; a
                PackedSequence, sorted or not; or a nested tensor [B,j,input_size] of layout
                torch.jagged, for any batch_first, without the three options below.
            hx: (h_0 [L*D,B,P], c_0 [L*D,B,hidden_size]), without B if unbatched; zeros if None.
            lengths: [B] integers ([] unbatched), the number of real steps of each row. Unlike
                packing, it takes rows of length 0, and compiles with `fullgraph=True`.
            reset: [T,B] bool or numbers ([B,T] if batch_first, [T] unbatched): h and c are zeroed
                before a step if it is true, or not 0.
            return_cell_states: whether to return every cell state as well.

        Returns:
            `(output, (h_n, c_n))`, and with `return_cell_states` the cell states as a third item:
            shapes as in `functional.lstm`, without B if unbatched. If the input is a PackedSequence
            or a nested tensor, so is the output, with the same batch sizes or offsets.
        """
        if not (return_cell_states or torch.compiler.is_compiling()):
            source = self._fastlstm_plain_weights()
            if source is not None:
                run = _build.library.plain_lstm  # not *args, which would take longer
                plain: tuple[Any, ...] = run(self, source, input, hx, lengths, reset)
                if plain is not NotImplemented:
                    return plain
        return self._fastlstm_call(input, hx, lengths, reset, return_cell_states)

    def _fastlstm_call(self, input: Any, hx: State | None, *options: Any) -> tuple[Any, ...]:
        """Runs any call. `options` are lengths, reset and return_cell_states."""
        lengths, reset, return_cell_states = options
        if type(input) is not Tensor and isinstance(input, fx.Proxy):
            given = {"lengths": lengths, "reset": reset, "return_cell_states": return_cell_states}
            return fx.as_node(self, input, hx=hx, **given)
        if lengths is not None:
            lengths = checks.as_lengths(lengths)
        if reset is not None:
            checks.as_reset(reset, None, self.batch_first)  # raises for what is no reset at all
        options = lengths, reset, bool(return_cell_states)
        weights, layout, dtype = self._fastlstm_weights()
        if layout is None:
            return self._fastlstm_as_torch(input, hx, *options)
        data, batch_sizes, sorted_indices, unsorted_indices = input, None, None, None
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
        elif isinstance(data, Tensor) and data.is_nested:
            if SequenceModule._fastlstm_exceeds_torch(self, *options):  # leaves out regularizers
                names = "lengths, reset and return_cell_states"
                raise RuntimeError(f"LSTM: {names} cannot be combined with a nested tensor")
            return nested.run(partial(SequenceModule.forward, self), data, hx, self.batch_first)
        check_tensor(data)
        if not takes_arguments(self, data, hx, batch_sizes, weights[0], dtype):
            result: tuple[Any, ...] = run_as_torch(self._fastlstm_torch_module(), input, hx)
            if not self._fastlstm_exceeds_torch(*options):
                return result
        is_batched, batch_dim = batch_sizes is not None or data.dim() == 3, 1 - self.batch_first
        if not is_batched:
            data, hx, lengths, reset = _with_batch(batch_dim, data, hx, lengths, reset)
        elif hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        if lengths is not None:
            lengths = checks.lengths_on_device_of(data, lengths)
        if reset is not None:
            shape = data.shape[:2] if batch_sizes is None else None
            reset = checks.as_reset(reset, shape, self.batch_first)
        fields = self.num_layers, 1 + self.bidirectional, batch_sizes, lengths, reset, self.training
        call = Call(data, hx, weights, layout, *fields, return_cell_states=options[2])
        output, state, *cells = run_time_major(self._fastlstm_compute, call, self.batch_first)
        if not is_batched:
            h_n, c_n = state[0].squeeze(1), state[1].squeeze(1)
            return output.squeeze(batch_dim), (h_n, c_n), *(c.squeeze(batch_dim + 1) for c in cells)
        if batch_sizes is not None:
            output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(state, unsorted_indices), *cells

    def _fastlstm_as_torch(self, input: Any, hx: Any, *options: Any) -> tuple[Any, ...]:
        """Runs nn.LSTM, for weights of other shapes than the attributes describe."""
        if self._fastlstm_exceeds_torch(*options):
            expected = "weights of the shapes that its attributes (hidden_size, ...) describe"
            raise RuntimeError(f"{type(self).__name__}: expected {expected}")
        result: tuple[Any, ...] = run_torch_lstm(self._fastlstm_torch_module(), input, hx)
        return result

    def _fastlstm_exceeds_torch(self, lengths: Any, reset: Any, return_cell_states: bool) -> bool:
        """Whether a call uses an option that nn.LSTM lacks."""
        return lengths is not None or reset is not None or return_cell_states

    def _fastlstm_torch_module(self) -> Any:
        """A module on which the methods of nn.LSTM run."""
        return self


def _with_batch(
    dim: int, input: Tensor, hx: State | None, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, State | None, Tensor | None, Tensor | None]:
    """Returns an unbatched call as a batch of one row, with the batch at dimension `dim`."""
    for name, option, shape in (("lengths", lengths, ()), ("reset", reset, input.shape[:1])):
        if option is not None and option.shape != shape:
            expected = f"{name} of shape {tuple(shape)} for unbatched input"
            raise RuntimeError(f"LSTM: expected {expected}, got {checks.describe(option)}")
    hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    lengths = None if lengths is None else lengths.unsqueeze(0)
    return input.unsqueeze(dim), hx, lengths, None if reset is None else reset.unsqueeze(dim)


class LSTM(SequenceModule, EngineModule, nn.RNNBase):
    """A multi-layer LSTM: `torch.nn.LSTM` with a fused engine and more options.

    >>> lstm = fastlstm.LSTM(input_size=64, hidden_size=128, num_layers=2)
    >>> output, (h_n, c_n) = lstm(torch.randn(20, 8, 64))
    >>> output.shape, h_n.shape
    (torch.Size([20, 8, 128]), torch.Size([2, 8, 128]))
    >>> output, _ = lstm(torch.randn(20, 3, 64), lengths=torch.tensor([20, 0, 7]))

    For the equations see `fastlstm.reference`. Weights are named and laid out as in nn.LSTM:
    weight_ih_l{k} [4*hidden_size, input], weight_hh_l{k} [4*hidden_size, hidden_size or proj_size],
    bias_ih_l{k} and bias_hh_l{k} [4*hidden_size], weight_hr_l{k} [proj_size, hidden_size] if
    proj_size > 0, and the same with the suffix _reverse; rows in the gate order i, f, g, o; drawn
    from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)).

    Args:
        input_size, hidden_size, num_layers, bias, dropout, bidirectional, proj_size, device, dtype:
            as in torch.nn.LSTM.
        batch_first: whether input, output and reset put the batch before the steps.
        input_dropout: probability of dropping a feature of each layer's input for a whole sequence.
        recurrent_dropout: the same for h_{t-1} before W_hh.
        zoneout_h, zoneout_c: probability that a unit of h or of c keeps its value over a step.
        weight_dropout: probability of dropping a weight of W_hh for a whole call.

    The five regularizers act in training mode, and draw from torch's generator in the same way on
    every engine; for their equations and sources see `functional.lstm`.

    Attributes:
        engine: which engine runs, one of `fastlstm.functional.ENGINES`; may be set at any time.
    """

    _fastlstm_torch_class = nn.LSTM
    _fastlstm_normalizes = False
    _fastlstm_check_engine = staticmethod(engines.check_engine)
    _fastlstm_options = ("engine", *Regularizers._fields)
    check_forward_args = nn_lstm.check_forward_args
    get_expected_cell_size = nn_lstm.get_expected_cell_size
    input_dropout: float
    recurrent_dropout: float
    zoneout_h: float
    zoneout_c: float
    weight_dropout: float

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        options = num_layers, bias, batch_first, dropout, bidirectional, proj_size
        super().__init__("LSTM", input_size, hidden_size, *options, device, dtype)
        given = Regularizers(input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout)
        check_probabilities(**given._asdict())
        if any(given):
            self._fastlstm_regularizers = given

    def _fastlstm_plain_weights(self) -> tuple[Any, ...] | None:
        is_plain = self._fastlstm_regularizers is NO_REGULARIZERS
        if not (is_plain and self._fastlstm_engine == "auto" and engines.auto_means_op()):
            return None
        words = "layer_norm" if self._fastlstm_normalizes else ""
        return self._flat_weights, words, self._parameters, self._flat_weights_names

    _fastlstm_weights = read_weights

    def _fastlstm_exceeds_torch(self, *options: Any) -> bool:
        is_extended = self._fastlstm_normalizes or super()._fastlstm_exceeds_torch(*options)
        return is_extended or (self.training and any(self._fastlstm_regularizers))

    def _fastlstm_compute(self, call: Call) -> Results:
        regularizers = self._fastlstm_regularizers
        if self.training and (self.dropout or any(regularizers)):
            call = call.with_training_options(self.dropout, regularizers)
        return engines.choose(call, self._fastlstm_engine).run(call)
