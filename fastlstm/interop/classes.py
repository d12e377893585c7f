"""The class of a module: without parametrizations, without us, and classes made at run time."""

from __future__ import annotations

import abc
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without the class that parametrize puts before it."""
    cls = module.__class__  # type(module) may be the class that scripting.py gave it
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def new_class(name: str, bases: tuple[type, ...], members: dict[str, Any], meta: type) -> Any:
    """Returns what `meta(name, bases, members)` gives, without code of a user's metaclass."""
    known = abc.ABCMeta if issubclass(meta, abc.ABCMeta) else type
    return known.__new__(meta, name, bases, members)


def to_torch(module: nn.Module) -> tuple[type[nn.Module] | None, str]:
    """The class that a module of ours has without us, and what it loses or why there is none.

    That class is the attribute `_fastlstm_of` of the module's own class. Subclasses do not inherit
    it: what they compute, no class of torch.nn computes.
    """
    cls = own_class(module)
    drawn: Any = getattr(module, "_fastlstm_regularizers", None)
    if drawn is None:
        return None, ""
    if "_fastlstm_of" not in vars(cls):
        ours = "LSTM" if issubclass(cls, nn.RNNBase) else "LSTMCell"
        return None, f"stays as it is: its class {cls.__qualname__} derives from fastlstm.{ours}"
    lost = ", ".join(f"{name}={p}" for name, p in drawn._asdict().items() if p)
    of: type[nn.Module] = vars(cls)["_fastlstm_of"]
    return of, f"goes on without {lost}, which nn.LSTM lacks" if lost else ""
