"""`convert` swaps the LSTM modules of a model between torch.nn and fastlstm."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from .modules import _OPTIONS, LSTM, LSTMCell

_PAIRS: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.LSTM, LSTM),
    (nn.LSTMCell, LSTMCell),
)


def convert(model: nn.Module, to: Literal["fastlstm", "torch"] = "fastlstm") -> nn.Module:
    """Replaces every LSTM and LSTMCell of a model, in place.

    The new modules hold the same Parameter objects (an optimizer that has them stays valid), the
    training mode, hooks, parametrizations and other attributes of those that they replace. A module
    that is used in several places is replaced by one module. Convert before `torch.compile`.

    Args:
        model: any module; it may be an LSTM itself.
        to: "fastlstm" replaces nn.LSTM and nn.LSTMCell by those of fastlstm; "torch" goes back.
            Options that nn.LSTM lacks (zoneout, for instance) then have no effect.

    Returns:
        The model; if it is itself replaced, what replaces it.

    Raises:
        ValueError: `to` is neither "fastlstm" nor "torch".
        TypeError: the model holds an LSTM that cannot be replaced: an instance of your own
            subclass, a scripted or a compiled one. Nothing is changed then.

    Warns:
        UserWarning: once for each module that goes back to torch with options that nn.LSTM
            lacks: input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout,
            recompute.
    """
    if to not in ("fastlstm", "torch"):
        raise ValueError(f"to: expected 'fastlstm' or 'torch', got {to!r}")
    pairs = _PAIRS if to == "fastlstm" else tuple((b, a) for a, b in _PAIRS)
    replacements: dict[nn.Module, nn.Module] = {}
    for path, module in model.named_modules():
        for source, target in pairs:
            if _is_replaceable(path, module, source):
                if to == "torch":
                    _warn_of_lost_options(path, module)
                replacements[module] = _transplant(module, target)
    return replace_modules(model, replacements)


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules replaced in place, wherever they stand; or what replaces it."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replacements:
                module._modules[name] = replacements[child]
    return replacements.get(model, model)


def _warn_of_lost_options(path: str, module: nn.Module) -> None:
    values = ((name, getattr(module, name, None)) for name in _OPTIONS)
    lost = ", ".join(f"{name}={value}" for name, value in values if value)
    if lost:
        warnings.warn(
            f"convert: nn.LSTM has no {lost}: {path or 'the model itself'} goes on without",
            UserWarning,
            stacklevel=3,
        )


def _is_replaceable(path: str, module: nn.Module, source: type[nn.Module]) -> bool:
    """Whether the module is to be replaced; an error where that would lose what it is."""
    if type(module) is source:
        return True
    why = None
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) == source.__name__:
            why = "is scripted; convert before torch.jit.script"
    elif isinstance(module, torch._dynamo.OptimizedModule):
        if any(isinstance(m, source) for m in module.modules()):
            why = "is compiled; convert before torch.compile"
    elif isinstance(module, source):
        if type(module).__bases__ == (source,) and parametrize.is_parametrized(module):
            return True
        why = "is a subclass, whose own behaviour would be lost"
    if why is None:
        return False
    raise TypeError(
        f"cannot convert {path or 'the model itself'}: {type(module).__qualname__} {why}"
    )


def _transplant(module: nn.Module, target: type[nn.Module]) -> nn.Module:
    """A target module with the state of `module`.

    The dictionaries of the hooks are shared, so that handles to them can still remove them.
    """
    if parametrize.is_parametrized(module):  # its class, made by parametrize, holds the properties
        members: dict[str, Any] = {
            k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")
        }
        target = type(f"Parametrized{target.__name__}", (target,), members)
    new = target.__new__(target)
    new.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules") or isinstance(value, list):
            new.__dict__[name] = value.copy()
    new.__dict__.pop("engine", None)
    return new
