"""An LSTM of your own: a class in a Python file that takes the place of nn.LSTM."""

import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from captioning.errors import CaptioningError

BATCH, INPUT_SIZE, HIDDEN_SIZE = 2, 3, 5  # of the small module that is tried


def own_lstm_class(name: str) -> type[nn.Module]:
    """Runs the file of "FILE.py:CLASS" and returns the class.

    Raises:
        CaptioningError: there is no such file or class, or the file raises an exception.
    """
    file, _, class_name = name.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not class_name:
        expected = "expected fastlstm, torch, reference or FILE.py:CLASS"
        raise CaptioningError(f"lstm: {expected}; got {name}")
    if not path.is_file():
        raise CaptioningError(f"lstm: {file}: no such file")
    module = _run_file(path.resolve(), path.stat().st_mtime_ns)
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        is_module = lambda value: isinstance(value, type) and issubclass(value, nn.Module)
        own = [n for n, value in vars(module).items() if is_module(value)]
        classes = ", ".join(own) or "no module class"
        raise CaptioningError(f"lstm: {file} has no module class {class_name!r}; it has {classes}")
    return found


@functools.cache
def _run_file(path: Path, modified: int) -> ModuleType:
    """Imports a Python file, once for each time that it was `modified`."""
    spec = importlib.util.spec_from_file_location(f"own_lstm_{path.stem}", path)
    assert spec and spec.loader  # every name that ends with .py has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    sys.path.insert(0, str(path.parent))  # the file may import others of its folder
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CaptioningError(f"lstm: {path.name}: {_describe(error, path)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _describe(error: Exception, path: Path) -> str:
    """Returns an exception and the line of the file `path` that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def check_own_lstm(name: str, num_layers: int = 1) -> None:
    """Refuses a class that a decoder cannot use in the place of nn.LSTM.

    A small module of the class must take a PackedSequence without states and single steps with
    states, return what nn.LSTM returns, write the same in both ways, and have gradients.

    Raises:
        CaptioningError: names what is missing.
    """
    with torch.random.fork_rng(devices=[]):  # the initial weights must not move the run's numbers
        trial = _Trial(name, num_layers)
        x = torch.randn(BATCH, 3, INPUT_SIZE, requires_grad=True)
        packed = pack_padded_sequence(x, [3, 2], batch_first=True)
        output, _ = trial.call("a PackedSequence without states", packed)
        steps: list[torch.Tensor] = []
        states: tuple[Any, ...] = ()
        for t, call in enumerate(("[B,1,E] without states", "[B,1,E] with states")):
            step, state = trial.call(call, x[:, t : t + 1], *states)
            steps.append(step)
            states = (state,)
    at_once = pad_packed_sequence(output, batch_first=True)[0][:, :2]
    difference = (torch.cat(steps, 1) - at_once).detach().abs().max().item()
    what = "the same output from two steps with states as from a PackedSequence"
    trial.expect(difference < 1e-4, what, f"a difference of {difference:.2g}")
    trial.expect(output.data.requires_grad, "an output with a gradient", "one without")
    output.data.sum().backward()
    missing = [n for n, p in trial.lstm.named_parameters() if p.requires_grad and p.grad is None]
    trial.expect(not missing, "a gradient of each parameter", f"none of {', '.join(missing)}")
    trial.expect(x.grad is not None and bool(x.grad.any()), "a gradient of the input", "none")


class _Trial:
    """A small module of a class of one's own, and the checks of what it returns."""

    def __init__(self, name: str, num_layers: int) -> None:
        self.name, self.path = name, Path(name.rpartition(":")[0]).resolve()
        self.state_shape = [num_layers, BATCH, HIDDEN_SIZE]
        make, sizes = own_lstm_class(name), (INPUT_SIZE, HIDDEN_SIZE, num_layers)
        what = "a constructor (input_size, hidden_size, num_layers, batch_first=True)"
        self.lstm = self.attempt(what, lambda: make(*sizes, batch_first=True)).eval()

    def expect(self, is_so: bool, what: str, got: object) -> None:
        """Raises an error unless something is so."""
        if not is_so:
            raise CaptioningError(f"lstm: {self.name}: expected {what}; got {got}")

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """Calls code of the class, which may raise exceptions of any kind."""
        try:
            return call()
        except Exception as error:
            told = _describe(error, self.path)
            raise CaptioningError(f"lstm: {self.name}: expected {what}; got {told}") from error

    def call(self, what: str, x: Any, *states: Any) -> Any:
        """Calls the module; returns the output and the states, if both are as nn.LSTM's."""
        result = self.attempt(f"forward({what})", lambda: self.lstm(x, *states))
        form = f"(output, (h_n, c_n)) from forward({what})"
        is_pair = lambda value: isinstance(value, tuple) and len(value) == 2
        self.expect(is_pair(result), form, type(result).__name__)
        output, new_states = result
        self.expect(is_pair(new_states), form, f"(output, {type(new_states).__name__})")
        packed = isinstance(x, PackedSequence)
        if packed:
            expected = f"a PackedSequence from forward({what})"
            self.expect(isinstance(output, PackedSequence), expected, type(output).__name__)
        shape = [len(x.data), HIDDEN_SIZE] if packed else [BATCH, 1, HIDDEN_SIZE]
        tensors = {
            "output.data" if packed else "output": (output.data if packed else output, shape)
        }
        labels = ("h_n", "c_n")
        tensors |= {
            n: (state, self.state_shape) for n, state in zip(labels, new_states, strict=True)
        }
        for label, (tensor, wanted) in tensors.items():
            got = list(getattr(tensor, "shape", [])) or type(tensor).__name__
            self.expect(got == wanted, f"{label} of shape {wanted} from forward({what})", got)
        return output, new_states
