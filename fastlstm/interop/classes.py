"""Finds the class of a module and the class of torch.nn for it, and makes classes at run time."""

from __future__ import annotations

import abc
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def unparametrized_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before `parametrize` replaced the class by a subclass."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def new_class(name: str, bases: tuple[type, ...], members: dict[str, Any], meta: type) -> Any:
    """Returns the class `meta(name, bases, members)`, and runs no code of a user's metaclass."""
    base = abc.ABCMeta if issubclass(meta, abc.ABCMeta) else type
    return base.__new__(meta, name, bases, members)


def torch_class(module: nn.Module) -> tuple[type[nn.Module] | None, str]:
    """Returns the class that convert(to="torch") gives a module, or None, and a note for the user.

    That class is the attribute `_fastlstm_torch_class` of the module's own class. A subclass that
    inherits the attribute gets None, because it may compute what no class of torch.nn computes.
    """
    cls = unparametrized_class(module)
    regularizers: Any = getattr(module, "_fastlstm_regularizers", None)
    if regularizers is None:  # not an LSTM or LSTMCell of fastlstm
        return None, ""
    if "_fastlstm_torch_class" not in vars(cls):
        ours = "LSTM" if issubclass(cls, nn.RNNBase) else "LSTMCell"
        return None, f"stays as it is: its class {cls.__qualname__} derives from fastlstm.{ours}"
    lost = ", ".join(f"{name}={p}" for name, p in regularizers._asdict().items() if p)
    target: type[nn.Module] = vars(cls)["_fastlstm_torch_class"]
    return target, f"goes on without {lost}, which nn.LSTM lacks" if lost else ""
