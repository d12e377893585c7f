"""`compare` times a model with nn.LSTM, converted and prepacked, side by side."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pkgutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from operator import truediv
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from . import comparison
from .comparison import Comparison
from .convert import convert
from .engine import records
from .engine.timing import Run, times_of
from .modules.cell import CellModule, LSTMCell
from .modules.lstm import LSTM, SequenceModule
from .prepack.prepack import prepack

ModuleCall = tuple[nn.Module, Sequence[Any], dict[str, Any]]

LSTMS = (nn.LSTM, nn.LSTMCell, SequenceModule, CellModule)


def compare(
    model: nn.Module,
    *inputs: Any,
    training: bool = False,
    seconds: float = 1.0,
    quiet: bool = False,
    save: str | os.PathLike[str] | None = None,
) -> list[Comparison]:
    """Times a model in several ways (as nn.LSTM, converted, prepacked), and compares the outputs.

    Inference on a CPU is also timed with prepacked weights. On a GPU each CUDA engine is timed too.
    Each way calls a copy of the model with a copy of the inputs, and the ways take turns. Outputs
    are compared if they are tensors or numbers, in tuples, lists, mappings and dataclasses. A way
    that cannot run the model is left out, and printed with the reason.

    Args:
        model: any module with an LSTM or LSTMCell, of torch.nn or of fastlstm.
        inputs: the arguments with which the model is called.
        training: whether to time training steps, with the gradients of the sum of the outputs.
        seconds: how long each way is measured.
        quiet: whether to print nothing, instead of a table and the code of the fastest way.
        save: a path without ending, where the table (.md) and a chart of the ratios (.svg) go.

    Returns:
        A row for each way.

    Raises:
        TypeError, ValueError: `convert` refuses the model, or torch.nn has no class for its LSTMs.
    """
    converted = convert(copy.deepcopy(model), to="torch")  # raises if convert refuses the model
    if not any(isinstance(module, (nn.LSTM, nn.LSTMCell)) for module in converted.modules()):
        got = "a LayerNormLSTM or a subclass of fastlstm.LSTM, which torch.nn does not have"
        raise ValueError(f"compare: expected a model with an LSTM or LSTMCell, got one with {got}")
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        ways = _ways(model, inputs, device, training, quiet)
        runs = [run for way in ways for run in way.runs]
        rows = _rows(ways, times_of(runs, device, seconds * len(ways), shows_progress=not quiet))
    if not quiet:
        print(comparison.table(rows, training))
    if save is not None:
        machine = f"{records.machine(device)}, {torch.get_num_threads()} threads"
        comparison.save(rows, training, machine, os.fspath(save))
    return rows


class _Way(NamedTuple):
    """A way that runs the model. Its name and code become those of a `Comparison`."""

    name: str
    code: str
    outputs: list[Any]
    runs: list[Run]  # a call of the model, and the calls that the model makes to its LSTMs


def _ways(
    model: nn.Module, inputs: Sequence[Any], device: torch.device, training: bool, quiet: bool
) -> list[_Way]:
    """The ways that run the model; the others are printed with the reason."""
    ways: list[_Way] = []
    for name, code, convert_copy in _conversions(device, training):
        try:
            converted = convert_copy(copy.deepcopy(model).train(training))
            # The outputs are those of the first call: a model may keep a state between calls.
            outputs = _outputs(converted, _copied(inputs))
            lstm_calls = _calls_of_lstms(converted.train(training), _copied(inputs), training)
            model_call: list[ModuleCall] = [(converted, _copied(inputs), {})]
            runs: list[Run] = [partial(_make_calls, c, training) for c in (model_call, lstm_calls)]
            ways.append(_Way(name, code, outputs, runs))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if name == "converted" and not ways:
                raise  # nn.LSTM could not run the model either
            if not quiet:
                print(f"{name} is left out: {str(error).splitlines()[0]}")
    return ways


def _conversions(
    device: torch.device, training: bool
) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Each way: its name, its code, and the function that makes it from a copy of the model."""
    yield "nn.LSTM", 'fastlstm.convert(model, to="torch")', partial(convert, to="torch")
    yield "converted", "fastlstm.convert(model)", convert
    if device.type == "cuda":
        for engine in ("stepwise", "persistent"):
            code = f'fastlstm.convert(model), and lstm.engine = "{engine}" for each of its LSTMs'
            yield f"engine {engine}", code, partial(_convert_to_engine, engine)
    elif not training:
        code = "fastlstm.prepack(model.eval(), convert=True)"
        yield "prepacked", code, partial(prepack, convert=True)
        for dtype in (torch.bfloat16, torch.int8):
            code = f"fastlstm.prepack(model.eval(), {dtype}, convert=True)"
            name = f"prepacked in {dtype}".replace("torch.", "")
            yield name, code, partial(prepack, weights=dtype, convert=True)


def _convert_to_engine(engine: str, model: nn.Module) -> nn.Module:
    model = convert(model)
    for module in model.modules():
        if isinstance(module, (LSTM, LSTMCell)) and module._fastlstm_has("engine"):
            module.engine = engine
    return model


def _rows(ways: Sequence[_Way], times: Sequence[list[float]]) -> list[Comparison]:
    """Returns a row for each way. `times` lists the seconds of each run; a way has two runs."""
    rows, first = [], ways[0].outputs
    for way, model_times, lstm_times in zip(ways, times[::2], times[1::2], strict=True):
        ratios = map(truediv, times[0], model_times)
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        seconds = statistics.median(model_times)
        share = min(1.0, statistics.median(lstm_times) / seconds)
        figures = 1e3 * seconds, ratio, (low, high), share, _difference(way.outputs, first)
        rows.append(Comparison(way.name, *figures, way.code))
    return rows


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested tuples (packed sequences too), lists, mappings and dataclasses."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _leaves(each)
    elif value is not None:
        yield value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def _copied(value: Any) -> Any:
    """A copy without a graph. Its tensors require a gradient if the originals do."""
    tensors = _tensors(value)
    copies = {id(t): t.detach().clone().requires_grad_(t.requires_grad) for t in tensors}
    return copy.deepcopy(value, copies)


def _calls_of_lstms(model: nn.Module, inputs: Sequence[Any], training: bool) -> list[ModuleCall]:
    """Runs the model once, and returns the calls that it makes to its LSTMs."""
    calls: list[ModuleCall] = []

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((module, _copied(args), _copied(kwargs)))

    lstms = (m for m in model.modules() if isinstance(m, LSTMS))
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in lstms]
    _make_calls([(model, inputs, {})], training)
    for handle in handles:
        handle.remove()
    return calls


def _make_calls(calls: Sequence[ModuleCall], training: bool) -> None:
    """Makes each call once, in training with the gradients of parameters and inputs."""
    with torch.set_grad_enabled(training):
        for module, args, kwargs in calls:
            outputs = [t for t in _tensors(module(*args, **kwargs)) if t.requires_grad]
            if outputs:
                leaves = (*module.parameters(), *_tensors((args, kwargs)))
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                ones = map(torch.ones_like, outputs)
                torch.autograd.grad(outputs, wanted, [*ones], allow_unused=True)


def _outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """The leaves of the model's outputs in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        leaves = _leaves(model.eval()(*inputs))
    # A later call of the model may write to these tensors.
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _difference(outputs: list[Any], first_outputs: list[Any]) -> float:
    """The largest difference from the first way's outputs; NaN if a pair cannot be compared."""
    differences = (_difference_of_leaves(*pair) for pair in zip_longest(outputs, first_outputs))
    return max(differences, default=math.nan, key=lambda d: math.inf if math.isnan(d) else d)


def _difference_of_leaves(leaf: Any, first_leaf: Any) -> float:
    if isinstance(leaf, str) and leaf == first_leaf:
        return 0.0
    a, b = _numbers(leaf), _numbers(first_leaf)
    if a is None or b is None or a.shape != b.shape:
        return math.nan
    unequal = (a - b)[(a != b) & ~(a.isnan() & b.isnan())].abs()
    return unequal.max().item() if unequal.numel() else 0.0


def _numbers(leaf: Any) -> Tensor | None:
    """The numbers of a leaf as a complex tensor, or None if it has no numbers."""
    if isinstance(leaf, (bool, int, float, complex)):
        leaf = torch.tensor(leaf)
    if not isinstance(leaf, Tensor):
        return None
    if leaf.is_nested:
        leaf = torch.cat([row.flatten() for row in leaf.unbind()])
    return cast(Tensor, leaf.to_dense().to(torch.complex128))


def main(function: str, **options: Any) -> None:
    """`python -m fastlstm compare`: compares the model and the inputs that a function returns."""
    problem = f"function: expected package.module:function, got {function}"
    try:
        factory = pkgutil.resolve_name(function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SystemExit(f"{problem}: {error}") from None
    if not callable(factory):
        raise SystemExit(f"{problem}, which is no function, but of type {type(factory).__name__}")
    made = factory()
    if not isinstance(made, (tuple, list)) or not isinstance(next(iter(made), None), nn.Module):
        got = type(made).__name__
        raise SystemExit(f"function: expected {function} to return (model, *inputs), got {got}")
    compare(*made, **options)
