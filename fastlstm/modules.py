"""`LSTM` and `LSTMCell`: drop-in replacements for the modules of torch.nn.

They inherit from the bases of torch.nn (not from nn.LSTM, which torch.compile refuses to see
subclassed), so parameters, their names, order and initial values, repr, errors and pickles are
those of torch.nn by construction. `convert` changes the class of a model's modules both ways.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _build, engines
from ._call import LAYOUTS, Call
from ._checks import check_kinds, in_training, stack_call
from ._layers import results
from ._regularize import Regularizers, check_probabilities

_torch_lstm: Any = nn.LSTM  # whose methods run on modules that do not inherit from it
_torch_cell: Any = nn.LSTMCell
_Proxy: Any = torch.fx.Proxy  # which the annotations leave out
State = tuple[Tensor, Tensor]  # h and c
_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _by_name(module: nn.Module, names: Iterable[str]) -> list[Any]:
    """The parameters as they are now: functional_call, parametrizations and replicas swap them."""
    parameters = module._parameters
    try:  # ten times faster than nn.Module.__getattr__
        return [*map(parameters.__getitem__, names)]
    except KeyError:
        return [getattr(module, name) for name in names]


def _is_step(cell: Any, input: Any, hx: Any) -> bool:
    """Whether the input of a cell is a batch of its rows, and hx None or a pair for them."""
    if type(input) is not Tensor or input.is_nested or input.dim() != 2:
        return False
    if input.size(1) != cell.input_size:
        return False
    if hx is None:
        return True
    if type(hx) is not tuple or len(hx) != 2:
        return False
    h, c = hx
    shape = input.size(0), cell.hidden_size
    are_tensors = isinstance(h, Tensor) and isinstance(c, Tensor)
    return are_tensors and h.shape == shape and c.shape == shape


def _check_pair(hx: Any, function: str) -> None:
    """Raises what torch.lstm and torch.lstm_cell raise for another hx than (h, c)."""
    if isinstance(hx, Tensor):
        raise TypeError(
            f"{function}(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor"
        )
    if len(hx) != 2:
        raise RuntimeError(f"{function} expects two hidden states")


def _check_kinds(input: Any, hx: Any) -> None:
    """Raises a TypeError that names what is not a dense tensor, or lengths and reset as hx."""
    if isinstance(hx, Tensor) and not hx.is_floating_point():
        dtype = str(hx.dtype).removeprefix("torch.")
        raise TypeError(
            f"hx: expected a pair (h_0, c_0), got a tensor of {dtype}; lengths and reset are "
            "passed by name: lengths=lengths"
        )
    check_kinds(input, hx if isinstance(hx, (tuple, list)) and len(hx) == 2 else None, {})


def _check_devices(input: Tensor, weight: Tensor, hx: State | None) -> None:
    """Raises the error of nn.LSTM, which blames the input; the op blames the others."""
    for kind, other in [("parameter", weight), *(("hidden", state) for state in hx or ())]:
        if input.device != other.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, found input tensor at "
                f"{input.device} and {kind} tensor at {other.device}"
            )


def _check_stack(
    lstm: Any, input: Tensor, hx: State | None, weights: list[Tensor], batch_sizes: Tensor | None
) -> None:
    """The checks of nn.LSTM; its own methods raise, so that the errors are the same."""
    device = input.device
    if input.dtype != weights[0].dtype or input.size(-1) != lstm.input_size:
        lstm._update_flat_weights()
        _torch_lstm.check_input(lstm, input, batch_sizes)
    if hx is not None:
        _check_pair(hx, "lstm")
        h_shape = _torch_lstm.get_expected_hidden_size(lstm, input, batch_sizes)
        if hx[0].shape != h_shape or hx[1].shape != (*h_shape[:2], lstm.hidden_size):
            _torch_lstm.check_forward_args(lstm, input, hx, batch_sizes)
    if device != weights[0].device or (hx and not device == hx[0].device == hx[1].device):
        _check_devices(input, weights[0], hx)
    if input.layout is not torch.strided or (hx and hx[1].layout is not torch.strided):
        check_kinds(input, hx, {})


def _check_cell(cell: Any, input: Tensor, hx: Any, weight: Tensor) -> None:
    """Raises nn.LSTMCell's errors, but where it ends the process instead."""
    fits = input.dim() in (1, 2) and input.size(-1) == cell.input_size
    if hx is not None and fits:
        shape = (*input.shape[:-1], cell.hidden_size)
        fits = isinstance(hx, (tuple, list)) and len(hx) == 2
        fits = fits and hx[0].shape == hx[1].shape == shape
    if not fits:
        if hx is not None and input.dim() == 1 and {h.dim() for h in hx} in ({2}, {1, 2}):
            raise RuntimeError("For unbatched 1-D input, hx and cx should also be 1-D")
        _torch_cell.forward(cell, input, hx)
    if input.device != weight.device or hx is not None:
        _check_devices(input, weight, hx)
    if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
        raise RuntimeError(
            f"LSTMCell input dtype ({input.dtype}) does not match weight dtype "
            f"({weight.dtype}). Convert input: input.to({weight.dtype}), or "
            f"convert model: model.to({input.dtype})"
        )


def _as_one_node(module: nn.Module, input: Any, **options: Any) -> Any:
    """The call of a module as a node of a graph of torch.fx, to which nn.LSTM is one too."""
    cls = type(module)
    if not cls.forward.__module__.startswith("fastlstm."):
        raise TypeError(
            f"{cls.__name__}: torch.fx cannot trace its own forward; let is_leaf_module of the "
            "Tracer be true for it"
        )
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    tracer = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), given)


def qualified_name(module: nn.Module) -> str:
    """With the package, so that a printed model shows whose LSTM it has."""
    cls = type(module)
    package, _, _ = cls.__module__.partition(".")
    return f"fastlstm.{cls.__name__}" if package == "fastlstm" else cls.__name__


class Options(NamedTuple):
    """What an LSTM of ours has beyond nn.LSTM."""

    engine: str = "auto"
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    weight_dropout: float = 0.0

    @property
    def regularizers(self) -> Regularizers:
        """All but the engine."""
        return Regularizers(*self[1:])


_NO_OPTIONS = Options()


class _Option:
    """An attribute that reads one of the options, where its name is not the user's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self
        if not module._fastlstm_has(self.name):
            raise AttributeError(self.name)  # Python then asks __getattr__, as for nn.LSTM
        return getattr(module._fastlstm_options, self.name)


_Init = TypeVar("_Init", bound=Callable[..., None])
_INSTEAD = {
    "engine": "set it on the module: lstm.engine = ...",
    "layer_norm": "fastlstm.LayerNormLSTM normalizes",
    "recompute": "torch.utils.checkpoint saves the memory of any module",
    "zoneout": "fastlstm.LSTM takes zoneout_h and zoneout_c",
}


def _with_hints(init: _Init) -> _Init:
    """A constructor that says what to write in place of what users expect it to take."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        for name in _INSTEAD.keys() & options.keys():
            raise TypeError(
                f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}; "
                f"{_INSTEAD[name]}"
            )
        init(self, *args, **options)

    return checked  # type: ignore[return-value]


class EngineModule(nn.Module):
    """What modules that run an engine share: its name, and theirs.

    Of a converted module most names are the user's. So options lie under a name that nobody else
    uses, and so do private methods.
    """

    _fastlstm_options = _NO_OPTIONS
    _fastlstm_names: ClassVar[tuple[str, ...]] = ("engine",)  # of options, as attributes
    _get_name = qualified_name

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which compiles what convert(to="torch") gives instead."""
        from ._scripting import prepare

        return prepare(self)

    def _fastlstm_has(self, name: str) -> bool:
        """Whether an attribute is an option, and not something that the user has set."""
        if name not in self._fastlstm_names:
            return False
        tables = [vars(self).get(table, ()) for table in ("_parameters", "_buffers", "_modules")]
        return not any(name in table for table in (vars(self), *tables))

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._fastlstm_has(name):
            super().__setattr__(name, value)
            return
        if name == "engine":
            engines.check_engine(value)
        else:
            check_probabilities(**{name: value})
        options = self._fastlstm_options._replace(**{name: value})
        vars(self)["_fastlstm_options"] = _NO_OPTIONS if options == _NO_OPTIONS else options

    def _fastlstm_forced_engine(self) -> str:
        """For the repr."""
        engine = self._fastlstm_options.engine
        return "" if engine == "auto" else f", engine={engine!r}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Refuses the int8 weights of a packed layer, which copy_() would take for numbers."""
        error_msgs: list[str] = others[-1]
        error_msgs += [
            f"{prefix}{name}: expected floating-point weights, got int8, as "
            "fastlstm.prepack(model, torch.int8) stores them: load them into such a model, and "
            "turn it back with fastlstm.unpack"
            for name in self._parameters
            if getattr(state_dict.get(prefix + name), "dtype", None) == torch.int8
        ]
        super()._load_from_state_dict(state_dict, prefix, *others)


class SequenceModule(nn.Module):
    """The call of an LSTM: what it takes and returns, whatever runs it."""

    batch_first: bool
    permute_hidden = _torch_lstm.permute_hidden

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
        if type(input) is Tensor and self.num_layers == 1 and not return_cell_states:
            at_once = self._fastlstm_at_once(input, hx, lengths, reset)
            if at_once is not None:
                return at_once
        options = lengths, reset, return_cell_states
        if isinstance(input, PackedSequence):
            return self._fastlstm_packed(input, hx, *options)
        if type(input) is not Tensor and isinstance(input, _Proxy):
            named = {"lengths": lengths, "reset": reset, "return_cell_states": return_cell_states}
            node: tuple[Any, ...] = _as_one_node(self, input, hx=hx, **named)
            return node
        if isinstance(input, Tensor) and input.is_nested:
            return self._fastlstm_nested(input, hx, *options)
        states: Any = () if hx is None else hx
        if type(states) is not tuple or {*map(type, (input, *states))} != {Tensor}:
            _check_kinds(input, hx)
        dim = input.dim()
        if dim not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dim}D instead")
        if hx is not None and (hx[0].dim() != dim or hx[1].dim() != dim):
            kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {dim}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        if dim == 2:
            return self._fastlstm_unbatched(input, hx, *options)
        return self._fastlstm_run(input, hx, None, *options)

    def _fastlstm_unbatched(
        self, input: Tensor, hx: State | None, lengths: Any, reset: Any, return_cell_states: bool
    ) -> tuple[Any, ...]:
        if hx is not None:
            _check_pair(hx, "lstm")
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        for name, given, shape in (("lengths", lengths, ()), ("reset", reset, input.shape[:1])):
            if isinstance(given, Tensor) and given.shape != shape:
                raise RuntimeError(
                    f"LSTM: expected {name} of shape {tuple(shape)} for unbatched input, got "
                    f"{tuple(given.shape)}"
                )
        batch_dim = 0 if self.batch_first else 1
        output, (h_n, c_n), *cells = self._fastlstm_run(
            input.unsqueeze(batch_dim),
            hx,
            None,
            lengths.unsqueeze(0) if isinstance(lengths, Tensor) else lengths,
            reset.unsqueeze(batch_dim) if isinstance(reset, Tensor) else reset,
            return_cell_states,
        )
        cells = [c.squeeze(batch_dim + 1) for c in cells]
        return output.squeeze(batch_dim), (h_n.squeeze(1), c_n.squeeze(1)), *cells

    def _fastlstm_packed(
        self, input: PackedSequence, hx: State | None, *options: Any
    ) -> tuple[Any, ...]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None:
            _check_kinds(data, hx)
            hx = self.permute_hidden(hx, sorted_indices)
        output, state, *cells = self._fastlstm_run(data, hx, batch_sizes, *options)
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(state, unsorted_indices), *cells

    def _fastlstm_nested(self, input: Tensor, hx: State | None, *options: Any) -> tuple[Any, ...]:
        """The rows padded, with their lengths, and the output with the offsets of the input."""
        is_jagged = input.layout is torch.jagged
        if not is_jagged or input.dim() != 3 or not isinstance(input.size(2), int):
            raise TypeError(
                "input: expected a nested tensor of layout torch.jagged and shape (batch, j, "
                f"input_size), got {tuple(input.shape) if is_jagged else input.layout}"
            )
        if any(given is not None and given is not False for given in options):
            raise RuntimeError(
                "LSTM: lengths, reset and return_cell_states cannot be combined with a nested "
                "tensor; torch.nested.to_padded_tensor pads it"
            )
        rows: Any = input.contiguous()  # without holes
        rows._get_max_seqlen()  # which it keeps: else it pads to the sum of all lengths
        padded, offsets = torch.nested.to_padded_tensor(rows, 0.0), rows.offsets()
        longest, lengths = padded.size(1), offsets.diff()
        are_real = torch.arange(longest, device=padded.device) < lengths.unsqueeze(1)
        padded = padded if self.batch_first else padded.transpose(0, 1)
        output, state = SequenceModule.forward(self, padded, hx, lengths=lengths)
        values = (output if self.batch_first else output.transpose(0, 1))[are_real]
        return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=longest), state

    def _fastlstm_run(
        self,
        input: Tensor,
        hx: State | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        return_cell_states: bool,
    ) -> tuple[Any, ...]:
        """The layers over a batch of three dimensions, or over packed data."""
        raise NotImplementedError

    def _fastlstm_at_once(
        self, input: Tensor, hx: Any, lengths: Any, reset: Any
    ) -> tuple[Any, ...] | None:
        """A plain eager call of one layer on a CPU: spares a small step most of its Python.

        None where something else has to be decided, or to see the call.
        """
        plain = self._fastlstm_plain_op(input)
        if plain is None:
            return None
        op, weights, layout = plain
        results: tuple[Any, ...] | None = op(
            input,
            hx,
            weights,
            layout,
            self.input_size,
            self.hidden_size,
            self.proj_size or self.hidden_size,
            2 if self.bidirectional else 1,
            self.batch_first,
            lengths,
            reset,
        )
        return results

    def _fastlstm_plain_op(self, input: Tensor) -> tuple[Any, list[Tensor], str] | None:
        """The function for plain calls, its weights and their layout; None if there are none."""
        raise NotImplementedError


# What Python's own errors call it, of an unknown keyword for one.
SequenceModule.forward.__qualname__ = "LSTM.forward"


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
    check_forward_args = _torch_lstm.check_forward_args
    get_expected_cell_size = _torch_lstm.get_expected_cell_size
    _fastlstm_names = Options._fields
    engine: str
    input_dropout: float
    recurrent_dropout: float
    zoneout_h: float
    zoneout_c: float
    weight_dropout: float

    @_with_hints
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
        drawn = input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout
        check_probabilities(**Regularizers(*drawn)._asdict())
        if any(drawn):
            self._fastlstm_options = Options("auto", *drawn)

    def extra_repr(self) -> str:
        """The text of nn.LSTM, the options that nn.LSTM lacks, if they are on, and the engine."""
        options = self._fastlstm_options.regularizers._asdict().items()
        given = "".join(f", {name}={value}" for name, value in options if value)
        return super().extra_repr() + given + self._fastlstm_forced_engine()

    def _fastlstm_run(
        self,
        input: Tensor,
        hx: State | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        return_cell_states: bool,
    ) -> tuple[Any, ...]:
        weights = _by_name(self, self._flat_weights_names)
        _check_stack(self, input, hx, weights, batch_sizes)
        if input.is_cuda:
            self._fastlstm_keep_flat(weights)
        layout = LAYOUTS[bool(self.bias), self.proj_size > 0, self._fastlstm_normalizes]
        form = self.num_layers, 2 if self.bidirectional else 1, self.batch_first
        modes = return_cell_states, self.training
        call = stack_call(input, hx, weights, layout, *form, batch_sizes, lengths, reset, *modes)
        engine, *drawn = self._fastlstm_options
        if self.training and (self.dropout or any(drawn)):
            call = in_training(call, self.dropout, Regularizers(*drawn))
        found = engines.choose(call, engine).run(call)
        return results(call, found, self.batch_first and batch_sizes is None)

    def _fastlstm_plain_op(self, input: Tensor) -> tuple[Any, list[Tensor], str] | None:
        if self._fastlstm_options is not _NO_OPTIONS or (self.dropout and self.training):
            return None
        if not engines.is_op_at_once():
            return None
        layout = LAYOUTS[bool(self.bias), self.proj_size > 0, self._fastlstm_normalizes]
        return _build.library.plain_lstm, _by_name(self, self._flat_weights_names), layout

    def _fastlstm_keep_flat(self, weights: list[Tensor]) -> None:
        """Puts new parameters into one chunk again, for cuDNN, unless a graph is captured."""
        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return
        known = (None if ref is None else ref() for ref in self._flat_weight_refs)
        if any(a is not b for a, b in zip(known, weights, strict=True)) and all(
            isinstance(weight, nn.Parameter) for weight in weights
        ):
            self._init_flat_weights()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.flatten_parameters()  # deepcopy and pickle copy weight by weight


class LSTMCell(EngineModule, nn.RNNCellBase):
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

    @_with_hints
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

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
        weights = _by_name(self, _CELL_WEIGHTS if self.bias else _CELL_WEIGHTS[:2])
        at_once = self._fastlstm_at_once(input, hx, weights)
        if at_once is not None:
            return at_once
        if type(input) is not Tensor and isinstance(input, _Proxy):
            node: tuple[Tensor, Tensor] = _as_one_node(self, input, hx=hx)
            return node
        if type(input) is not Tensor or input.is_nested or input.layout is not torch.strided:
            check_kinds(input, None, {})
        _check_cell(self, input, hx, weights[0])
        is_batched, layout = input.dim() == 2, LAYOUTS[bool(self.bias), False, False]
        if not is_batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = engines.run_cell(
            Call(input, hx, weights, layout, is_cell=True), self._fastlstm_options.engine
        )
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))

    def _fastlstm_at_once(self, input: Any, hx: Any, weights: list[Any]) -> State | None:
        """A plain eager call on a CPU, as of `LSTM`; None where more has to be decided."""
        if self._fastlstm_options is not _NO_OPTIONS or not _is_step(self, input, hx):
            return None
        if not (engines.is_op_at_once() and _build.library.are_plain(input, hx, weights)):
            return None
        layout = LAYOUTS[bool(self.bias), False, False]
        h, c = hx or (None, None)
        step: State = _build.library.lstm_cell(input, h, c, weights, layout, "auto")
        return step

    def extra_repr(self) -> str:
        """The text of nn.LSTMCell, and the engine if it is forced."""
        return super().extra_repr() + self._fastlstm_forced_engine()


for _class in (LSTM, LSTMCell):
    for _name in _class._fastlstm_names:  # not in their bodies, where a type checker reads the type
        setattr(_class, _name, _Option(_name))
