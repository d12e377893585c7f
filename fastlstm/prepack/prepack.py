"""`prepack` freezes the LSTMs of a model for inference on a CPU; `unpack` turns them back."""

from __future__ import annotations

import warnings
from typing import Any, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..convert import CLASSES, Model
from ..convert import convert as convert_modules
from ..engine.call import DTYPES
from ..interop import torch_ao
from ..interop.classes import unparametrized_class
from ..modules.attributes import named_weights
from ..modules.cell import LSTMCell
from ..modules.lstm import LSTM
from ..modules.options import check_model
from . import formats
from .additions import check_additions, copy_additions
from .layers import Prepacked, PrepackedLSTM, PrepackedLSTMCell, require_extension

_OUR_CLASSES = tuple(cls for _, *ours in CLASSES for cls in ours)  # these need no convert=True


@overload
def prepack(
    model: LSTM | nn.LSTM, weights: torch.dtype | None = ..., *, convert: bool = ...
) -> PrepackedLSTM: ...
@overload
def prepack(
    model: LSTMCell | nn.LSTMCell, weights: torch.dtype | None = ..., *, convert: bool = ...
) -> PrepackedLSTMCell: ...
@overload
def prepack(model: Model, weights: torch.dtype | None = ..., *, convert: bool = ...) -> Model: ...
def prepack(
    model: nn.Module, weights: torch.dtype | None = None, *, convert: bool = False
) -> nn.Module:
    """Freezes the LSTMs of a model for inference on the CPU, in place, and returns the model.

    Every LSTM and LSTMCell becomes a prepacked layer without parameters: its weights are stored as
    the processor reads them, in fewer bits if requested. It is called as before. If the model is
    itself an LSTM, only the result is prepacked: `frozen = prepack(lstm)`.
    `state_dict` still has the weights by their names and `load_state_dict` takes those of the model
    before prepack. Training mode, another dtype or device, and gradients are refused with an error.
    Attributes, hooks, buffers, parameters and submodules that you have put on a layer are kept, and
    `unpack` brings them back. Parametrized weights are prepacked with their present values, without
    their parametrization.

    A layer that torch.ao.quantization.quantize_dynamic made of an LSTM or LSTMCell is prepacked
    too: its int8 weights with their scales (-128 becomes -127), or its float16 weights in float32.

    Args:
        model: any module in eval mode, on the CPU; it may be an LSTM itself.
        weights: None keeps the dtype of each layer, and its results (bit for bit in float32 and
            float64). torch.bfloat16 halves the weights of float32, torch.int8 takes a quarter of
            the memory, with a scale for each row of a matrix. Input and h are rounded or quantized
            too, row by row. Sums, states and gate equations stay in float32.
        convert: whether to convert nn.LSTM and nn.LSTMCell first.

    Raises:
        ValueError: `weights` is no such format or does not suit a layer's dtype; a layer is in
            training mode or not on the CPU; you have put something on it that a prepacked layer
            cannot take; or there is nothing to prepack. Nothing is changed then.
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
    classes = (*_OUR_CLASSES, nn.LSTM, nn.LSTMCell) if convert else _OUR_CLASSES
    layers = {path: m for path, m in model.named_modules() if unparametrized_class(m) in classes}
    quantized = [module for module in model.modules() if torch_ao.is_quantized(module)]
    if not layers and not quantized:
        expected = f"a model with a fastlstm.LSTM or LSTMCell{_hint(model)}"
        raise ValueError(f"prepack: expected {expected}")
    for path, module in layers.items():
        _check_layer(path or "the model itself", module, weights)
    if convert and layers:
        convert_modules(model)
    for path, module in model.named_modules():
        if isinstance(module, (LSTM, LSTMCell)) and path not in layers:
            why = f"its class {type(module).__qualname__} is more than an LSTM or LSTMCell"
            text = f"prepack: {path or 'the model itself'} stays as it is: {why}"
            warnings.warn(text, UserWarning, stacklevel=2)
    prepacked = {layer: _prepacked_class(layer)(layer, weights) for layer in layers.values()}
    prepacked |= {module: _prepack_quantized(module, weights) for module in quantized}
    return _replace(model, prepacked)


def _prepacked_class(layer: nn.Module) -> Any:
    return PrepackedLSTM if isinstance(layer, nn.RNNBase) else PrepackedLSTMCell


def _replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules in a model and in the new modules; returns the model or what replaces it."""
    for module in [*model.modules(), *replacements.values()]:
        for name, child in module._modules.items():
            if child in replacements:
                module._modules[name] = replacements[child]
    return replacements.get(model, model)


def _hint(model: nn.Module) -> str:
    """Describes what a model has in place of layers that can be prepacked."""
    modules = list(model.modules())
    if any(isinstance(module, Prepacked) for module in modules):
        return ", and not one that is prepacked already; fastlstm.unpack turns it back"
    if any(unparametrized_class(module) in (nn.LSTM, nn.LSTMCell) for module in modules):
        return "; convert=True takes nn.LSTM and nn.LSTMCell"
    classes = (nn.LSTM, nn.LSTMCell, LSTM, LSTMCell)
    refused = {unparametrized_class(m).__qualname__ for m in modules if isinstance(m, classes)}
    note = ", which cannot be prepacked: it has layer normalization, or is a subclass of your own"
    return f", got one with {', '.join(sorted(refused))}{note}" if refused else ""


def _prepack_quantized(quantized: Any, weights: torch.dtype | None) -> Prepacked:
    """A prepacked layer with the weights of quantize_dynamic. By default int8 stays int8."""
    cls = PrepackedLSTM if type(quantized).__name__ == "LSTM" else PrepackedLSTMCell
    state_dict, has_int8 = torch_ao.weights_of(quantized)
    weights = weights or (torch.int8 if has_int8 else None)
    attributes = {n: getattr(quantized, n) for n in cls._attribute_names if hasattr(quantized, n)}
    layer: Prepacked = cls(cls._layer_class(**attributes).eval(), weights)
    layer.load_state_dict(state_dict)
    copy_additions(quantized, layer, {*layer.own_names(), *torch_ao.ATTRIBUTES})
    return layer


def _check_layer(path: str, module: nn.Module, weights: torch.dtype | None) -> None:
    first = next(iter(module.parameters()))
    smaller = () if first.dtype == torch.float64 else formats.SMALLER
    allowed = tuple(dict.fromkeys((None, first.dtype, *smaller)))
    if weights not in allowed or first.dtype not in DTYPES:
        expected = f"weights to be one of {', '.join(map(str, allowed))}"
        raise ValueError(f"prepack: {path} is {first.dtype}: expected {expected}, got {weights}")
    if first.device.type != "cpu":
        raise ValueError(f"prepack: expected {path} on the CPU, got {first.device}")
    if module.training:
        raise ValueError(f"prepack: expected {path} in eval mode: call model.eval() first")
    check_additions(path, module, _prepacked_class(module).own_names())
    if any(0 in p.shape for p in module.parameters()):
        raise ValueError(f"prepack: expected sizes of at least 1 in {path}, got {module}")
    for name, weight in named_weights(module).items():
        if weight is None:
            raise TypeError(f"prepack: expected {name} of {path} to be a tensor, got None")
        if name not in module._parameters and not parametrize.is_parametrized(module, name):
            cause = f"prepack: {name} of {path} is computed by a hook in every call"
            raise ValueError(f"{cause}; make it permanent first (prune.remove, remove_weight_norm)")
        format = weights or weight.dtype
        if problem := formats.problem(name, weight, None, tuple(weight.shape), format):
            raise ValueError(f"prepack: {path}: {problem}")


@overload
def unpack(model: PrepackedLSTM) -> LSTM: ...
@overload
def unpack(model: PrepackedLSTMCell) -> LSTMCell: ...
@overload
def unpack(model: Model) -> Model: ...
def unpack(model: nn.Module) -> nn.Module:
    """Turns prepacked layers of a model back into the layers before `prepack`, in place.

    Weights that were prepacked in their own dtype come back with the same bits. Weights in fewer
    bits come back rounded.

    Returns:
        The model, its layers in eval mode; or the layer, if the model is itself a prepacked layer.

    Raises:
        ValueError: the model has no prepacked layer.
    """
    check_model(model)
    layers = [module for module in model.modules() if isinstance(module, Prepacked)]
    if not layers:
        raise ValueError("unpack: expected prepacked layers, got a model without prepacked layers")
    return _replace(model, {layer: layer._rebuild(layer._layer_class) for layer in layers})
