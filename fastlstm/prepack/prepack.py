"""`prepack` freezes the LSTMs of a model for inference on a CPU; `unpack` turns them back."""

from __future__ import annotations

import warnings
from typing import Any, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from .._attributes import named_weights
from ..convert import _CLASSES, Model, check_model, is_of_torch_ao, own_class
from ..convert import convert as convert_modules
from ..engine.call import DTYPES
from ..modules import LSTM, LSTMCell
from . import formats
from .additions import check_additions, copy_additions
from .layers import Prepacked, PrepackedLSTM, PrepackedLSTMCell, require_extension

_KINDS: dict[type[nn.Module], Any] = {LSTM: PrepackedLSTM, LSTMCell: PrepackedLSTMCell}
_KINDS |= {both: _KINDS[ours] for _, ours, both in _CLASSES}
# What torch.ao's modules have instead of parameters.
_OF_TORCH_AO = (
    *("_all_weight_values", "_packed_weight_ih", "_packed_weight_hh", "bias_ih", "bias_hh"),
    *("version", "weight_dtype"),
)


@overload
def prepack(
    model: LSTM | nn.LSTM, weights: torch.dtype | None = None, *, convert: bool = False
) -> PrepackedLSTM: ...
@overload
def prepack(
    model: LSTMCell | nn.LSTMCell, weights: torch.dtype | None = None, *, convert: bool = False
) -> PrepackedLSTMCell: ...
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
    Attributes, hooks, buffers, parameters and submodules that you have put on a layer go along, and
    `unpack` brings them back. Tables of hooks are copied: the handle of a hook that was registered
    before removes it from the layer before packing only. Parametrized weights are packed as they
    are at that time, without their parametrization.

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
            training mode or not on the CPU; you have put something on it that a packed layer cannot
            take; or there is nothing to pack. Nothing is changed then.
        RuntimeError: the extension is not available.
        TypeError: `model` is no module.

    Warns:
        UserWarning: for each LayerNormLSTM and subclass of your own: it stays as it is.
    """
    if weights not in (None, torch.float32, *formats.SMALLER):
        known = ", ".join(map(repr, (torch.float32, *formats.SMALLER)))
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
    quantized = [module for module in model.modules() if is_of_torch_ao(module)]
    if not layers and not quantized:
        raise ValueError(
            f"prepack: expected a model with a fastlstm.LSTM or LSTMCell{_hint(model)}"
        )
    return layers, quantized


def _hint(model: nn.Module) -> str:
    """What a model has in place of layers that can be packed."""
    modules = list(model.modules())
    if any(isinstance(module, Prepacked) for module in modules):
        return ", and not one that is packed already; fastlstm.unpack turns it back"
    if any(own_class(module) in (nn.LSTM, nn.LSTMCell) for module in modules):
        return "; convert=True takes nn.LSTM and nn.LSTMCell"
    kinds = (nn.LSTM, nn.LSTMCell, LSTM, LSTMCell)
    others = sorted(
        {own_class(module).__qualname__ for module in modules if isinstance(module, kinds)}
    )
    note = ", which cannot be packed: it normalizes layers, or is a subclass of your own"
    return f", got one with {', '.join(others)}{note}" if others else ""


def _of_torch_ao(quantized: Any, weights: torch.dtype | None) -> Prepacked:
    """A packed layer with the weights of one that quantize_dynamic made, in int8 by default."""
    kind = PrepackedLSTM if type(quantized).__name__ == "LSTM" else PrepackedLSTMCell
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
    sizes = {name: getattr(quantized, name) for name in kind._sizes if hasattr(quantized, name)}
    packed: Prepacked = kind(kind._layer_class(**sizes).eval(), weights)
    packed.load_state_dict(state)
    copy_additions(quantized, packed, {*packed.own_names(), *_OF_TORCH_AO})
    return packed


def _check_layer(path: str, module: nn.Module, weights: torch.dtype | None) -> None:
    tensor = next(iter(module.parameters()))
    smaller = () if tensor.dtype == torch.float64 else formats.SMALLER
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
    kind = PrepackedLSTM if isinstance(module, nn.RNNBase) else PrepackedLSTMCell
    check_additions(path, module, kind.own_names())
    if any(0 in p.shape for p in module.parameters()):
        raise ValueError(f"prepack: expected sizes of at least 1 in {path}, got {module}")
    for name, weight in named_weights(module).items():
        if weight is None:
            raise TypeError(f"prepack: expected {name} of {path} to be a tensor, got None")
        if name not in module._parameters and not parametrize.is_parametrized(module, name):
            raise ValueError(
                f"prepack: {name} of {path} is computed by a hook in every call; make it "
                "permanent first (prune.remove, remove_weight_norm)"
            )
        if problem := formats.problem(
            name, weight, None, tuple(weight.shape), weights or weight.dtype
        ):
            raise ValueError(f"prepack: {path}: {problem}")


@overload
def unpack(model: PrepackedLSTM) -> LSTM: ...
@overload
def unpack(model: PrepackedLSTMCell) -> LSTMCell: ...
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
    packed = [m for m in model.modules() if isinstance(m, (PrepackedLSTM, PrepackedLSTMCell))]
    if not packed:
        raise ValueError(
            "unpack: expected a model with layers that prepack has packed, got one without"
        )
    return _replace(model, {module: module._rebuild(module._layer_class) for module in packed})
