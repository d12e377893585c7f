"""Attributes changed after construction: the results of torch.nn, or an error of the same type."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import _build, functional

SIZE, T, B = 4, 5, 3  # SIZE is the input size and the size of h
ENGINES = [name for name in functional.ENGINES if name != "persistent"]
needs_kernels = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Case(NamedTuple):
    """A change of a layer made with these options."""

    change: Callable
    options: dict = {}
    overreads: bool = False  # nn.LSTM reads beyond a matrix through oneDNN, but raises without it


def sets(**attributes):
    return lambda layer: [setattr(layer, name, value) for name, value in attributes.items()]


def deletes(name):
    return lambda layer: delattr(layer, name)


def weight(*shape):
    return nn.Parameter(torch.linspace(-0.5, 0.5, torch.Size(shape).numel()).view(shape))


def registers(name, value):
    return lambda layer: layer.register_parameter(name, like(layer, value))


def like(layer, value):
    dtype = next(iter(layer.parameters())).dtype
    return None if value is None else nn.Parameter(value.detach().to(dtype))


def replaces(name, *shape):
    return lambda layer: setattr(layer, name, like(layer, weight(*shape)))


def gets_biases(cell):
    for end in ("ih", "hh"):
        registers(f"bias_{end}", weight(4 * SIZE))(cell)


def gets_larger_weights(cell):
    for end, columns in (("ih", SIZE), ("hh", 2 * SIZE)):
        replaces(f"weight_{end}", 8 * SIZE, columns)(cell)
        replaces(f"bias_{end}", 8 * SIZE)(cell)


def flat(change):
    return lambda layer: setattr(layer, "_flat_weights", change([*layer._flat_weights]))


def doubled_first(weights):
    return [2 * weights[0].detach(), *weights[1:]]


def changes_in_place(layer):
    layer._flat_weights[1] = 2 * layer._flat_weights[1].detach()


def overrides(layer):
    """Gives the layer a subclass in which `_flat_weights` is a property that computes them."""

    def read(self):
        return [2 * w.detach() for w in vars(self)["_flat_weights"]]

    def write(self, weights):
        vars(self)["_flat_weights"] = weights

    members = {"_flat_weights": property(read, write)}
    layer.__class__ = type("Own", (type(layer),), members)


TWO, BOTH = {"num_layers": 2}, {"bidirectional": True}
# Shapes of states that fit some of the layers before or after their change: the number of layers
# times directions, the size of h and the size of c.
STATES = [*((n, SIZE, SIZE) for n in (1, 2, 4)), (1, 2, SIZE), (1, SIZE + 3, SIZE + 3)]
ATTRIBUTES = {
    "nothing": Case(sets()),
    "num_layers lowered": Case(sets(num_layers=1), TWO),
    "num_layers lowered by one": Case(sets(num_layers=2), {"num_layers": 3}),
    "num_layers lowered, bidirectional": Case(sets(num_layers=1), {**TWO, **BOTH}),
    "num_layers lowered, projected": Case(sets(num_layers=1), {**TWO, "proj_size": 2}),
    "num_layers raised": Case(sets(num_layers=2)),
    "num_layers 0": Case(sets(num_layers=0)),
    "num_layers -1": Case(sets(num_layers=-1)),
    "num_layers True": Case(sets(num_layers=True)),
    "num_layers 1.0": Case(sets(num_layers=1.0)),
    "num_layers None": Case(sets(num_layers=None), TWO),
    "no num_layers": Case(deletes("num_layers")),
    "bidirectional off": Case(sets(bidirectional=False), BOTH),
    "bidirectional off, two layers": Case(sets(bidirectional=False), {**TWO, **BOTH}),
    "bidirectional on": Case(sets(bidirectional=True)),
    "bidirectional for a layer": Case(sets(bidirectional=True, num_layers=1), TWO),
    "a layer for bidirectional": Case(sets(bidirectional=False, num_layers=2), BOTH),
    "bidirectional 1": Case(sets(bidirectional=1), BOTH),
    "bidirectional None": Case(sets(bidirectional=None)),
    "no bidirectional": Case(deletes("bidirectional")),
    "hidden_size raised": Case(sets(hidden_size=SIZE + 3), {}, True),
    "hidden_size lowered": Case(sets(hidden_size=SIZE - 1)),
    "hidden_size 1": Case(sets(hidden_size=1)),
    "hidden_size 1, projected": Case(sets(hidden_size=1), {"proj_size": 2}),
    "hidden_size 4.0": Case(sets(hidden_size=4.0)),
    "hidden_size None": Case(sets(hidden_size=None)),
    "no hidden_size": Case(deletes("hidden_size")),
    "input_size raised": Case(sets(input_size=SIZE + 1)),
    "input_size None": Case(sets(input_size=None)),
    "no input_size": Case(deletes("input_size")),
    "proj_size on": Case(sets(proj_size=2)),
    "proj_size off": Case(sets(proj_size=0), {"proj_size": 2}),
    "proj_size raised": Case(sets(proj_size=3), {"proj_size": 2}),
    "proj_size of hidden_size": Case(sets(proj_size=SIZE)),
    "proj_size -1": Case(sets(proj_size=-1)),
    "proj_size None": Case(sets(proj_size=None)),
    "no proj_size": Case(deletes("proj_size")),
    "bias off": Case(sets(bias=False)),
    "bias off, two layers": Case(sets(bias=False), TWO, True),
    "bias off, projected": Case(sets(bias=False), {"proj_size": 2}),
    "bias on": Case(sets(bias=True), {"bias": False}),
    "bias on, two layers": Case(sets(bias=True), {"bias": False, **TWO}),
    "bias 1": Case(sets(bias=1)),
    "bias None": Case(sets(bias=None), {"bias": False}),
    "no bias": Case(deletes("bias")),
    "batch_first on": Case(sets(batch_first=True)),
    "batch_first off": Case(sets(batch_first=False), {"batch_first": True}),
    "batch_first 1": Case(sets(batch_first=1)),
    "no batch_first": Case(deletes("batch_first")),
    "dropout on": Case(sets(dropout=0.5), TWO),
    "dropout 2.0": Case(sets(dropout=2.0), TWO),
    "dropout 1": Case(sets(dropout=1), TWO),
    "dropout None": Case(sets(dropout=None)),
    "no dropout": Case(deletes("dropout"), TWO),
}
WEIGHTS = {
    "_flat_weights set": Case(flat(doubled_first)),
    "_flat_weights set, two layers": Case(flat(doubled_first), {**TWO, **BOTH}),
    "_flat_weights a tuple": Case(flat(tuple)),
    "_flat_weights shorter": Case(flat(lambda weights: weights[:3])),
    "_flat_weights longer": Case(flat(lambda weights: weights * 2)),
    "_flat_weights empty": Case(flat(lambda weights: [])),
    "_flat_weights of None": Case(flat(lambda weights: [*weights[:3], None])),
    "_flat_weights of another size": Case(flat(lambda w: [w[0][:8], *w[1:]]), {}, True),
    "_flat_weights None": Case(sets(_flat_weights=None)),
    "_flat_weights changed": Case(changes_in_place),
    "_flat_weights a property": Case(overrides, TWO),
    "no _flat_weights": Case(deletes("_flat_weights")),
    "a bias None": Case(sets(bias_hh_l0=None)),
    "a bias registered as None": Case(registers("bias_hh_l0", None)),
    "no bias_hh_l0": Case(deletes("bias_hh_l0")),
    "no weight_ih_l0": Case(deletes("weight_ih_l0")),
    "a weight registered": Case(registers("weight_hh_l0", weight(4 * SIZE, SIZE))),
    "a weight replaced": Case(replaces("weight_hh_l0", 4 * SIZE, SIZE)),
    "a larger weight": Case(replaces("weight_hh_l0", 8 * SIZE, SIZE)),
    "a smaller weight": Case(replaces("weight_hh_l0", SIZE, SIZE), {}, True),
    "a bias of one number": Case(replaces("bias_hh_l0", 1)),
    "a bias of three numbers": Case(replaces("bias_hh_l0", 3)),
    "a parametrized weight": Case(lambda lstm: parametrizations.weight_norm(lstm, "weight_hh_l0")),
    "all weights None": Case(lambda lstm: [setattr(lstm, n, None) for n in lstm.state_dict()]),
}
CELL_WEIGHTS = {
    "nothing": Case(sets()),
    "biases later": Case(gets_biases, {"bias": False}),
    "a bias None": Case(registers("bias_hh", None)),
    "the other bias None": Case(sets(bias_ih=None)),
    "both biases None": Case(sets(bias_ih=None, bias_hh=None)),
    "no bias_hh": Case(deletes("bias_hh")),
    "a weight None": Case(sets(weight_hh=None)),
    "a weight replaced": Case(replaces("weight_hh", 4 * SIZE, SIZE)),
    "a larger weight": Case(replaces("weight_hh", 8 * SIZE, 2 * SIZE)),
    "all weights larger": Case(gets_larger_weights),
    "a bias of one number": Case(replaces("bias_hh", 1)),
    "a parametrized weight": Case(lambda cell: parametrizations.weight_norm(cell, "weight_hh")),
}
CELL_ATTRIBUTES = {
    "bias off": Case(sets(bias=False)),
    "bias on": Case(sets(bias=True), {"bias": False}),
    "bias None": Case(sets(bias=None)),
    "no bias": Case(deletes("bias")),
    "input_size raised": Case(sets(input_size=SIZE + 1)),
    "no input_size": Case(deletes("input_size")),
    "hidden_size raised": Case(sets(hidden_size=SIZE + 1)),
    "hidden_size lowered": Case(sets(hidden_size=SIZE - 1)),
    "hidden_size None": Case(sets(hidden_size=None)),
    "no hidden_size": Case(deletes("hidden_size")),
}


def calls(layer, dtype):
    """Yields names and arguments of calls, with states that fit before or after the change."""
    torch.manual_seed(1)
    if isinstance(layer, nn.LSTMCell):
        x, wide = torch.randn(B, SIZE, dtype=dtype), torch.randn(B, 2 * SIZE, dtype=dtype)
        state = torch.randn(2, B, SIZE, dtype=dtype).unbind()
        yield from {"cell": (x,), "cell, hx": (x, state), "wide hx": (x, (wide, wide))}.items()
        yield from {"row": (x[0],), "row, hx": (x[0], (state[0][0], state[1][0]))}.items()
        return
    x = torch.randn(T, B, SIZE, dtype=dtype)
    packed = pack_padded_sequence(x, [5, 3, 2])
    inputs = {"dense": x, "packed": packed, "unbatched": x[:, 0]}
    for name, given in inputs.items():
        yield name, (given,)
        for layers, h, c in STATES:
            rows = () if name == "unbatched" else (B,)
            h_0, c_0 = (torch.randn(layers, *rows, size, dtype=dtype) for size in (h, c))
            yield f"{name}, hx of {layers} layers, {h} and {c}", (given, (h_0, c_0))


def outcome(layer, arguments):
    """Returns the tensors that a call returns, or the type of its error."""
    try:
        with torch.no_grad():
            results = layer(*arguments)
    except Exception as error:
        return type(error)
    output, state = (results[0], results) if "Cell" in type(layer).__name__ else results
    if isinstance(output, PackedSequence):
        output = output.data
    return [output, *state]


def compare(ours, theirs, context):
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs, f"{context}: {ours}, torch.nn: {theirs}"
        return
    told = lambda message: f"{context}: {message}"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=told)


def layers(cls, case, dtype):
    """Returns the layer of torch.nn, changed, and by name the functions that make ours."""
    torch.manual_seed(0)
    before = cls(SIZE, SIZE, **case.options, dtype=dtype).eval()
    after = copy.deepcopy(before)
    case.change(after)

    def ours():
        layer = getattr(fastlstm, cls.__name__)(SIZE, SIZE, **case.options, dtype=dtype).eval()
        layer.load_state_dict(before.state_dict())
        return layer

    def changed(layer):
        case.change(layer)
        return layer

    convert, copied = fastlstm.convert, lambda: copy.deepcopy(before)
    return after, {
        "fastlstm": lambda: changed(ours()),
        "converted": lambda: changed(convert(copied())),
        "changed, then converted": lambda: convert(changed(copied())),
        "without the class": lambda: changed(convert(copied(), keep_class=False)),
        "packed": lambda: changed(fastlstm.prepack(ours())),
        "changed, then packed": lambda: fastlstm.prepack(changed(ours())),
    }


def check(cls, case, packs):
    for dtype in (torch.float32, torch.float64):
        theirs, ways = layers(cls, case, dtype)
        with torch.backends.mkldnn.flags(enabled=not case.overreads):
            wanted = {name: (given, outcome(theirs, given)) for name, given in calls(theirs, dtype)}
        for way, make in ways.items():
            if "packed" in way and not packs:
                continue
            layer = make()
            for engine in ENGINES if way == "fastlstm" else ["auto"]:
                if engine != "auto":
                    layer.engine = engine
                for name, (arguments, results) in wanted.items():
                    context = f"{way}, {engine}, {dtype}, {name}"
                    compare(outcome(layer, arguments), results, context)


@needs_kernels
@pytest.mark.parametrize("name", [*ATTRIBUTES, *WEIGHTS])
def test_lstm(name):
    check(nn.LSTM, (ATTRIBUTES | WEIGHTS)[name], packs=name in ATTRIBUTES)


@needs_kernels
@pytest.mark.parametrize("name", [*CELL_ATTRIBUTES, *CELL_WEIGHTS])
def test_cell(name):
    check(nn.LSTMCell, (CELL_ATTRIBUTES | CELL_WEIGHTS)[name], packs=name in CELL_ATTRIBUTES)


@needs_kernels
def test_a_plain_call_names_its_arguments():
    lstm, x = fastlstm.LSTM(SIZE, SIZE), torch.randn(T, B, SIZE)
    named = {
        "input": x,
        "hx": None,
        "weights": lstm._flat_weights,
        "layout": "bias",
        "parameters": lstm._parameters,
        "names": lstm._flat_weights_names,
        "lengths": None,
        "reset": None,
    }
    for name in ("input_size", "hidden_size", "proj_size", "num_layers", "bias", "bidirectional"):
        named[name] = getattr(lstm, name)
    named |= {"batch_first": False, "dropout": 0.0}
    for order in (named, reversed(named)):
        output, _ = _build.library.plain_lstm(**{name: named[name] for name in order})
        assert torch.equal(output, lstm(x)[0])
    named["h_0"] = named.pop("hx")
    with pytest.raises(SystemError, match="plain_lstm: other arguments than expected: .*h_0"):
        _build.library.plain_lstm(**named)
