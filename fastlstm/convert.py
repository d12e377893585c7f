"""`convert` gives the LSTM modules of a model another class: from torch.nn to fastlstm and back."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from .interop.classes import new_class, torch_class, unparametrized_class
from .interop.torch_ao import is_quantized
from .modules.cell import CellModule, LSTMCell
from .modules.lstm import LSTM, SequenceModule
from .modules.options import check_model


class _StandIn(nn.Module):
    """First base of the classes that stand in for nn.LSTM, nn.LSTMCell or a subclass of theirs.

    The class that stands in for `class UserLSTM(nn.LSTM)` has the bases _StandIn, UserLSTM and
    _LSTMMethods. Python looks for a method in UserLSTM, then in fastlstm.LSTM, then in nn.LSTM. So
    `super().forward` in UserLSTM reaches fastlstm.
    """

    _fastlstm_torch_class: ClassVar[type[nn.Module]]

    def __init_subclass__(cls) -> None:
        """Bypasses the `__init_subclass__` of UserLSTM, which may refuse or register subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Makes pickle and copy store UserLSTM: they cannot find a class made at run time."""
        reduced: Any = super().__reduce_ex__(protocol)
        if "_fastlstm_torch_class" not in vars(type(self)):  # a user's subclass of a stand-in
            return reduced
        constructor, args, *rest = reduced
        parts = [self._fastlstm_torch_class if a is type(self) else a for a in (constructor, *args)]
        return _make, tuple(parts), *rest


def _make(constructor: Any, *arguments: Any) -> nn.Module:
    """Makes an instance of UserLSTM for pickle and copy, and converts it."""
    module: nn.Module = constructor(*arguments)
    target, _ = _fastlstm_class(module, keep_class=True)
    if target is not None:
        _change_class(module, target)
    return module


def _skipped_by_compile(function: Any) -> Any:
    """A copy of a function. torch.compile traces neither the copy nor what the copy calls.

    Otherwise torch.compile would recompile the same code for each module, up to its limit.
    """
    new = types.FunctionType(function.__code__.replace(), function.__globals__)
    new.__defaults__, new.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    dynamo = torch._C._dynamo.eval_frame
    skips = dynamo._FrameExecStrategy(*[dynamo._FrameAction.SKIP] * 2)  # itself, and what it calls
    dynamo.set_code_exec_strategy(new.__code__, skips)
    return functools.update_wrapper(new, function)


class _LSTMMethods(LSTM, nn.LSTM):
    __init__ = nn.LSTM.__init__
    forward = _skipped_by_compile(LSTM.forward)


class _LSTMCellMethods(LSTMCell, nn.LSTMCell):
    __init__ = nn.LSTMCell.__init__


class _LSTMStandIn(_StandIn, _LSTMMethods):
    _fastlstm_torch_class = nn.LSTM


class _LSTMCellStandIn(_StandIn, _LSTMCellMethods):
    _fastlstm_torch_class = nn.LSTMCell


# The class of torch.nn, the class of fastlstm, and the class that is both.
CLASSES = (nn.LSTM, LSTM, _LSTMStandIn), (nn.LSTMCell, LSTMCell, _LSTMCellStandIn)
_LSTMS = tuple(chain(*CLASSES))
for _, _ours, _both in CLASSES:
    _both.__name__ = _ours.__name__  # shown by repr; pickle reads __qualname__ instead

# nn.LSTM.forward always uses these members. fastlstm does not, so it could miss an override.
_USED_BY_FORWARD = (
    "_flat_weights _init_flat_weights _update_flat_weights _weights_have_changed "
    "check_forward_args check_hidden_size check_input get_expected_cell_size "
    "get_expected_hidden_size permute_hidden"
).split()


Model = TypeVar("Model", bound=nn.Module)


@overload
def convert(
    model: nn.LSTM, to: Literal["fastlstm"] = "fastlstm", *, keep_class: bool = ...
) -> LSTM: ...
@overload
def convert(
    model: nn.LSTMCell, to: Literal["fastlstm"] = "fastlstm", *, keep_class: bool = ...
) -> LSTMCell: ...
@overload
def convert(model: LSTM, to: Literal["torch"]) -> nn.LSTM: ...
@overload
def convert(model: LSTMCell, to: Literal["torch"]) -> nn.LSTMCell: ...
@overload
def convert(
    model: Model, to: Literal["fastlstm", "torch"] = "fastlstm", *, keep_class: bool = ...
) -> Model: ...
def convert(
    model: nn.Module, to: Literal["fastlstm", "torch"] = "fastlstm", *, keep_class: bool = True
) -> nn.Module:
    """Turns every LSTM and LSTMCell of a model into fastlstm's, in place, and returns the model.

    The modules stay the objects that they are, with their Parameters, hooks, parametrizations and
    attributes, so optimizers and other objects that hold them stay valid.

    A converted nn.LSTM is both an nn.LSTM and a `fastlstm.LSTM`: code that asks
    `isinstance(module, nn.LSTM)` works as before. `torch.compile` breaks the graph at every
    nn.LSTM; `keep_class=False` gives one graph.

    A module of a subclass of nn.LSTM or nn.LSTMCell keeps the methods of the subclass, whose
    `super().forward` then runs fastlstm. If the subclass or the module itself overrides what
    nn.LSTM.forward uses, such as `permute_hidden` or `_flat_weights`, the module stays as it is.

    Args:
        model: any module; it may be an LSTM itself.
        to: "fastlstm" turns nn.LSTM and nn.LSTMCell into those of fastlstm; "torch" goes back.
            Options that nn.LSTM lacks (zoneout, for instance) then have no effect.
        keep_class: whether a converted nn.LSTM or nn.LSTMCell is still one. If not, it is only a
            `fastlstm.LSTM` or `LSTMCell`, even if an earlier convert kept the class. Subclasses
            always keep their class.

    Raises:
        ValueError: `to` is neither "fastlstm" nor "torch", or the model has no LSTM or LSTMCell.
        TypeError: `model` is no module (a class, for instance), or an LSTM of it is scripted
            or sharded. Nothing is changed then.

    Warns:
        UserWarning: for each module that stays as it is (a subclass as above or, on the way to
            torch, a subclass of fastlstm.LSTM or LSTMCell), and for each that loses options.
    """
    if to not in ("fastlstm", "torch"):
        raise ValueError(f"to: expected 'fastlstm' or 'torch', got {to!r}")
    check_model(model)
    modules = {path or "the model itself": module for path, module in model.named_modules()}
    for path, module in modules.items():
        _refuse_unconvertible(path, module)
    notes = []
    for path, module in modules.items():
        target, note = torch_class(module) if to == "torch" else _fastlstm_class(module, keep_class)
        if target is not None:
            _change_class(module, target)
        if note:
            notes.append(f"convert: {path} {note}")
    if not any(isinstance(module, _LSTMS) for module in modules.values()):
        expected = "a model with an LSTM or LSTMCell (GRUs are not supported)"
        problem = f"convert: expected {expected}, got one {_describe_model(modules.values())}"
        raise ValueError("; ".join([problem, *notes]))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return model


def _describe_model(modules: Iterable[nn.Module]) -> str:
    """Describes what a model without an LSTM has instead."""
    for module in modules:
        if isinstance(module, (SequenceModule, CellModule)):
            return "whose LSTMs are prepacked; fastlstm.unpack(model) turns them back"
        if is_quantized(module):
            return "whose LSTMs torch.ao has quantized; fastlstm.prepack(model) takes those"
    return "without"


def _refuse_unconvertible(path: str, module: nn.Module) -> None:
    """Raises for an LSTM whose class cannot change."""
    why = None
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) in ("LSTM", "LSTMCell"):
            why = "is scripted; convert before torch.jit.script"
    elif isinstance(module, _LSTMS) and "torch.distributed." in str(type(module).__mro__):
        why = "is sharded; convert before fully_shard"
    if why is not None:
        raise TypeError(f"cannot convert {path}: {type(module).__qualname__} {why}")


def _fastlstm_class(module: nn.Module, keep_class: bool) -> tuple[type[nn.Module] | None, str]:
    """The new class of a module, or None if the class stays, and a warning for the user or ''."""
    cls = unparametrized_class(module)
    for nn_class, ours, both in CLASSES:
        if issubclass(cls, nn_class) and not issubclass(cls, ours):
            if why := _why_it_stays(module, cls, nn_class):
                return None, f"stays as it is: {why}, which {nn_class.__name__}.forward uses"
        elif cls is not both:
            continue
        if cls in (nn_class, both):
            target = both if keep_class else ours
            return None if cls is target else target, ""
        return _stand_in(cls, nn_class), ""
    return None, ""


def _why_it_stays(module: nn.Module, cls: type[nn.Module], nn_class: type[nn.Module]) -> str:
    """What the class or the module overrides that nn_class.forward uses; '' if nothing."""
    base = {name: getattr(nn_class, name, None) for name in _USED_BY_FORWARD}
    overridden = [name for name, member in base.items() if getattr(cls, name, None) is not member]
    if overridden:
        return f"its class {cls.__qualname__} overrides {', '.join(overridden)}"
    own = [name for name in base if name in vars(module) and name != "_flat_weights"]
    if type(vars(module).get("_flat_weights", [])) not in (list, tuple, type(None)):
        own.append("_flat_weights")
    return f"it has its own {', '.join(own)}" if own else ""


_stand_ins: dict[type[nn.Module], type[nn.Module]] = {cls: both for cls, _, both in CLASSES}


def _stand_in(cls: type[nn.Module], nn_class: type[nn.Module]) -> type[nn.Module]:
    """The class that stands in for `cls`, a subclass of `nn_class`. It is made once."""
    if cls not in _stand_ins:
        methods = _LSTMMethods if nn_class is nn.LSTM else _LSTMCellMethods
        members = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        members |= {"_fastlstm_torch_class": cls, "_fastlstm_options": ()}
        _stand_ins[cls] = new_class(cls.__name__, (_StandIn, cls, methods), members, type(cls))
    return _stand_ins[cls]


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    """Changes a module's class. Attributes that hold its old forward method get the new one."""
    old = type(module)
    if parametrize.is_parametrized(module):  # keeps the properties that parametrize added
        members = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        target = new_class(f"Parametrized{target.__name__}", (target,), members, type(target))
    object.__setattr__(module, "__class__", target)
    for name, value in vars(module).items():
        if isinstance(value, types.MethodType) and value == types.MethodType(old.forward, module):
            vars(module)[name] = types.MethodType(target.forward, module)
