"""torch.jit.script of a model whose LSTMs are ours: it compiles them as modules of torch.nn."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .convert import _new_class, _to_torch

_SCRIPT = torch.jit.script.__globals__  # of the file that has it


class _InScript:
    """First base of the class that a module has while torch.jit.script compiles it.

    torch tells a module when that begins, and not when it ends or fails. So the module gets its own
    class back as soon as anybody else reads or sets an attribute; until then `type` sees this one.
    """

    _fastlstm_class: type[nn.Module]

    def __init_subclass__(cls) -> None:
        """Not that of a class of the user's."""

    def __getattribute__(self, name: str) -> Any:
        if _compiles():
            return super().__getattribute__(name)
        cls = type(self)._fastlstm_class
        if name == "__class__":  # isinstance() asks, and compares with the type that it saw
            return cls
        object.__setattr__(self, "__class__", cls)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if _compiles():
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, "__class__", type(self)._fastlstm_class)
            setattr(self, name, value)


def _compiles() -> bool:
    """Whether torch.jit.script has called what runs."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals is not _SCRIPT:
        frame = frame.f_back
    return frame is not None


def prepare(module: nn.Module) -> nn.Module:
    """What `__prepare_scriptable__` returns for a module: itself, in a class that compiles.

    Raises a RuntimeError if convert(to="torch") would not give the same.
    """
    of_torch, note = _to_torch(module)
    if parametrize.is_parametrized(module):
        note = "is parametrized, which torch cannot compile"
    if of_torch is None or note:
        raise RuntimeError(
            f"{type(module).__name__}: torch.jit.script is not supported, for the module that "
            f'convert(to="torch") gives {note}; use torch.jit.trace, torch.compile or torch.export'
        )
    cls = type(module)
    if cls not in _in_script:
        named = "__module__", "__qualname__", "__firstlineno__"  # where torch finds the source
        members = {name: vars(of_torch)[name] for name in named if name in vars(of_torch)}
        members |= {"_fastlstm_class": cls}
        bases = (_InScript, of_torch)
        _in_script[cls] = _new_class(of_torch.__name__, bases, members, type(of_torch))
    object.__setattr__(module, "__class__", _in_script[cls])
    return module


_in_script: dict[type[nn.Module], type[nn.Module]] = {}
