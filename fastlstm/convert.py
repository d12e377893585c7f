"""`convert` gives the LSTM modules of a model another class: from torch.nn to fastlstm and back."""

from __future__ import annotations

import abc
import functools
import types
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from .modules import LSTM, CellModule, LSTMCell, SequenceModule


class _StandIn(nn.Module):
    """First base of the classes that stand in for nn.LSTM, nn.LSTMCell or a subclass of theirs.

    What stands in for `class Own(nn.LSTM)` has the bases _StandIn, Own and _LSTMMethods. Python
    puts the methods of fastlstm.LSTM between those of Own and those of nn.LSTM, so
    `super().forward` in Own reaches fastlstm.
    """

    _fastlstm_of: ClassVar[type[nn.Module]]  # nn.LSTM, nn.LSTMCell or Own

    def __init_subclass__(cls) -> None:
        """Not that of Own, which may keep a list of its subclasses, or refuse them."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle and copy, which cannot find a class that convert made at run time."""
        reduced: Any = super().__reduce_ex__(protocol)
        if not _is_stand_in(type(self)):
            return reduced
        make, arguments, *rest = reduced
        named = [self._fastlstm_of if a is type(self) else a for a in (make, *arguments)]
        return _make, tuple(named), *rest


def _is_stand_in(cls: type[nn.Module]) -> bool:
    """Whether convert made a class; others may inherit from it."""
    return "_fastlstm_of" in vars(cls)


def _make(make: Any, *arguments: Any) -> nn.Module:
    """What pickle and copy make of an instance of Own, converted."""
    module: nn.Module = make(*arguments)
    target, _ = _to_fastlstm(module, keep_class=True)
    if target is not None:
        _change_class(module, target)
    return module


def _not_compiled_in_parts(function: Any) -> Any:
    """A copy; where torch.compile breaks the graph at a call of it, it compiles no part of it.

    Else it compiled each of its parts, which all modules share, until its limit of recompilations.
    """
    new = types.FunctionType(function.__code__.replace(), function.__globals__)
    new.__defaults__, new.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    dynamo = torch._C._dynamo.eval_frame
    skips = dynamo._FrameExecStrategy(*[dynamo._FrameAction.SKIP] * 2)  # itself, and what it calls
    dynamo.set_code_exec_strategy(new.__code__, skips)
    return functools.update_wrapper(new, function)


class _LSTMMethods(LSTM, nn.LSTM):
    __init__ = nn.LSTM.__init__
    forward = _not_compiled_in_parts(LSTM.forward)


class _LSTMCellMethods(LSTMCell, nn.LSTMCell):
    __init__ = nn.LSTMCell.__init__


class _LSTMStandIn(_StandIn, _LSTMMethods):
    _fastlstm_of = nn.LSTM


class _LSTMCellStandIn(_StandIn, _LSTMCellMethods):
    _fastlstm_of = nn.LSTMCell


# (of torch, of fastlstm, both at once)
_CLASSES: tuple[tuple[type[nn.Module], type[nn.Module], type[nn.Module]], ...] = (
    (nn.LSTM, LSTM, _LSTMStandIn),
    (nn.LSTMCell, LSTMCell, _LSTMCellStandIn),
)
for _, _ours, _both in _CLASSES:
    _both.__name__ = _ours.__name__  # for repr; pickle goes by __qualname__

# What nn.LSTM.forward calls in every call, and fastlstm only where it needs it.
_PARTS_OF_FORWARD = (
    "_init_flat_weights _update_flat_weights _weights_have_changed check_forward_args "
    "check_hidden_size check_input get_expected_cell_size get_expected_hidden_size permute_hidden"
).split()


Model = TypeVar("Model", bound=nn.Module)


@overload
def convert(
    model: nn.LSTM, to: Literal["fastlstm"] = "fastlstm", *, keep_class: bool = True
) -> LSTM: ...
@overload
def convert(
    model: nn.LSTMCell, to: Literal["fastlstm"] = "fastlstm", *, keep_class: bool = True
) -> LSTMCell: ...
@overload
def convert(model: LSTM, to: Literal["torch"]) -> nn.LSTM: ...
@overload
def convert(model: LSTMCell, to: Literal["torch"]) -> nn.LSTMCell: ...
@overload
def convert(
    model: Model, to: Literal["fastlstm", "torch"] = "fastlstm", *, keep_class: bool = True
) -> Model: ...
def convert(
    model: nn.Module, to: Literal["fastlstm", "torch"] = "fastlstm", *, keep_class: bool = True
) -> nn.Module:
    """Gives every LSTM and LSTMCell of a model its class of fastlstm, and returns the model.

    The modules stay the objects that they are, with their Parameters, hooks, parametrizations and
    attributes, so optimizers and whoever else holds them need not know.

    What was an nn.LSTM is both an nn.LSTM and a `fastlstm.LSTM`: code that asks
    `isinstance(module, nn.LSTM)` goes on as before. `torch.compile` breaks the graph at every
    nn.LSTM; for one graph say `keep_class=False`.

    A module of a subclass of nn.LSTM or nn.LSTMCell keeps its methods too; its `super().forward`
    then runs fastlstm. If it overrides a method that nn.LSTM.forward calls, such as
    `permute_hidden`, it is left alone.

    Args:
        model: any module; it may be an LSTM itself.
        to: "fastlstm" turns nn.LSTM and nn.LSTMCell into those of fastlstm; "torch" goes back.
            Options that nn.LSTM lacks (zoneout, for instance) then have no effect.
        keep_class: whether what was an nn.LSTM or nn.LSTMCell still is one; if not, it is a
            `fastlstm.LSTM` or `LSTMCell`, also where convert has kept the class before.
            Subclasses always keep theirs.

    Returns:
        The model.

    Raises:
        ValueError: `to` is neither "fastlstm" nor "torch", or the model has no LSTM or LSTMCell, of
            either.
        TypeError: `model` is no module (a class, for instance), or an LSTM of it is scripted
            or sharded. Nothing is changed then.

    Warns:
        UserWarning: for each module that is left alone, with the reason: a subclass as above, or,
            on the way to torch, one of fastlstm.LSTM or LSTMCell (LayerNormLSTM, for instance).
            And for each module that goes
            back to torch with options that nn.LSTM lacks: input_dropout, recurrent_dropout,
            zoneout_h, zoneout_c, weight_dropout.
    """
    if to not in ("fastlstm", "torch"):
        raise ValueError(f"to: expected 'fastlstm' or 'torch', got {to!r}")
    check_model(model)
    modules = {path or "the model itself": module for path, module in model.named_modules()}
    for path, module in modules.items():
        _refuse_wrapped(path, module)
    notes = []
    for path, module in modules.items():
        target, note = _to_torch(module) if to == "torch" else _to_fastlstm(module, keep_class)
        if target is not None:
            _change_class(module, target)
        if note:
            notes.append(f"convert: {path} {note}")
    if not any(map(_is_lstm, modules.values())):
        problem = (
            "convert: expected a model with an LSTM or LSTMCell (GRUs are not supported), got one "
            f"{_instead(modules.values())}"
        )
        raise ValueError("; ".join([problem, *notes]))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return model


def is_of_torch_ao(module: nn.Module) -> bool:
    """Whether it is what torch.ao.quantization.quantize_dynamic makes of an LSTM or LSTMCell."""
    cls = type(module)
    is_dynamic = cls.__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
    return is_dynamic and cls.__name__ in ("LSTM", "LSTMCell")


def _instead(modules: Iterable[nn.Module]) -> str:
    """What a model without an LSTM has instead."""
    for module in modules:
        if isinstance(module, (SequenceModule, CellModule)):
            return "whose LSTMs are prepacked; fastlstm.unpack(model) turns them back"
        if is_of_torch_ao(module):
            return "whose LSTMs torch.ao has quantized; fastlstm.prepack(model) takes those"
    return "without"


def check_model(model: Any) -> None:
    """Raises a TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: expected a module, got {got}")


def _refuse_wrapped(path: str, module: nn.Module) -> None:
    """Raises for an LSTM whose class cannot change."""
    why = None
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) in ("LSTM", "LSTMCell"):
            why = "is scripted; convert before torch.jit.script"
    elif _is_lstm(module) and any("torch.distributed." in str(c) for c in type(module).__mro__):
        why = "is sharded; convert before fully_shard"
    if why is not None:
        raise TypeError(f"cannot convert {path}: {type(module).__qualname__} {why}")


def _is_lstm(module: nn.Module) -> bool:
    return isinstance(module, tuple(cls for of_kind in _CLASSES for cls in of_kind))


_Target = tuple["type[nn.Module] | None", str]  # the new class, and what to warn of


def _to_fastlstm(module: nn.Module, keep_class: bool) -> _Target:
    cls = own_class(module)
    for of_torch, ours, both in _CLASSES:
        if cls in (of_torch, both):
            target = both if keep_class else ours
            return None if cls is target else target, ""
        if issubclass(cls, of_torch) and not issubclass(cls, ours):
            parts = ((name, getattr(of_torch, name, None)) for name in _PARTS_OF_FORWARD)
            changed = [name for name, part in parts if getattr(cls, name, None) is not part]
            if changed:
                which = f"overrides {', '.join(changed)}, which {of_torch.__name__}.forward calls"
                return None, f"stays as it is: its class {cls.__qualname__} {which}"
            return _stand_in(cls, of_torch), ""
    return None, ""


def _to_torch(module: nn.Module) -> _Target:
    cls = own_class(module)
    for of_torch, ours, _ in _CLASSES:
        if issubclass(cls, ours):
            drawn: Any = module._fastlstm_regularizers
            lost = ", ".join(f"{name}={p}" for name, p in drawn._asdict().items() if p)
            note = f"goes on without {lost}, which nn.LSTM lacks" if lost else ""
            if _is_stand_in(cls):
                return cls._fastlstm_of, note  # type: ignore[attr-defined]
            if cls is ours:
                return of_torch, note
            why = f"{cls.__qualname__} derives from fastlstm.{ours.__name__}"
            return None, f"stays as it is: its class {why}"
    return None, ""


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what parametrize puts before it."""
    cls = module.__class__  # not type(), which may be that of scripting.py
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


_stand_ins = {of_torch: both for of_torch, _, both in _CLASSES}


def _stand_in(cls: type[nn.Module], of_torch: type[nn.Module]) -> type[nn.Module]:
    """A class like `cls`, a subclass of torch's, that runs fastlstm; one for each."""
    if cls not in _stand_ins:
        methods = _LSTMMethods if of_torch is nn.LSTM else _LSTMCellMethods
        members = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        members |= {"_fastlstm_of": cls, "_fastlstm_options": ()}
        _stand_ins[cls] = _new_class(cls.__name__, (_StandIn, cls, methods), members, type(cls))
    return _stand_ins[cls]


def _new_class(name: str, bases: tuple[type, ...], members: dict[str, Any], meta: type) -> Any:
    """What `meta(name, bases, members)` gives, without the code of a metaclass of the user's."""
    known = abc.ABCMeta if issubclass(meta, abc.ABCMeta) else type
    return known.__new__(meta, name, bases, members)


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    """Makes a module one of `target`; what it holds of its own forward becomes that of `target`."""
    old = type(module)
    if parametrize.is_parametrized(module):  # its class, made by parametrize, has the properties
        members = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        target = _new_class(f"Parametrized{target.__name__}", (target,), members, type(target))
    object.__setattr__(module, "__class__", target)
    for name, value in vars(module).items():
        if isinstance(value, types.MethodType) and value == types.MethodType(old.forward, module):
            vars(module)[name] = types.MethodType(target.forward, module)
