"""`prepack` freezes the LSTMs of a model for inference on the CPU: weights packed once, or smaller.

The modules that it puts in place have no parameters, so that no packed copy can be out of date.
"""

from __future__ import annotations

import pickle
import types
import warnings
from multiprocessing.reduction import ForkingPickler
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import _build, _formats
from ._call import DTYPES, Call
from ._checks import stack_call
from ._layers import Results, results
from ._packed_weights import PackedWeights, require_extension
from .convert import _CLASSES, Model, check_model, own_class
from .convert import convert as convert_modules
from .engines import PREPACKED, is_eager
from .modules import (
    LSTM,
    CellModule,
    LSTMCell,
    SequenceModule,
    State,
    on_meta,
    qualified_name,
    raise_as_torch,
)


class _Frozen(PackedWeights):
    """A layer without parameters: what calls of it have in common."""

    input_size: int
    hidden_size: int
    _layer_class: type[nn.Module]  # of the layer that was packed
    _get_name = qualified_name

    def __init__(self, layer: nn.Module, weights: torch.dtype | None = None) -> None:
        """Takes attributes, hooks and weights of a layer."""
        super().__init__()
        _copy_attributes(layer, self)
        self._layer_class = own_class(layer)
        tensors = {name: getattr(layer, name).detach() for name in _names_of(layer)}
        self.__dict__["_shapes"] = {name: tuple(t.shape) for name, t in tensors.items()}
        self.dtype = next(iter(tensors.values())).dtype
        self.weights = weights or self.dtype
        self._pack(tensors)
        super().train(False)

    def _fastlstm_results(self, call: Call) -> Results:
        if call.input.dtype != self.dtype:
            raise ValueError(
                f"{type(self).__name__}: expected input of dtype {self.dtype}, got "
                f"{call.input.dtype}; autocast leaves prepacked layers alone"
            )
        if reason := PREPACKED.why_not(call):
            raise RuntimeError(
                f"{type(self).__name__}: {reason}; call within torch.inference_mode() or "
                "torch.no_grad() and outside torch.func, or turn the model back: "
                "fastlstm.unpack(model)"
            )
        return PREPACKED.run(call)

    def train(self, mode: bool = True) -> _Frozen:
        """Stays in eval mode; a RuntimeError if `mode` is true, for there is nothing to train."""
        if mode:
            raise RuntimeError(
                f"{type(self).__name__} has no training mode: its weights are packed. Train the "
                "model that it was packed from, or turn it back: fastlstm.unpack(model)"
            )
        return super().train(False)

    def extra_repr(self) -> str:
        """That of the layer that was packed, and the dtype of the weights."""
        return f"{self.input_size}, {self.hidden_size}, weights={self.weights}"


def _names_of(layer: nn.Module) -> list[str]:
    """The weights of all layers and directions, in the order in which the op takes them."""
    if isinstance(layer, nn.RNNBase):
        return layer._flat_weights_names
    return ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bool(layer.bias)


def _copy_attributes(layer: nn.Module, to: nn.Module) -> None:
    """Sizes, options, hooks and whatever the user has set."""
    kept = ("_forward_hooks", "_forward_pre_hooks", "_fastlstm_")
    left = ("dtype", "forward", "weights")  # which _Frozen has
    attributes = {k: v for k, v in vars(layer).items() if k[0] != "_" or k.startswith(kept)}
    to.__dict__.update({k: v for k, v in attributes.items() if k not in left})


class PackedLSTM(_Frozen, SequenceModule):
    """An `LSTM` packed by `prepack`: called in the same way, without parameters and gradients.

    Attributes:
        dtype: of the input, the output and the state.
        weights: the format of the weights, as `prepack` takes it.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size:
            as in `LSTM`.
    """

    num_layers: int
    bidirectional: bool
    _layer_class = LSTM
    _SIZES = (
        "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
    ).split()

    def _fastlstm_weights(self) -> tuple[Any, list[Tensor], str, torch.dtype]:
        op = _build.library.plain_lstm_packed if is_eager() else None
        return op, self._op_weights(), self._layout, self.dtype

    def _fastlstm_refuse(self, input: Any, hx: Any) -> None:
        sizes = {name: getattr(self, name) for name in self._SIZES}
        lstm = nn.LSTM(**sizes, device="meta", dtype=self.dtype)
        raise_as_torch(lstm, on_meta(input), on_meta(hx))
        raise RuntimeError(f"{type(self).__name__}: expected input and hx on the CPU")

    def _fastlstm_run(
        self,
        weights: list[Tensor],
        layout: str,
        input: Tensor,
        hx: State | None,
        batch_sizes: Tensor | None,
        *options: Any,
    ) -> tuple[Any, ...]:
        directions = 1 + self.bidirectional
        if hx is None:  # of sizes that prepacked weights do not show
            batch = input.size(0 if self.batch_first else 1)
            batch = batch if batch_sizes is None else int(batch_sizes[0])
            c_0 = input.new_zeros(self.num_layers * directions, batch, self.hidden_size)
            hx = (c_0[..., : self.proj_size or self.hidden_size].contiguous(), c_0)
        form = self.num_layers, directions, self.batch_first
        call = stack_call(input, hx, weights, layout, *form, batch_sizes, *options)
        batch_first = self.batch_first and batch_sizes is None
        return results(call, self._fastlstm_results(call), batch_first)

    def flatten_parameters(self) -> None:
        """Does nothing: there are no parameters."""

    def extra_repr(self) -> str:
        """That of nn.LSTM, and the dtype of the weights."""
        return f"{nn.LSTM.extra_repr(self)}, weights={self.weights}"  # type: ignore[arg-type]


class PackedLSTMCell(_Frozen, CellModule):
    """An `LSTMCell` packed by `prepack`: called in the same way, without parameters and gradients.

    Attributes:
        dtype: of the input and the state.
        weights: the format of the weights, as `prepack` takes it.
        input_size, hidden_size, bias: as in `LSTMCell`.
    """

    _layer_class = LSTMCell
    _SIZES = ("input_size", "hidden_size", "bias")

    def _fastlstm_step(self, input: Tensor, hx: State | None) -> State:
        if hx is None:
            zeros = input.new_zeros(input.size(0), self.hidden_size)
            hx = (zeros, zeros)
        weights, tensors = self._op_weights(), (input, *hx)
        if input.dtype is self.dtype and is_eager() and _build.library.are_plain(*tensors):
            needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            if not needs_grad:
                step: State = _build.library.lstm_cell_packed(*tensors, weights, self._layout)
                return step
        _, state, _ = self._fastlstm_results(Call(input, hx, weights, self._layout, is_cell=True))
        return state


def _as_bytes(module: _Frozen) -> tuple[Any, ...]:
    """For another process, which cannot share what is unpacked for this call only."""
    return pickle.loads, (pickle.dumps(module),)


_KINDS: dict[type[nn.Module], Any] = {
    kind._layer_class: kind for kind in (PackedLSTM, PackedLSTMCell)
}
_KINDS |= {both: _KINDS[ours] for _, ours, both in _CLASSES}
for _kind in _KINDS.values():
    ForkingPickler.register(_kind, _as_bytes)


@overload
def prepack(
    model: LSTM | nn.LSTM, weights: torch.dtype | None = None, *, convert: bool = False
) -> PackedLSTM: ...
@overload
def prepack(
    model: LSTMCell | nn.LSTMCell, weights: torch.dtype | None = None, *, convert: bool = False
) -> PackedLSTMCell: ...
@overload
def prepack(
    model: Model, weights: torch.dtype | None = None, *, convert: bool = False
) -> Model: ...
def prepack(
    model: nn.Module, weights: torch.dtype | None = None, *, convert: bool = False
) -> nn.Module:
    """Freezes the LSTMs of a model for inference on the CPU, in place, and returns the model.

    Of a model that is itself an LSTM only the result is packed: `frozen = prepack(lstm)`.

    Every LSTM and LSTMCell becomes a packed one without parameters: its weights are stored as the
    processor reads them, in fewer bits if requested. It is called as before.
    `state_dict` still has the weights by their names and `load_state_dict` takes those of the model
    before packing; training mode, another dtype or device, and gradients are refused with an error.

    What torch.ao.quantization.quantize_dynamic made of an LSTM or LSTMCell is packed too: its int8
    weights with their scales (-128 becomes -127), or those of float16 in float32.

    Args:
        model: any module in eval mode, on the CPU; it may be an LSTM itself.
        weights: None keeps the dtype of each layer, and its results (bit for bit in float32 and
            float64). torch.bfloat16 halves the weights of float32, torch.int8 takes a quarter of
            the memory, with a scale for each row of a matrix. What is multiplied with them is
            rounded or quantized too, row by row; sums, states and gate equations stay in float32.
        convert: whether nn.LSTM and nn.LSTMCell are converted on the way.

    Returns:
        The model; if it is itself replaced, what replaces it.

    Raises:
        ValueError: `weights` is none of these or does not suit a layer's dtype; a layer is in
            training mode or not on the CPU; or there is nothing to pack. Nothing is changed then.
        RuntimeError: the extension is not available.
        TypeError: `model` is no module.

    Warns:
        UserWarning: for each LayerNormLSTM and subclass of your own: it stays as it is.
    """
    if weights not in (None, torch.float32, *_formats.SMALLER):
        known = ", ".join(map(repr, (torch.float32, *_formats.SMALLER)))
        raise ValueError(f"weights: expected None or one of {known}, got {weights!r}")
    check_model(model)
    require_extension()
    layers, quantized = _what_to_pack(model, convert)
    for path, module in layers.items():
        _check_layer(path or "the model itself", module, weights)
    if convert and layers:
        convert_modules(model)
    for path, module in model.named_modules():
        if isinstance(module, (LSTM, LSTMCell)) and path not in layers:
            warnings.warn(
                f"prepack: {path or 'the model itself'} stays as it is: its class "
                f"{type(module).__qualname__} is more than an LSTM or LSTMCell",
                UserWarning,
                stacklevel=2,
            )
    packed = {layer: _KINDS[own_class(layer)](layer, weights) for layer in layers.values()}
    packed |= {module: _of_torch_ao(module, weights) for module in quantized}
    return _replace(model, packed)


def _replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules replaced in place, wherever they stand; or what replaces it."""
    for module in [*model.modules(), *replacements.values()]:
        for name, child in module._modules.items():
            if child in replacements:
                module._modules[name] = replacements[child]
    return replacements.get(model, model)


def _what_to_pack(model: nn.Module, convert: bool) -> tuple[dict[str, nn.Module], list[nn.Module]]:
    """The layers by their paths, and those that torch.ao has quantized."""
    kinds = (*_KINDS, nn.LSTM, nn.LSTMCell) if convert else tuple(_KINDS)
    layers = {path: m for path, m in model.named_modules() if own_class(m) in kinds}
    quantized = [module for module in model.modules() if _is_of_torch_ao(module)]
    if not layers and not quantized:
        hint = "" if convert else "; convert=True takes nn.LSTM and nn.LSTMCell"
        if any(isinstance(module, _Frozen) for module in model.modules()):
            hint = ", and not one that is packed already; fastlstm.unpack turns it back"
        raise ValueError(f"prepack: expected a model with a fastlstm.LSTM or LSTMCell{hint}")
    return layers, quantized


def _is_of_torch_ao(module: nn.Module) -> bool:
    """Whether it is what torch.ao.quantization.quantize_dynamic makes of an LSTM or LSTMCell."""
    cls = type(module)
    is_dynamic = cls.__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
    return is_dynamic and cls.__name__ in ("LSTM", "LSTMCell")


def _of_torch_ao(quantized: Any, weights: torch.dtype | None) -> nn.Module:
    """A packed layer with the weights of one that quantize_dynamic made, in int8 unless told."""
    kind = PackedLSTM if type(quantized).__name__ == "LSTM" else PackedLSTMCell
    state = quantized.get_bias() if quantized.bias else {}
    for name, weight in quantized.get_weight().items():
        state[name] = weight.dequantize()
        if weight.is_quantized:
            weights = weights or torch.int8
            per_row = weight.qscheme() == torch.per_channel_affine
            zero = weight.q_per_channel_zero_points() if per_row else weight.q_zero_point()
            if not torch.as_tensor(zero).any():  # as torch.ao has them by default
                scale = weight.q_per_channel_scales() if per_row else weight.q_scale()
                state[f"{name}_scale"] = torch.as_tensor(scale).float().expand(weight.size(0))
                state[name] = weight.int_repr().clamp_min(-127)
    sizes = {name: getattr(quantized, name) for name in kind._SIZES if hasattr(quantized, name)}
    packed: nn.Module = kind(kind._layer_class(**sizes).eval(), weights)
    packed.load_state_dict(state)
    return packed


def _check_layer(path: str, module: nn.Module, weights: torch.dtype | None) -> None:
    tensor = next(iter(module.parameters()))
    smaller = () if tensor.dtype == torch.float64 else _formats.SMALLER
    allowed = tuple(dict.fromkeys((None, tensor.dtype, *smaller)))
    if weights not in allowed or tensor.dtype not in DTYPES:
        raise ValueError(
            f"prepack: {path} is {tensor.dtype}: expected weights to be one of "
            f"{', '.join(map(str, allowed))}, got {weights}"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"prepack: expected {path} on the CPU, got {tensor.device}")
    if module.training:
        raise ValueError(f"prepack: expected {path} in eval mode: call model.eval() first")
    own = vars(module).get("forward")
    if own is not None and own != types.MethodType(type(module).forward, module):
        raise ValueError(
            f"prepack: {path} has a forward of its own, set on the module, which would go on with "
            "the weights before packing; take it off first, and set it again after packing"
        )
    if any(0 in p.shape for p in module.parameters()):
        raise ValueError(f"prepack: expected sizes of at least 1 in {path}, got {module}")
    for name in _names_of(module):
        if name not in module._parameters and not parametrize.is_parametrized(module, name):
            raise ValueError(
                f"prepack: {name} of {path} is computed by a hook in every call; make it "
                "permanent first (prune.remove, remove_weight_norm)"
            )
        weight = getattr(module, name)
        if problem := _formats.problem(
            name, weight, None, tuple(weight.shape), weights or weight.dtype
        ):
            raise ValueError(f"prepack: {path}: {problem}")


@overload
def unpack(model: PackedLSTM) -> LSTM: ...
@overload
def unpack(model: PackedLSTMCell) -> LSTMCell: ...
@overload
def unpack(model: Model) -> Model: ...
def unpack(model: nn.Module) -> nn.Module:
    """Turns what `prepack` packed back into what it was, in place.

    Weights that were packed in their own dtype come back as they were; those in fewer bits
    come back rounded.

    Args:
        model: any module; it may be a packed one itself.

    Returns:
        The model, its layers in eval mode; if it is itself replaced, what replaces it.

    Raises:
        ValueError: there is nothing to unpack.
    """
    check_model(model)
    packed = [m for m in model.modules() if isinstance(m, (PackedLSTM, PackedLSTMCell))]
    if not packed:
        raise ValueError(
            "unpack: expected a model with layers that prepack has packed, got one without"
        )
    return _replace(model, {module: _unpack_layer(module) for module in packed})


def _unpack_layer(packed: PackedLSTM | PackedLSTMCell) -> nn.Module:
    sizes = {name: getattr(packed, name) for name in packed._SIZES}
    layer = packed._layer_class(**sizes, dtype=packed.dtype)
    tensors = packed._unpacked()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(_formats.dequantize(tensors[name], tensors.get(f"{name}_scale")))
    _copy_attributes(packed, layer)
    return layer.eval()
