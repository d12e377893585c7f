"""prepack and unpack of whole models: conversion, torch.ao, parametrizations and compilers."""

import pickle

import pytest
import torch
from prepacked_layers import (
    SMALLER_DTYPES,
    Tagger,
    X,
    every_weights,
    in_a_model,
    prepacked_copy,
    prepacked_tagger,
    small,
)
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm import LSTM, LSTMCell, PrepackedLSTM, PrepackedLSTMCell, _build, prepack

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")


@pytest.mark.parametrize(("weights", "levels"), [(None, None), (torch.int8, 254)], ids=str)
def test_unpack(weights, levels):
    torch.manual_seed(0)
    original = Tagger(zoneout_h=0.1, dropout=0.2).eval()
    original.lstm.tag = "kept"
    model = fastlstm.unpack(prepacked_copy(original, weights))
    assert repr(model) == repr(original) and model.lstm.tag == "kept"
    assert not model.training and type(model.lstm) is LSTM and type(model.cell) is LSTMCell
    for name, parameter in model.state_dict().items():
        bound = original.state_dict()[name].abs().max() / levels if levels else 0
        assert (parameter - original.state_dict()[name]).abs().max() <= bound * 1.001, name
    model.train()(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert type(fastlstm.unpack(prepacked_copy(small()))) is LSTM


@pytest.mark.parametrize("keep_class", [True, False])
def test_unpack_gives_the_class_that_convert_made(keep_class):
    model = in_a_model(lstm=nn.LSTM(3, 5).eval(), cell=nn.LSTMCell(3, 5).eval())
    fastlstm.convert(model, keep_class=keep_class)
    classes = [*map(type, model.values())]
    prepacked = pickle.loads(pickle.dumps(prepack(model)))
    assert [*map(type, prepacked.values())] == [PrepackedLSTM, PrepackedLSTMCell]
    assert [*map(type, fastlstm.unpack(prepacked).values())] == classes


@pytest.mark.filterwarnings("ignore:.*(torch.ao|quantiz)")
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_layers_of_torch_ao_keep_their_int8_weights(by_row, kind):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    ao = torch.ao.quantization
    torch.manual_seed(0)
    layer = kind(6, 10, **(options if kind is nn.LSTM else {})).eval()
    qconfig = ao.per_channel_dynamic_qconfig if by_row else ao.default_dynamic_qconfig
    model = ao.quantize_dynamic(in_a_model(layer=layer), {kind: qconfig})
    weights, x = model["layer"].get_weight(), torch.randn(4, 3, 6)
    x = x if kind is nn.LSTM else x[0]
    expected = model["layer"](x)[0]
    prepacked = prepack(model)["layer"]
    state = prepacked.state_dict()
    for name, weight in weights.items():
        assert torch.equal(state[name], weight.int_repr().clamp_min(-127)), name
        scale = weight.q_per_channel_scales() if by_row else weight.q_scale()
        torch.testing.assert_close(state[f"{name}_scale"].double(), torch.ones(40).double() * scale)
    # torch quantizes the input with one scale for a tensor, fastlstm with one for each row.
    assert (prepacked(x)[0] - expected).norm() / expected.norm() < 2 / 127
    floats = fastlstm.unpack(prepacked)
    assert (floats(x)[0] - expected).norm() / expected.norm() < 2 / 127


@pytest.mark.parametrize("source", [nn.LSTM, LSTM])
def test_parametrized_weights_are_prepacked_with_their_value(source):
    torch.manual_seed(0)
    lstm = parametrizations.weight_norm(source(6, 10).eval(), "weight_hh_l0")
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2)
    expected = lstm(X[..., :6])
    prepacked = prepack(lstm, convert=True)
    assert list(prepacked.state_dict()) == list(LSTM(6, 10).state_dict())
    torch.testing.assert_close(prepacked(X[..., :6]), expected)


@pytest.mark.parametrize("weights", [None, *SMALLER_DTYPES], ids=str)
@pytest.mark.parametrize("compiler", ["compile", "trace", "export"])
def test_compilers(compiler, weights, tmp_path):
    model, inputs = prepacked_tagger(weights=weights), [X + 1]
    if compiler == "compile":
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    elif compiler == "trace":
        with pytest.warns(torch.jit.TracerWarning):  # sizes become constants
            compiled = torch.jit.trace(model, (X,), check_trace=False)
    else:
        shapes = ({0: torch.export.Dim("T")},)
        program = torch.export.export(model, (X,), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "tagger.pt2")
        compiled = torch.export.load(tmp_path / "tagger.pt2").module()
        inputs.append(torch.cat([X, X + 1]))
    assert all(torch.equal(compiled(x), model(x)) for x in inputs)


@pytest.mark.parametrize("weights", [None, *SMALLER_DTYPES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(weights, dtype):
    torch.manual_seed(0)
    model = in_a_model(linear=nn.Linear(8, 6), lstm=LSTM(6, 10), cell=LSTMCell(6, 10)).to(dtype)
    prepacked, x = prepack(model, weights), torch.randn(5, 3, 8)
    lstm, cell = prepacked["lstm"], prepacked["cell"]

    def run(cast, h):
        state = cast(torch.ones(1, 3, 10).bfloat16()), torch.ones(1, 3, 10)
        cell_state = tuple(s[0] for s in state)
        h = cast(h)
        return [lstm(h), lstm(h, state), cell(h[0]), cell(h[0], cell_state)]

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        h = prepacked["linear"](x)
        assert h.dtype == torch.bfloat16
        found = run(lambda t: t, h), run(lambda t: t, h.float())
        with pytest.raises(ValueError, match="(expected|input dtype).*float64"):
            lstm(h.double())
    with torch.no_grad():
        expected = run(lambda t: t.to(dtype), h)
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=0)


@every_weights
def test_weights_for_another_processor_are_refused(weights):
    prepacked = prepacked_copy(small(), weights)
    other = prepacked.prepacked_weight_hh_l0
    lanes = other[:64].view(torch.int64)[3:5]  # lanes and vectors of the header
    here = "x".join(map(str, lanes.tolist()))
    lanes[:] = torch.tensor([2, 4])
    message = f"packed for this processor .* panels of {here}.*, got .* panels of 2x4: pack"
    with pytest.raises(RuntimeError, match=message):
        prepacked(X[..., :6])


def test_fake_tensors():
    model = prepacked_tagger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.ones(7, 5, 16)).shape == (5, 4)


def test_opcheck():
    prepacked = prepacked_copy(small(bidirectional=True), torch.int8)
    x = X[..., :6]
    state = torch.zeros(2, 3, 10)
    arguments = (x, state, state, prepacked._op_weights(), prepacked._layout)
    for options in ({}, {"save_cells": True}, {"lengths": torch.tensor([1, 0, 5])}):
        torch.library.opcheck(torch.ops.fastlstm.lstm_prepacked.default, arguments, options)
