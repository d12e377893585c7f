"""`convert` swaps the LSTM modules of a model between torch.nn and fastlstm."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from .modules import LSTM, LSTMCell, Options


class _Adapter(nn.Module):
    """Base of the classes that stand in for nn.LSTM, nn.LSTMCell or a subclass of theirs.

    `class Own(nn.LSTM)` becomes a class with the bases Own and `_LSTMAdapter`. Python puts the
    methods of fastlstm.LSTM between those of Own and those of nn.LSTM, so `super().forward` in Own
    reaches fastlstm.
    """

    torch_class: ClassVar[type[nn.Module]]  # nn.LSTM, nn.LSTMCell or Own

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle and copy, which cannot find a class that was made at run time."""
        return _empty_stand_in, (self.torch_class,), *super().__reduce_ex__(protocol)[2:]


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


class _LSTMAdapter(_Adapter, LSTM, nn.LSTM):
    __init__ = nn.LSTM.__init__
    forward = _not_compiled_in_parts(LSTM.forward)
    torch_class = nn.LSTM


class _LSTMCellAdapter(_Adapter, LSTMCell, nn.LSTMCell):
    __init__ = nn.LSTMCell.__init__
    torch_class = nn.LSTMCell


# (of torch, of fastlstm, both at once)
_CLASSES: tuple[tuple[type[nn.Module], type[nn.Module], type[_Adapter]], ...] = (
    (nn.LSTM, LSTM, _LSTMAdapter),
    (nn.LSTMCell, LSTMCell, _LSTMCellAdapter),
)
for _, _ours, _adapter in _CLASSES:
    _adapter.__name__ = _ours.__name__  # for repr; pickle goes by __qualname__

# What nn.LSTM.forward calls in every call, and fastlstm only where it needs it.
_PARTS_OF_FORWARD = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


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
    """Replaces every LSTM and LSTMCell of a model, in place, and returns the model.

    Of a model that is itself an LSTM only the result is new: `lstm = convert(lstm)`.

    The new modules hold the same Parameter objects (an optimizer that has them stays valid), the
    training mode, hooks, parametrizations and other attributes of those that they replace. A module
    that is used in several places is replaced by one module. Convert before `torch.compile`.

    What replaces an nn.LSTM is both an nn.LSTM and a `fastlstm.LSTM`: code that asks
    `isinstance(module, nn.LSTM)` goes on as before. `torch.compile` breaks the graph at every
    nn.LSTM; for one graph say `keep_class=False`.

    A subclass of nn.LSTM or nn.LSTMCell keeps its name and methods too; its `super().forward` then
    runs fastlstm. If it overrides a method that nn.LSTM.forward calls, such as `permute_hidden`, or
    never calls nn.LSTM.forward, it is left alone.

    Args:
        model: any module; it may be an LSTM itself.
        to: "fastlstm" replaces nn.LSTM and nn.LSTMCell by those of fastlstm; "torch" goes back.
            Options that nn.LSTM lacks (zoneout, for instance) then have no effect.
        keep_class: whether what replaces nn.LSTM and nn.LSTMCell still derives from them; if not,
            it is a `fastlstm.LSTM` or `LSTMCell`, also where convert has kept the class before.
            Subclasses always keep theirs.

    Returns:
        The model; if it is itself replaced, what replaces it.

    Raises:
        ValueError: `to` is neither "fastlstm" nor "torch", or the model has no LSTM or LSTMCell, of
            either.
        TypeError: `model` is no module (a class, for instance), or an LSTM of it is scripted,
            compiled or sharded. Nothing is changed then.

    Warns:
        UserWarning: for each module that is left alone, with the reason: a subclass as above; what
            torch.ao has quantized (`prepack` takes it); or, on the way to torch, a subclass of
            fastlstm.LSTM or LSTMCell (LayerNormLSTM, for instance). And for each module that goes
            back to torch with options that nn.LSTM lacks: input_dropout, recurrent_dropout,
            zoneout_h, zoneout_c, weight_dropout.
    """
    if to not in ("fastlstm", "torch"):
        raise ValueError(f"to: expected 'fastlstm' or 'torch', got {to!r}")
    check_model(model)
    replacements, notes = {}, []
    for path, module in model.named_modules():
        _refuse_wrapped(path or "the model itself", module)
        target, note = _to_torch(module) if to == "torch" else _to_fastlstm(module, keep_class)
        if target is not None:
            replacements[module] = _transplant(module, target)
        if note:
            notes.append(f"convert: {path or 'the model itself'} {note}")
    if not any(map(_is_lstm, model.modules())):
        problem = "convert: expected a model with an LSTM or LSTMCell, got one without"
        raise ValueError("; ".join([problem, *notes]))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return replace_modules(model, replacements)


def check_model(model: Any) -> None:
    """Raises a TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: expected a module, got {got}")


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules replaced in place, wherever they stand; or what replaces it."""
    for module in [*model.modules(), *replacements.values()]:
        for name, child in module._modules.items():
            if child in replacements:
                module._modules[name] = replacements[child]
    return replacements.get(model, model)


def _refuse_wrapped(path: str, module: nn.Module) -> None:
    """Raises for an LSTM that something else has already taken hold of."""
    names = [cls.__name__ for cls, *_ in _CLASSES]
    why = None
    if isinstance(module, torch.jit.ScriptModule):
        if getattr(module, "original_name", None) in names:
            why = "is scripted; convert before torch.jit.script"
    elif isinstance(module, torch._dynamo.OptimizedModule):
        if any(_is_lstm(m) for m in module.modules()):
            why = "is compiled; convert before torch.compile"
    elif _is_lstm(module) and any("torch.distributed." in str(c) for c in type(module).__mro__):
        why = "is sharded; convert before fully_shard"
    if why is not None:
        raise TypeError(f"cannot convert {path}: {type(module).__qualname__} {why}")


def _is_lstm(module: nn.Module) -> bool:
    return isinstance(module, tuple(cls for of_kind in _CLASSES for cls in of_kind))


_Target = tuple["type[nn.Module] | None", str]  # the new class, and what to warn of


def _to_fastlstm(module: nn.Module, keep_class: bool) -> _Target:
    cls = own_class(module)
    for of_torch, ours, adapter in _CLASSES:
        if cls in (of_torch, adapter):
            target = adapter if keep_class else ours
            return None if cls is target else target, ""
        if issubclass(cls, of_torch) and not issubclass(cls, ours):
            parts = ((name, getattr(of_torch, name, None)) for name in _PARTS_OF_FORWARD)
            changed = [name for name, part in parts if getattr(cls, name, None) is not part]
            why = f"stays as it is: its class {cls.__qualname__}"
            if changed:
                which = f"overrides {', '.join(changed)}, which {of_torch.__name__}.forward calls"
                return None, f"{why} {which}"
            if not _calls_forward_of(of_torch, cls):
                return None, f"{why} calls neither super().forward nor {of_torch.__name__}.forward"
            return _stand_in(cls), ""
    if is_quantized_by_torch_ao(module):
        return None, (
            "stays as it is: torch.ao has quantized it. Convert before that, or call "
            "fastlstm.prepack, which takes its int8 weights"
        )
    return None, ""


def _calls_forward_of(of_torch: type[nn.Module], cls: type[nn.Module]) -> bool:
    """Whether forward of a subclass is torch's or, as far as its names tell, may call it."""
    if cls.forward is of_torch.forward:
        return True
    own = cls.__mro__[: cls.__mro__.index(of_torch)]
    members = [member for each in own for member in vars(each).values()]
    codes = [code for m in members if (code := getattr(inspect.unwrap(m), "__code__", None))]
    return any("forward" in code.co_names for code in codes) or not hasattr(cls.forward, "__code__")


def is_quantized_by_torch_ao(module: nn.Module) -> bool:
    """Whether it is what torch.ao.quantization.quantize_dynamic makes of an LSTM or LSTMCell."""
    cls = type(module)
    of_torch_ao = cls.__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
    return of_torch_ao and cls.__name__ in ("LSTM", "LSTMCell")


def _to_torch(module: nn.Module) -> _Target:
    cls = own_class(module)
    for of_torch, ours, adapter in _CLASSES:
        if issubclass(cls, ours):
            values = vars(module).get("_fastlstm_options", Options()).regularizers._asdict()
            lost = ", ".join(f"{name}={value}" for name, value in values.items() if value)
            note = f"goes on without {lost}, which nn.LSTM lacks" if lost else ""
            if issubclass(cls, adapter):
                return cls.torch_class, note
            if cls is ours:
                return of_torch, note
            why = f"{cls.__qualname__} derives from fastlstm.{ours.__name__}"
            return None, f"stays as it is: its class {why}"
    return None, ""


def to_be_scripted(module: nn.Module) -> nn.Module:
    """What convert(to="torch") makes of an LSTM; a RuntimeError if that would not be the same."""
    target, note = _to_torch(module)
    if target is None or note:
        raise RuntimeError(
            f"{type(module).__name__}: torch.jit.script is not supported, for the module that "
            f'convert(to="torch") gives {note}; use torch.jit.trace, torch.compile or torch.export'
        )
    return _transplant(module, target)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what parametrize puts before it."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


_stand_ins: dict[type[nn.Module], type[nn.Module]] = {
    of_torch: adapter for of_torch, _, adapter in _CLASSES
}


def _stand_in(cls: type[nn.Module]) -> type[nn.Module]:
    """A class like `cls`, torch's or a subclass of it, that runs fastlstm; one for each."""
    if cls not in _stand_ins:
        adapter = next(adapter for of_torch, _, adapter in _CLASSES if issubclass(cls, of_torch))
        members = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        _stand_ins[cls] = type(
            cls.__name__, (cls, adapter), {**members, "torch_class": cls, "_fastlstm_names": ()}
        )
    return _stand_ins[cls]


def _empty_stand_in(cls: type[nn.Module]) -> nn.Module:
    stand_in = _stand_in(cls)
    return stand_in.__new__(stand_in)


def _transplant(module: nn.Module, target: type[nn.Module]) -> nn.Module:
    """A target module with the state of `module`, and its hooks, so that handles remove them."""
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
    if isinstance(new, nn.RNNBase):
        new.flatten_parameters()
    return new
