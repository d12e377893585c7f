"""Dropout and zoneout of a module: which values are drawn, and where they act."""

import copy
import random

import op_call
import pytest
import torch
import torch.nn.functional as F
from oracle import oracle
from prepacked_layers import flat
from samples import REFERENCE_AND_AUTO, ZONEOUT, Route, every_op_route, every_route, with_gradients
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import _build, functional
from fastlstm.engine.call import LAYOUTS, LstmCall, Regularizers
from fastlstm.engine.stack import regularize

EXACT = {"rtol": 1e-11, "atol": 1e-12}
WITHOUT_ZONEOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.3}
ALL = WITHOUT_ZONEOUT | dict(zip(ZONEOUT, (0.2, 0.5), strict=True))


def make(route, dtype=torch.float64, **options):
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(3, 4, **options, dtype=dtype, device=route.device)
    zones_out = lstm.zoneout_h or lstm.zoneout_c
    lstm.engine = "reference" if zones_out else route.engine  # only the reference computes zoneout
    return lstm


def draw(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(lstm, *arguments, **keywords):
    """Returns results and gradients of one call after setting the seed."""
    torch.manual_seed(1)
    return with_gradients(flat(lstm(*arguments, **keywords)), list(lstm.parameters()))


def replayed(lstm, x, lengths=None):
    """Returns what `seeded` returns, computed by the oracle with the same draws."""
    directions = 2 if lstm.bidirectional else 1
    weights = lstm._flat_weights
    per_layer = len(weights) // lstm.num_layers
    probabilities = Regularizers(*(getattr(lstm, name) for name in Regularizers._fields))
    layout = LAYOUTS[lstm.bias, lstm.proj_size > 0, False]
    h_n, c_n = [], []
    torch.manual_seed(1)
    for layer in range(lstm.num_layers):
        if layer > 0 and lstm.dropout:
            x = F.dropout(x, lstm.dropout)
        h_0 = x.new_zeros(directions, x.size(1), lstm.proj_size or lstm.hidden_size)
        c_0 = x.new_zeros(directions, x.size(1), lstm.hidden_size)
        layer_weights = weights[layer * per_layer : (layer + 1) * per_layer]
        call, zones = regularize(LstmCall(x, h_0, c_0, layer_weights, layout), probabilities)
        masks = call.h_mask, *(zones or (None, None))
        x, h, c, _ = oracle(call.input, h_0, c_0, call.weights, lengths, None, *masks)
        h_n.append(h)
        c_n.append(c)
    return with_gradients([x, torch.cat(h_n), torch.cat(c_n)], list(lstm.parameters()))


@pytest.mark.parametrize("route", REFERENCE_AND_AUTO)
@pytest.mark.parametrize("seed", range(25))
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_the_oracle_with_the_same_draws(route, seed):
    if route.device != "cpu":
        pytest.skip("the draws of another device are not those of the CPU")
    pick = random.Random(seed).choice
    values = {"num_layers": [1, 2], "bidirectional": [False, True], "proj_size": [0, 2]}
    values |= {"bias": [False, True], **dict.fromkeys(("dropout", *ALL), (0.0, 0.4, 1.0))}
    lstm = make(route, **{name: pick(choices) for name, choices in values.items()})
    steps, batch = pick(range(1, 5)), pick(range(1, 5))
    lengths = [(steps + b) % (steps + 1) for b in range(batch)] if pick([False, True]) else None
    x = draw(steps, batch, 3)
    found = seeded(lstm, x, lengths=None if lengths is None else torch.tensor(lengths))
    torch.testing.assert_close(found, replayed(lstm, x, lengths), **EXACT)


@every_route
def test_every_engine_draws_the_same(route):
    options = WITHOUT_ZONEOUT | {"num_layers": 2, "bidirectional": True, "dropout": 0.5}
    reference = Route("reference", route.device)
    x = draw(5, 3, 3).to(route.device)
    reset = draw(5, 3).to(route.device) > 1
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1]), enforce_sorted=False)
    lengths = {"lengths": torch.tensor([2, 5, 0])}
    for given, keywords in ((x, {}), (x, lengths), (x, {"reset": reset}), (packed, {})):
        results = [seeded(make(r, **options), given, **keywords) for r in (route, reference)]
        torch.testing.assert_close(*results, **EXACT)


@every_route
@pytest.mark.parametrize("proj_size", [0, 2])
def test_eval_mode_gives_the_results_of_nn_lstm(route, proj_size):
    lstm = make(route, **ALL, num_layers=2, proj_size=proj_size).eval()
    lstm.engine = route.engine
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, 2, proj_size=proj_size, dtype=torch.float64, device=route.device)
    x = draw(5, 2, 3).to(route.device)
    torch.testing.assert_close(seeded(lstm, x), seeded(theirs.eval(), x), **EXACT)
    plain = make(route, num_layers=2, proj_size=proj_size)
    assert torch.equal(seeded(plain, x)[0], seeded(lstm, x)[0])  # the same bits


def test_what_is_drawn():
    torch.manual_seed(0)
    x, h_0, c_0 = torch.ones(50, 40, 30), torch.zeros(2, 40, 20), torch.zeros(2, 40, 25)
    rates = Regularizers(0.25, recurrent_dropout=0.25, zoneout_h=0.1, zoneout_c=0.3)
    drawn, (zoneout_h, zoneout_c) = regularize(LstmCall(x, h_0, c_0, []), rates)
    dropped, h_mask = drawn.input, drawn.h_mask
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))  # the same at every step
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert h_mask is not None and h_mask.shape == h_0.shape
    assert zoneout_h is not None and zoneout_h.shape == (2, 50, 40, 20)
    assert zoneout_c is not None and zoneout_c.shape == (2, 50, 40, 25)
    assert set(zoneout_h.unique().tolist()) == {0.0, 1.0}
    masks = dropped == 0, h_mask == 0, zoneout_h, zoneout_c
    for mask, rate in zip(masks, (0.25, 0.25, 0.1, 0.3), strict=True):
        count = min(mask.numel(), 40 * 30)  # every step has the same mask of the input
        assert abs(mask.float().mean() - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
    call = LstmCall(x, h_0, c_0, [])
    same, zones = regularize(call, Regularizers())
    assert zones == [] and all(a is b for a, b in zip(same, call, strict=True))


def test_input_dropout_of_packed_input_is_that_of_padded_input():
    x, lengths = draw(5, 3, 4), torch.tensor([5, 3, 1])
    packed = pack_padded_sequence(x, lengths)
    torch.manual_seed(0)
    h_0, rates = torch.zeros(1, 3, 2), Regularizers(input_dropout=0.5)
    padded = regularize(LstmCall(x, h_0, h_0, []), rates)[0].input
    torch.manual_seed(0)
    call = LstmCall(packed.data, h_0, h_0, [], batch_sizes=packed.batch_sizes)
    data = regularize(call, rates)[0].input
    assert torch.equal(data, pack_padded_sequence(padded, lengths).data)


def test_auto_takes_the_reference_for_zoneout():
    x, by_auto = draw(5, 2, 3), fastlstm.LSTM(3, 4, zoneout_h=0.5, dtype=torch.float64)
    by_name = copy.deepcopy(by_auto)
    by_name.engine = "reference"
    assert all(map(torch.equal, seeded(by_auto, x), seeded(by_name, x)))
    by_name.engine = "stepwise"
    with pytest.raises(RuntimeError, match="'stepwise' .*: only the reference computes zoneout"):
        by_name(x)
    assert torch.isfinite(by_name.eval()(x)[0]).all()


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("norms", [False, True])
def test_every_dtype(kind, form, norms):
    reset = form != "packed"
    op_call.Call(kind, form, 2, reset=reset, h_mask=True, norms=norms).check("auto")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [-0.1, 1.5, True, "half"])
def test_invalid_probability(name, value):
    message = rf"{name}: expected a number in range \[0, 1\], got {value!r}"
    with pytest.raises(ValueError, match=message):
        fastlstm.LSTM(3, 4, **{name: value})
    lstm = fastlstm.LSTM(3, 4)
    with pytest.raises(ValueError, match=message):
        setattr(lstm, name, value)
    options = {"training": True, name: value}
    with pytest.raises(ValueError, match=message):
        functional.lstm(torch.zeros(2, 1, 3), None, lstm._flat_weights, **options)


def test_no_option_of_the_function_is_on_by_default():
    lstm, x = nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    for options in ({"training": True, "engine": "torch"}, dict.fromkeys(("dropout", *ALL), 0.9)):
        output, _ = functional.lstm(x, None, lstm._flat_weights, num_layers=2, **options)
        torch.testing.assert_close(output, lstm(x)[0])


@every_op_route
@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_a_mask_that_does_not_fit(route, wrong):
    x = torch.zeros(5, 2, 3, device=route.device)
    state, weights = x.new_zeros(1, 2, 4), [x.new_zeros(16, 3), x.new_zeros(16, 4)]
    mask = x.new_zeros(1, 2, 5) if wrong == "shape" else state.double()
    call = LstmCall(x, state, state, weights, "", h_mask=mask)
    with pytest.raises(RuntimeError, match=f"lstm: expected h_mask of {wrong}"):
        torch.ops.fastlstm.lstm(*call, engine=route.engine)
