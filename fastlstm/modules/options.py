"""`EngineModule`: the options that our modules have and the modules of torch.nn lack."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from ..engine.call import Regularizers, check_probabilities

NO_REGULARIZERS = Regularizers()


def qualified_name(module: nn.Module) -> str:
    """The class name with the package, so that a printed model shows which LSTM it has."""
    cls = type(module)
    package, _, _ = cls.__module__.partition(".")
    return f"fastlstm.{cls.__name__}" if package == "fastlstm" else cls.__name__


class _Option:
    """Reads an option under a short name, unless the user has set an attribute of that name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self
        if not module._fastlstm_has(self.name):
            raise AttributeError(self.name)  # Python then asks __getattr__, as for nn.LSTM
        if self.name == "engine":
            return module._fastlstm_engine
        return getattr(module._fastlstm_regularizers, self.name)


class EngineModule(nn.Module):
    """A module that runs an engine, and has options that nn.LSTM lacks.

    Most names of a converted module belong to the user. So options are stored under names that
    nobody else uses, and private methods have such names too.
    """

    engine: str
    _fastlstm_engine = "auto"
    _fastlstm_regularizers = NO_REGULARIZERS
    _fastlstm_torch_class: ClassVar[type[nn.Module]]  # the class that convert(to="torch") gives
    _fastlstm_options: ClassVar[tuple[str, ...]] = ()  # the attributes that are options
    _fastlstm_check_engine: ClassVar[Any]  # checks a value of the option `engine`
    _get_name = qualified_name

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls).get("_fastlstm_options", ()):
            setattr(cls, name, _Option(name))

    def _fastlstm_has(self, name: str) -> bool:
        """Whether an attribute is an option, and not something that the user has set."""
        if name not in self._fastlstm_options:
            return False
        tables = [vars(self).get(table, ()) for table in ("_parameters", "_buffers", "_modules")]
        return not any(name in table for table in (vars(self), *tables))

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._fastlstm_has(name):
            super().__setattr__(name, value)
        elif name == "engine":
            type(self)._fastlstm_check_engine(value)
            vars(self)["_fastlstm_engine"] = value
        else:
            check_probabilities(**{name: value})
            changed = self._fastlstm_regularizers._replace(**{name: value})
            vars(self)["_fastlstm_regularizers"] = changed if any(changed) else NO_REGULARIZERS

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Refuses int8 weights of a prepacked layer, which mean nothing without their scales."""
        given = {name: state_dict.get(prefix + name) for name in self._parameters}
        int8 = [name for name, t in given.items() if getattr(t, "dtype", None) is torch.int8]
        if int8 and not self._load_state_dict_pre_hooks:  # a hook of the user may dequantize them
            problem = "expected floating weights, got int8 of a prepacked layer"
            remedy = "load them into fastlstm.prepack(model, torch.int8), then call fastlstm.unpack"
            rest[-1].append(f"{prefix}{int8[0]}: {problem}; {remedy}")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses torch.jit.script, which can compile only the modules of torch.nn."""
        script = 'torch.jit.script(fastlstm.convert(copy.deepcopy(model), to="torch"))'
        problem = f"torch.jit.script cannot compile a {type(self).__name__} of fastlstm"
        raise RuntimeError(f"{problem}; script a copy: {script}")

    def extra_repr(self) -> str:
        options = {**self._fastlstm_regularizers._asdict(), "engine": self._fastlstm_engine}
        changed = (f", {k}={v!r}" for k, v in options.items() if v and v != "auto")
        return super().extra_repr() + "".join(changed)


def check_model(model: Any) -> None:
    """Raises a TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: expected a module, got {got}")
