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
    """A layer's options, and a change of the layer after its construction."""

    change: Callable
    options: dict = {}
    overreads: bool = False  # with oneDNN nn.LSTM reads beyond a matrix, without it nn.LSTM raises


def sets(**attributes):
    return lambda layer: [setattr(layer, name, value) for name, value in attributes.items()]


def deletes(name):
    return lambda layer: delattr(layer, name)


def weight_for(layer, shape):
    values = torch.linspace(-0.5, 0.5, torch.Size(shape).numel()).view(shape)
    return nn.Parameter(values.to(next(iter(layer.parameters())).dtype))


def registers(name, *shape):
    """Registers a parameter, or None if no shape is given."""
    return lambda layer: layer.register_parameter(name, weight_for(layer, shape) if shape else None)


def replaces(name, *shape):
    return lambda layer: setattr(layer, name, weight_for(layer, shape))


def gets_biases(cell):
    for end in ("ih", "hh"):
        registers(f"bias_{end}", 4 * SIZE)(cell)


def gets_larger_weights(cell):
    for end, columns in (("ih", SIZE), ("hh", 2 * SIZE)):
        replaces(f"weight_{end}", 8 * SIZE, columns)(cell)
        replaces(f"bias_{end}", 8 * SIZE)(cell)


def sets_flat(change):
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
PROJECTED, UNBIASED = {"proj_size": 2}, {"bias": False}
# Layers times directions, size of h and size of c, which fit before or after some of the changes.
STATES = [*((n, SIZE, SIZE) for n in (1, 2, 4)), (1, 2, SIZE), (1, SIZE + 3, SIZE + 3)]
DELETED = "deleted"


def cases_of(table):
    """Returns {name: Case} for a table {attribute: [(new value, *other fields of Case)]}."""
    cases = {}
    for name, values in table.items():
        for value, *more in values:
            change = deletes(name) if value == DELETED else sets(**{name: value})
            cases[f"{name} {value} {more}"] = Case(change, *more)
    return cases


ATTRIBUTES = cases_of({
    "num_layers": [(1, TWO), (2, {"num_layers": 3}), (1, TWO | BOTH), (1, TWO | PROJECTED), (2,),
                   (0,), (-1,), (True,), (1.0,), (None, TWO), (DELETED,)],
    "bidirectional": [(False, BOTH), (False, TWO | BOTH), (True,), (1, BOTH), (None,), (DELETED,)],
    "hidden_size": [(SIZE + 3, {}, True), (SIZE - 1,), (1,), (1, PROJECTED), (4.0,), (None,),
                    (DELETED,)],
    "input_size": [(SIZE + 1,), (None,), (DELETED,)],
    "proj_size": [(2,), (0, PROJECTED), (3, PROJECTED), (SIZE,), (-1,), (None,), (DELETED,)],
    "bias": [(False,), (False, TWO, True), (False, PROJECTED), (True, UNBIASED),
             (True, UNBIASED | TWO), (1,), (None, UNBIASED), (DELETED,)],
    "batch_first": [(True,), (False, {"batch_first": True}), (1,), (DELETED,)],
    "dropout": [(0.5, TWO), (2.0, TWO), (1, TWO), (None,), (DELETED, TWO)],
}) | {
    "nothing": Case(sets()),
    "two directions instead of two layers": Case(sets(bidirectional=True, num_layers=1), TWO),
    "two layers instead of two directions": Case(sets(bidirectional=False, num_layers=2), BOTH),
}  # fmt: skip
WEIGHTS = {
    "_flat_weights set": Case(sets_flat(doubled_first)),
    "_flat_weights set, two layers": Case(sets_flat(doubled_first), {**TWO, **BOTH}),
    "_flat_weights a tuple": Case(sets_flat(tuple)),
    "_flat_weights shorter": Case(sets_flat(lambda weights: weights[:3])),
    "_flat_weights longer": Case(sets_flat(lambda weights: weights * 2)),
    "_flat_weights empty": Case(sets_flat(lambda weights: [])),
    "_flat_weights of None": Case(sets_flat(lambda weights: [*weights[:3], None])),
    "_flat_weights of another size": Case(sets_flat(lambda w: [w[0][:8], *w[1:]]), {}, True),
    "_flat_weights None": Case(sets(_flat_weights=None)),
    "_flat_weights changed": Case(changes_in_place),
    "_flat_weights a property": Case(overrides, TWO),
    "no _flat_weights": Case(deletes("_flat_weights")),
    "a bias None": Case(sets(bias_hh_l0=None)),
    "a bias registered as None": Case(registers("bias_hh_l0")),
    "no bias_hh_l0": Case(deletes("bias_hh_l0")),
    "no weight_ih_l0": Case(deletes("weight_ih_l0")),
    "a weight registered": Case(registers("weight_hh_l0", 4 * SIZE, SIZE)),
    "a weight replaced": Case(replaces("weight_hh_l0", 4 * SIZE, SIZE)),
    "a larger weight": Case(replaces("weight_hh_l0", 8 * SIZE, SIZE)),
    "a smaller weight": Case(replaces("weight_hh_l0", SIZE, SIZE), {}, True),
    **{f"a bias of size {n}": Case(replaces("bias_hh_l0", n)) for n in (1, 3)},
    "a parametrized weight": Case(lambda lstm: parametrizations.weight_norm(lstm, "weight_hh_l0")),
    "a layer less, in training": Case(sets(num_layers=1, training=True), TWO),
    **{f"dropout {p} in training": Case(sets(dropout=p, training=True), TWO) for p in (-0.5, 1.5)},
    "all weights None": Case(lambda lstm: [setattr(lstm, n, None) for n in lstm.state_dict()]),
}
CELL_WEIGHTS = {
    "nothing": Case(sets()),
    "biases later": Case(gets_biases, {"bias": False}),
    "a bias None": Case(registers("bias_hh")),
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
CELL_ATTRIBUTES = cases_of({
    "bias": [(False,), (True, UNBIASED), (None,), (DELETED,)],
    "input_size": [(SIZE + 1,), (DELETED,)],
    "hidden_size": [(SIZE + 1,), (SIZE - 1,), (None,), (DELETED,)],
})  # fmt: skip


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
        with torch.set_grad_enabled("Prepacked" in type(layer).__name__):  # gives no gradients
            results = layer(*arguments)
    except Exception as error:
        return type(error)
    output, state = (results[0], results) if "Cell" in type(layer).__name__ else results
    if isinstance(output, PackedSequence):
        output = output.data
    assert not output.requires_grad
    return [output, *state]


def compare(ours, theirs, context):
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs, f"{context}: {ours}, torch.nn: {theirs}"
        return
    with_context = lambda message: f"{context}: {message}"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=with_context)


def layers(cls, case, dtype):
    """Returns the changed layer of torch.nn, and functions that make the same layer of fastlstm."""
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
        "prepacked": lambda: changed(fastlstm.prepack(ours())),
        "changed, then prepacked": lambda: fastlstm.prepack(changed(ours())),
    }


def check(cls, case, prepacks):
    for dtype in (torch.float32, torch.float64):
        theirs, makers = layers(cls, case, dtype)
        with torch.backends.mkldnn.flags(enabled=not case.overreads):
            wanted = {name: (given, outcome(theirs, given)) for name, given in calls(theirs, dtype)}
        for way, make in makers.items():
            if "prepacked" in way and not prepacks:
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
    check(nn.LSTM, (ATTRIBUTES | WEIGHTS)[name], prepacks=name in ATTRIBUTES)


@needs_kernels
@pytest.mark.parametrize("name", [*CELL_ATTRIBUTES, *CELL_WEIGHTS])
def test_cell(name):
    check(nn.LSTMCell, (CELL_ATTRIBUTES | CELL_WEIGHTS)[name], prepacks=name in CELL_ATTRIBUTES)


@needs_kernels
@pytest.mark.parametrize("name", ["hidden_size", "input_size", "num_layers", "proj_size"])
def test_options_need_weights_of_the_shapes_that_attributes_describe(name):
    lstm = fastlstm.LSTM(SIZE, SIZE)
    setattr(lstm, name, 2)
    with pytest.raises(RuntimeError, match="LSTM: expected weights of the shapes that its attr"):
        lstm(torch.randn(T, B, SIZE), lengths=torch.full((B,), T))
