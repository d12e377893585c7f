"""`LSTM` and `LSTMCell`: drop-in replacements for the modules of torch.nn.

They inherit from the bases of torch.nn (not from nn.LSTM, which torch.compile refuses to see
subclassed), so parameters, their names, order and initial values, repr, errors and pickles are
those of torch.nn by construction. `convert` changes the class of a model's modules both ways.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nested._internal import nested_tensor
from torch.nn.utils.rnn import PackedSequence

from . import _build
from ._attributes import (
    fit_cell,
    fits,
    is_pair,
    read_weights,
    refuse_as_torch,
    run_torch,
    run_torch_lstm,
    shapes_of,
    torch_lstm,
    weights_of_cell,
)
from .engine import engines
from .engine.call import LAYOUTS, Call
from .engine.checks import as_lengths, as_reset, check_kinds, in_training
from .engine.layers import Results, run_cell, run_stack
from .engine.regularizers import Regularizers, check_probabilities

# torch.nested.nested_tensor_from_jagged without its check for torch.fx, which logs a line.
_nested: Any = nested_tensor.nested_view_from_values_offsets_lengths
_Proxy: Any = torch.fx.Proxy  # which the annotations leave out
State = tuple[Tensor, Tensor]  # h and c


def _as_one_node(module: nn.Module, input: Any, **options: Any) -> Any:
    """The call of a module as a node of a graph of torch.fx, to which nn.LSTM is one too."""
    cls = type(module)
    if not cls.forward.__module__.startswith("fastlstm."):
        raise TypeError(
            f"{cls.__name__}: torch.fx cannot trace its own forward; let is_leaf_module of the "
            "Tracer be true for it"
        )
    used = {k: v for k, v in options.items() if v is not None and v is not False}
    tracer = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), used)


def qualified_name(module: nn.Module) -> str:
    """With the package, so that a printed model shows whose LSTM it has."""
    cls = type(module)
    package, _, _ = cls.__module__.partition(".")
    return f"fastlstm.{cls.__name__}" if package == "fastlstm" else cls.__name__


class _Option:
    """An attribute that reads an option, where its name is not the user's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self
        if not module._fastlstm_has(self.name):
            raise AttributeError(self.name)  # Python then asks __getattr__, as for nn.LSTM
        if self.name == "engine":
            return module._fastlstm_engine
        return getattr(module._fastlstm_regularizers, self.name)


_INSTEAD = {
    "engine": "set it on the module: lstm.engine = ...",
    "layer_norm": "fastlstm.LayerNormLSTM normalizes",
    "recompute": "torch.utils.checkpoint saves the memory of any module",
    "zoneout": "fastlstm.LSTM takes zoneout_h and zoneout_c",
}


_NO_REGULARIZERS = Regularizers()


class EngineModule(nn.Module):
    """A module that runs an engine, and has options that nn.LSTM lacks.

    Most names of a converted module are the user's. So options lie under names that nobody else
    uses, and so do private methods.
    """

    _fastlstm_engine = "auto"
    _fastlstm_regularizers = _NO_REGULARIZERS
    _fastlstm_options: ClassVar[tuple[str, ...]] = ("engine",)  # that are attributes
    _get_name = qualified_name

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Says what to write in place of keywords that users expect the constructor to take."""
        wrong = _INSTEAD.keys() & options.keys()
        if wrong and cls.__init__.__module__.startswith("fastlstm."):
            name = wrong.pop()
            raise TypeError(
                f"{cls.__name__}.__init__() got an unexpected keyword argument {name!r}; "
                f"{_INSTEAD[name]}"
            )
        return super().__new__(cls)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which compiles what convert(to="torch") gives instead."""
        from .interop.scripting import prepare

        return prepare(self)

    def _fastlstm_has(self, name: str) -> bool:
        """Whether an attribute is an option, and not something that the user has set."""
        if name not in self._fastlstm_options:
            return False
        tables = [vars(self).get(table, ()) for table in ("_parameters", "_buffers", "_modules")]
        return not any(name in table for table in (vars(self), *tables))

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._fastlstm_has(name):
            super().__setattr__(name, value)
        elif name == "engine":
            engines.check_engine(value)
            vars(self)["_fastlstm_engine"] = value
        else:
            check_probabilities(**{name: value})
            drawn = self._fastlstm_regularizers._replace(**{name: value})
            vars(self)["_fastlstm_regularizers"] = drawn if any(drawn) else _NO_REGULARIZERS

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Refuses int8 weights of a prepacked layer, which are nothing without their scales."""
        given = {name: state_dict.get(prefix + name) for name in self._parameters}
        int8 = [name for name, t in given.items() if getattr(t, "dtype", None) is torch.int8]
        if int8 and not self._load_state_dict_pre_hooks:  # a hook of the user may dequantize them
            others[-1].append(
                f"{prefix}{int8[0]}: expected floating weights, got int8 of a prepacked layer; "
                "load them into fastlstm.prepack(model, torch.int8), then call fastlstm.unpack"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """The text of torch.nn, and the options that are not as torch.nn has them."""
        options = {**self._fastlstm_regularizers._asdict(), "engine": self._fastlstm_engine}
        changed = (f", {k}={v!r}" for k, v in options.items() if v and v != "auto")
        return super().extra_repr() + "".join(changed)


class SequenceModule(nn.Module):
    """The call of an LSTM: its arguments and results, whatever runs it."""

    num_layers: int
    batch_first: bool
    bidirectional: bool
    permute_hidden = torch_lstm.permute_hidden

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *positional: Any,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_cell_states: bool = False,
    ) -> tuple[Any, ...]:
        """Runs the LSTM over the sequences, as `nn.LSTM.forward` does.

        Sizes: T steps, B batch rows, L num_layers, D = 2 if bidirectional else 1, P = proj_size or
        hidden_size.

        Args:
            input: [T,B,input_size] ([B,T,input_size] if batch_first), [T,input_size] unbatched, a
                PackedSequence, sorted or not, or, whatever batch_first is, a nested tensor
                [B,j,input_size] of layout torch.jagged, without the three options below.
            hx: (h_0 [L*D,B,P], c_0 [L*D,B,hidden_size]), without B if unbatched; zeros if None.
            lengths: [B] integers ([] unbatched), the number of real steps of each row: an
                alternative to packing that takes rows in any order and of length 0, on any device,
                and compiles.
            reset: [T,B] bool or numbers ([B,T] if batch_first, [T] unbatched): h and c are zeroed
                before a step where it is true, or not 0.
            return_cell_states: whether to return every cell state as well.

        Returns:
            `(output, (h_n, c_n))`, and with `return_cell_states` the cell states as a third item:
            shapes as in `functional.lstm`, without B if unbatched; a PackedSequence in gives a
            PackedSequence out, a nested tensor one with the same offsets.
        """
        if positional:
            raise TypeError(
                "LSTM: expected lengths, reset and return_cell_states by their keywords"
            )
        if type(input) is not Tensor and isinstance(input, _Proxy):
            named = {"lengths": lengths, "reset": reset, "return_cell_states": return_cell_states}
            node: tuple[Any, ...] = _as_one_node(self, input, hx=hx, **named)
            return node
        if lengths is not None and getattr(lengths, "dtype", None) is not torch.int64:
            lengths = as_lengths(lengths)
        if reset is not None and getattr(reset, "dtype", None) is not torch.bool:
            reset = as_reset(reset)
        # A plain eager call of one layer on a CPU: a small step is spared most of its Python.
        plain: tuple[Any, ...] | None = None
        try:
            if type(input) is Tensor and self.num_layers == 1 and not return_cell_states:
                layer = self._fastlstm_plain(input)
                if layer is not None:
                    weights, layout, parameters, names = layer
                    plain = _build.library.plain_lstm(
                        input,
                        hx,
                        weights,
                        layout,
                        parameters,
                        names,
                        lengths,
                        reset,
                        self.input_size,
                        self.hidden_size,
                        self.proj_size,
                        self.num_layers,
                        self.bias,
                        self.bidirectional,
                        self.batch_first,
                        self.dropout,
                    )
        except (AttributeError, RuntimeError, TypeError):
            plain = None  # what follows raises it again, or has nn.LSTM decide
        if plain is not None:  # else something else has to be decided, or to see the call
            return plain
        weights, layout, dtype = self._fastlstm_weights()
        if layout is None or dtype is None:
            return self._fastlstm_as_torch(input, hx, lengths, reset, return_cell_states)
        data: Any = input
        batch_sizes, sorted_indices, unsorted_indices = None, None, None
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
        elif not isinstance(data, Tensor):
            check_kinds(data, None, {})
        elif data.is_nested:
            return _run_nested(self, data, hx, lengths, reset, return_cell_states)
        elif data.layout is not torch.strided:
            check_kinds(data, None, {})
        if not fits(self, data, hx, batch_sizes, weights[0], dtype):
            self._fastlstm_refuse(input, hx)
        is_batched, batch_dim = batch_sizes is not None or data.dim() == 3, 1 - self.batch_first
        if not is_batched:
            data, hx, lengths, reset = _with_batch(batch_dim, data, hx, lengths, reset)
        elif hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        form = self.num_layers, 1 + self.bidirectional, self.batch_first
        options = batch_sizes, lengths, reset
        modes = return_cell_states, self.training
        output, state, *cells = run_stack(
            self._fastlstm_compute, data, hx, weights, layout, *form, *options, *modes
        )
        if not is_batched:
            return _without_batch(batch_dim, output, state, *cells)
        if batch_sizes is not None:
            output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(state, unsorted_indices), *cells

    def _fastlstm_plain(self, input: Tensor) -> tuple[Any, ...] | None:
        """Weights, layout, parameters and their names, for `plain_lstm`; None for another call."""
        raise NotImplementedError

    def _fastlstm_weights(self) -> tuple[list[Any], str | None, torch.dtype | None]:
        """Weights, layout and the dtype of the input; see `read_weights`."""
        raise NotImplementedError

    def _fastlstm_as_torch(self, input: Any, hx: Any, *options: Any) -> tuple[Any, ...]:
        """What nn.LSTM gives with weights of other shapes than the attributes describe."""
        if self._fastlstm_extends(*options):
            raise RuntimeError(
                f"{type(self).__name__}: expected weights of the shapes that its attributes "
                "(num_layers, hidden_size, ...) describe"
            )
        result: tuple[Any, ...] = run_torch_lstm(self._fastlstm_torch(), input, hx)
        return result

    def _fastlstm_extends(self, lengths: Any, reset: Any, return_cell_states: bool) -> bool:
        """Whether a call uses what nn.LSTM lacks."""
        return lengths is not None or reset is not None or return_cell_states

    def _fastlstm_torch(self) -> Any:
        """A module on which the methods of nn.LSTM run."""
        return self

    def _fastlstm_refuse(self, input: Any, hx: Any) -> None:
        """Raises nn.LSTM's error for an input and a state."""
        refuse_as_torch(self._fastlstm_torch(), input, hx)

    def _fastlstm_compute(self, call: Call) -> Results:
        """The results of a call that has been checked."""
        raise NotImplementedError


def _with_batch(
    dim: int, input: Tensor, hx: State | None, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, State | None, Tensor | None, Tensor | None]:
    """An unbatched call as one of a single row, which is dimension `dim` of the input."""
    for name, option, shape in (("lengths", lengths, ()), ("reset", reset, input.shape[:1])):
        if option is not None and option.shape != shape:
            raise RuntimeError(
                f"LSTM: expected {name} of shape {tuple(shape)} for unbatched input, got "
                f"{tuple(option.shape)}"
            )
    hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    lengths = None if lengths is None else lengths.unsqueeze(0)
    return input.unsqueeze(dim), hx, lengths, None if reset is None else reset.unsqueeze(dim)


def _without_batch(dim: int, output: Tensor, state: State, *cells: Tensor) -> tuple[Any, ...]:
    """The results of that row."""
    h_n, c_n = state[0].squeeze(1), state[1].squeeze(1)
    return output.squeeze(dim), (h_n, c_n), *(c.squeeze(dim + 1) for c in cells)


def _run_nested(lstm: Any, input: Any, hx: State | None, *options: Any) -> tuple[Tensor, State]:
    """The rows padded, with their lengths, and the output with the offsets of the input."""
    is_jagged = input.layout is torch.jagged
    if not is_jagged or input.dim() != 3 or not isinstance(input.size(2), int):
        raise TypeError(
            "input: expected a nested tensor of layout torch.jagged and shape (batch, j, "
            f"input_size), got {tuple(input.shape) if is_jagged else input.layout}"
        )
    if any(option is not None and option is not False for option in options):
        raise RuntimeError(
            "LSTM: lengths, reset and return_cell_states cannot be combined with a nested tensor"
        )
    if not input.size(0):
        raise RuntimeError("input: expected a nested tensor with rows, got one without")
    values, offsets, holes = input.values(), input.offsets(), input.lengths()
    lengths, longest = offsets.diff() if holes is None else holes, input._get_max_seqlen()
    if holes is not None and bool((lengths > offsets.diff()).any()):
        raise RuntimeError("input: expected a nested tensor whose rows do not overlap")
    steps = torch.arange(longest, device=values.device)
    are_real = steps < lengths.unsqueeze(1)
    places = (offsets[:-1].unsqueeze(1) + steps).clamp_max(len(values) - 1)
    padded = values.index_select(0, places.flatten()).unflatten(0, places.shape)
    padded = torch.where(are_real.unsqueeze(-1), padded, 0.0)
    padded = padded if lstm.batch_first else padded.transpose(0, 1)
    output, state = SequenceModule.forward(lstm, padded, hx, lengths=lengths)
    results = (output if lstm.batch_first else output.transpose(0, 1))[are_real]
    if holes is not None:
        empty = results.new_zeros(len(values), results.size(1))
        results = empty.index_copy(0, places[are_real], results)
    return _nested(results, offsets, holes, max_seqlen=longest), state


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
        input_size: number of features of the input.
        hidden_size: number of features of the hidden and the cell state.
        num_layers: number of stacked layers.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input, output and reset put the batch before the steps.
        dropout: probability of dropping an element of the output of each layer but the last.
        bidirectional: whether each layer also walks from the last step to the first.
        proj_size: size of the projection of h, 0 for none (Sak et al., 2014).
        device, dtype: of the parameters.
        input_dropout: probability of dropping a feature of each layer's input for a whole sequence
            (variational dropout, Gal & Ghahramani, 2016).
        recurrent_dropout: the same for h_{t-1} before W_hh.
        zoneout_h: probability that a unit of h keeps its value over a step (zoneout, Krueger et
            al., 2017).
        zoneout_c: the same for c.
        weight_dropout: probability of dropping a weight of W_hh for a whole call (DropConnect,
            Merity et al., 2018).

    The five regularizers act in training mode; in eval mode the module computes what an nn.LSTM
    with the same weights computes. They draw from torch's generator, in the same way on every
    engine; for the equations see `functional.lstm`.

    Attributes:
        engine: which engine runs, one of `fastlstm.functional.ENGINES`; may be set at any time.
    """

    _fastlstm_normalizes = False
    _fastlstm_options = ("engine", *Regularizers._fields)
    check_forward_args = torch_lstm.check_forward_args
    get_expected_cell_size = torch_lstm.get_expected_cell_size
    engine: str
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
        drawn = Regularizers(input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout)
        check_probabilities(**drawn._asdict())
        if any(drawn):
            self._fastlstm_regularizers = drawn

    def _fastlstm_plain(self, input: Tensor) -> tuple[Any, ...] | None:
        is_plain = self._fastlstm_regularizers is _NO_REGULARIZERS
        if not (is_plain and self._fastlstm_engine == "auto" and engines.is_op_at_once()):
            return None
        layout = LAYOUTS[self.bias is True, self.proj_size > 0, self._fastlstm_normalizes]
        return self._flat_weights, layout, self._parameters, self._flat_weights_names

    _fastlstm_weights = read_weights

    def _fastlstm_extends(self, *options: Any) -> bool:
        draws = self.training and any(self._fastlstm_regularizers)
        return draws or self._fastlstm_normalizes or super()._fastlstm_extends(*options)

    def _fastlstm_compute(self, call: Call) -> Results:
        drawn = self._fastlstm_regularizers
        if self.training and (self.dropout or any(drawn)):
            call = in_training(call, self.dropout, drawn)
        return engines.choose(call, self._fastlstm_engine).run(call)


class CellModule(nn.Module):
    """The call of an LSTMCell: its arguments and results, whatever runs it."""

    input_size: int
    hidden_size: int
    bias: bool

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Makes one step.

        Args:
            input: [B,input_size], or [input_size].
            hx: (h [B,hidden_size], c [B,hidden_size]), without B if unbatched; zeros if None.

        Returns:
            The next (h, c).
        """
        if type(input) is not Tensor or input.is_nested:
            if isinstance(input, _Proxy):
                node: tuple[Tensor, Tensor] = _as_one_node(self, input, hx=hx)
                return node
            check_kinds(input, None, {})
        is_batched = input.dim() == 2
        # nn.LSTMCell reads no input_size, and hidden_size only where it makes a state.
        size = getattr(self, "hidden_size", None)
        shape: Any = (input.size(0), size) if is_batched else (size,)
        has_other_dims = not is_batched and input.dim() != 1
        if has_other_dims or (hx is not None and not is_pair(hx, shape, shape)):
            return self._fastlstm_as_torch(input, hx)
        if is_batched:
            return self._fastlstm_step(input, hx)
        hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = self._fastlstm_step(input.unsqueeze(0), hx)
        return h.squeeze(0), c.squeeze(0)

    def _fastlstm_step(self, input: Tensor, hx: State | None) -> State:
        """The next state of a batch of rows."""
        raise NotImplementedError

    def _fastlstm_torch(self) -> Any:
        """A module on which nn.LSTMCell.forward runs."""
        return self

    def _fastlstm_as_torch(self, input: Tensor, hx: Any) -> State:
        """What nn.LSTMCell gives where shapes do not fit."""
        is_row = hx is not None and input.dim() == 1
        if is_row and any(isinstance(state, Tensor) and state.dim() == 2 for state in hx):
            # nn.LSTMCell ends the process.
            raise RuntimeError("For unbatched 1-D input, hx and cx should also be 1-D")
        state: State = run_torch(nn.LSTMCell.forward, self._fastlstm_torch(), input, hx)
        return state


class LSTMCell(CellModule, EngineModule, nn.RNNCellBase):
    """One step of an LSTM: `torch.nn.LSTMCell` with a fused engine.

    Weights: weight_ih [4*hidden_size, input_size], weight_hh [4*hidden_size, hidden_size],
    bias_ih and bias_hh [4*hidden_size]; gate order i, f, g, o.

    Args:
        input_size, hidden_size, bias: as in `LSTM`.
        device, dtype: of the parameters.

    Attributes:
        engine: which engine runs, one of `fastlstm.functional.ENGINES`; may be set at any time.
    """

    engine: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def _fastlstm_step(self, input: Tensor, hx: State | None) -> State:
        if hx is None:
            zeros = input.new_zeros(input.size(0), self.hidden_size)
            hx = (zeros, zeros)
        weights, layout = weights_of_cell(self)
        engine, library = self._fastlstm_engine, _build.library
        is_plain = engine == "auto" and engines.is_op_at_once()
        if is_plain and library.are_plain(input, hx, weights):
            try:
                step: State = library.lstm_cell(input, *hx, weights, layout, "auto")
                return step
            except (RuntimeError, TypeError):
                is_plain = False  # what follows raises it again, or has nn.LSTMCell decide
        check_kinds(input, hx, {})
        if not fit_cell(input, hx, shapes_of(weights)):
            return self._fastlstm_as_torch(input, hx)
        if input.dtype != weights[0].dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(
                f"LSTMCell: expected input of dtype {weights[0].dtype} like the weights, got "
                f"{input.dtype}"
            )
        call = Call(input, hx, weights, layout, is_cell=True)
        return run_cell(engines.choose(call, engine).run, call)


for _class in (LSTM, LSTMCell):
    for _name in _class._fastlstm_options:  # not in their bodies, where type checkers read the type
        setattr(_class, _name, _Option(_name))
