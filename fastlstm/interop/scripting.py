"""Support for torch.jit.script, which compiles our LSTMs as modules of torch.nn."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .classes import new_class, torch_class

_SCRIPT_GLOBALS = torch.jit.script.__globals__  # of the file that defines torch.jit.script
_script_classes: dict[type[nn.Module], type[nn.Module]] = {}  # the classes that `prepare` made


class _InScript:
    """First base of the class that a module has while torch.jit.script compiles it.

    torch tells a module when compilation begins, but not when it ends or fails. So the module gets
    its own class back as soon as code outside torch.jit.script reads or sets an attribute. Until
    then `type(module)` is this class.
    """

    _fastlstm_class: type[nn.Module]  # the module's own class

    def __init_subclass__(cls) -> None:
        """Does not call the `__init_subclass__` of a user's class."""

    def __getattribute__(self, name: str) -> Any:
        if _is_compiling():
            return super().__getattribute__(name)
        cls = type(self)._fastlstm_class
        if name == "__class__":  # so isinstance() accepts both classes
            return cls
        object.__setattr__(self, "__class__", cls)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if _is_compiling():
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, "__class__", type(self)._fastlstm_class)
            setattr(self, name, value)


def _is_compiling() -> bool:
    """Whether torch.jit.script is among the callers."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals is not _SCRIPT_GLOBALS:
        frame = frame.f_back
    return frame is not None


def prepare(module: nn.Module) -> nn.Module:
    """Gives a module a class of torch.nn that torch.jit.script can compile, and returns it."""
    target, note = torch_class(module)
    if parametrize.is_parametrized(module):
        note = "is parametrized, which torch cannot compile"
    if target is None or note:
        problem = "torch.jit.script compiles the result of convert(to='torch')"
        remedy = "use torch.jit.trace, torch.compile or torch.export"
        raise RuntimeError(f"{type(module).__name__}: {problem}, where the module {note}; {remedy}")
    cls = type(module)
    if cls not in _script_classes:
        location = "__module__", "__qualname__", "__firstlineno__"  # where torch finds the source
        members = {name: vars(target)[name] for name in location if name in vars(target)}
        members |= {"_fastlstm_class": cls}
        bases = (_InScript, target)
        _script_classes[cls] = new_class(target.__name__, bases, members, type(target))
    object.__setattr__(module, "__class__", _script_classes[cls])
    return module
