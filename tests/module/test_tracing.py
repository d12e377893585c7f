"""torch.jit.trace: a trace takes other numbers of steps and rows than the call that it recorded."""

import copy
import io
import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import _build

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
needs_kernels = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
TRACED, OTHERS = (5, 3), [(5, 7), (9, 3), (2, 1)]  # steps and rows

LAYERS = {
    "converted": fastlstm.convert,
    "fastlstm": lambda layer: fastlstm.convert(layer, keep_class=False),
    "prepacked": lambda layer: fastlstm.prepack(layer, convert=True),
}
every_layer = pytest.mark.parametrize(
    "change", [pytest.param(k, marks=needs_kernels if k == "prepacked" else ()) for k in LAYERS]
)
OPTIONS = [
    {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first, **rest}
    for num_layers, bidirectional, batch_first in itertools.product((1, 2), *2 * [(False, True)])
    for rest in ({}, {"proj_size": 2})
] + [{"bias": False}]
FORMS = "padded", "unbatched", "sorted", "unsorted"
OPTIONS_OF_A_CALL = "lengths", "reset"  # nn.LSTM lacks these


class Model(nn.Module):
    """Calls an LSTM in a form, with tensors as arguments and results."""

    def __init__(self, layer, form):
        super().__init__()
        self.layer, self.form = layer, form

    def forward(self, x, *rest):
        if self.form in OPTIONS_OF_A_CALL:
            option, *rest = rest
            output, state = self.layer(x, rest or None, **{self.form: option})
            return output, *state
        if self.form not in ("sorted", "unsorted"):
            output, state = self.layer(x, tuple(rest) or None)
            return output, *state
        lengths, *rest = rest
        is_sorted, batch_first = self.form == "sorted", self.layer.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=is_sorted)
        output, state = self.layer(packed, tuple(rest) or None)
        return *pad_packed_sequence(output, batch_first), *state


class Call(NamedTuple):
    options: dict[str, Any]
    form: str
    has_hx: bool

    def layer(self):
        torch.manual_seed(0)
        return nn.LSTM(3, 4, **self.options).eval()

    def arguments(self, steps, rows):
        lstm = self.layer()
        x, lengths = torch.randn(steps, rows, 3), torch.arange(rows) * 2 % steps + 1
        reset = torch.rand(steps, rows) < 0.3
        states = lstm.num_layers * (1 + lstm.bidirectional)
        hx = torch.randn(states, rows, lstm.proj_size or 4), torch.randn(states, rows, 4)
        if self.form == "unbatched":
            return x[:, 0], *(state[:, 0] for state in hx[: 2 * self.has_hx])
        if lstm.batch_first:
            x, reset = x.transpose(0, 1), reset.transpose(0, 1)
        given = {"unsorted": lengths, "lengths": lengths - 1, "reset": reset}
        given["sorted"] = lengths.sort(descending=True).values
        return x, *([given[self.form]] if self.form in given else []), *hx[: 2 * self.has_hx]


def calls(forms):
    return [Call(*each) for each in itertools.product(OPTIONS, forms, (False, True))]


def trace_and_load(model, arguments):
    """The trace of a call, and what a file with the trace holds."""
    with torch.no_grad():
        trace = torch.jit.trace(model, arguments, check_trace=False)
    torch.jit.save(trace, buffer := io.BytesIO())
    buffer.seek(0)
    return trace, torch.jit.load(buffer)


def changed(layer, change):
    return LAYERS[change](copy.deepcopy(layer))


@torch.no_grad()
def assert_traces_agree(traces, expected, arguments):
    """Compares traces with a model, or with the trace of a model, for other sizes."""
    for steps, rows in OTHERS:
        given = arguments(steps, rows)
        for trace in traces:
            torch.testing.assert_close(trace(*given), expected(*given))


@every_layer
@pytest.mark.parametrize("form", FORMS)
def test_a_trace_takes_the_sizes_that_the_trace_of_nn_lstm_takes(change, form):
    for call in calls([form]):
        example, layer = call.arguments(*TRACED), call.layer()
        expected, _ = trace_and_load(Model(layer, form), example)
        traces = trace_and_load(Model(changed(layer, change), form), example)
        assert_traces_agree(traces, expected, call.arguments)


@every_layer
@pytest.mark.parametrize("form", OPTIONS_OF_A_CALL)
def test_a_trace_with_an_option_takes_other_sizes(change, form):
    for call in calls([form]):
        model = Model(changed(call.layer(), change), form)
        traces = trace_and_load(model, call.arguments(*TRACED))
        assert_traces_agree(traces, model, call.arguments)


@every_layer
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("has_hx", [True, False])
@pytest.mark.parametrize("is_batched", [True, False])
def test_the_trace_of_a_cell_takes_other_sizes(change, bias, has_hx, is_batched):
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 4, bias).eval()

    def arguments(_, rows):
        shape = (rows,) if is_batched else ()
        hx = torch.randn(*shape, 4), torch.randn(*shape, 4)
        return torch.randn(*shape, 3), *([hx] if has_hx else [])

    expected, _ = trace_and_load(cell, arguments(*TRACED))
    traces = trace_and_load(changed(cell, change), arguments(*TRACED))
    assert_traces_agree(traces, expected, arguments)


@every_layer
@pytest.mark.parametrize("form", ["padded", "unsorted"])
@pytest.mark.parametrize("finish", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_a_frozen_trace_takes_other_sizes(change, form, finish):
    call = Call({"num_layers": 2}, form, has_hx=False)
    model = Model(changed(call.layer(), change), form).eval()
    trace, _ = trace_and_load(model, call.arguments(*TRACED))
    assert_traces_agree([finish(trace)], Model(call.layer(), form), call.arguments)


@pytest.mark.parametrize("form", ["padded", "sorted", "lengths"])
def test_a_trace_of_the_engine_torch_takes_other_sizes(form):
    for call in calls([form]):
        layer = changed(call.layer(), "fastlstm")
        model, layer.engine = Model(layer, form), "auto"
        if not (form == "lengths" and layer.bidirectional and call.has_hx):  # not served
            layer.engine = "torch"
        traces = trace_and_load(model, call.arguments(*TRACED))
        assert_traces_agree(traces, model, call.arguments)


def test_gradients_of_a_trace_with_other_sizes():
    layer = nn.LSTM(3, 4, num_layers=2)
    ours, x = changed(layer, "fastlstm"), torch.randn(5, 7, 3)
    for each in (layer, ours):
        torch.jit.trace(each, x[:2, :3], check_trace=False)(x)[0].square().sum().backward()
    gradients = [[p.grad for p in each.parameters()] for each in (ours, layer)]
    torch.testing.assert_close(*gradients)
