"""The errors of prepack and of prepacked layers."""

import pickle

import pytest
import torch
from prepacked_layers import Tagger, X, in_a_model, prepacked_copy, same_bits, small
from torch import nn
from torch.autograd.forward_ad import dual_level, make_dual
from torch.func import jvp, vmap
from torch.nn.utils import prune

from fastlstm import LSTM, LayerNormLSTM, LSTMCell, PrepackedLSTM, _build, prepack

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")

X6, W = X[..., :6], nn.Parameter(torch.zeros(40, 6))  # the layers of the tests have 6 inputs


@pytest.mark.parametrize("call, error, message", [
    (lambda m: m.train(), RuntimeError, "PrepackedLSTM has no training mode: its weights"),
    (lambda m: m.to(torch.float64), RuntimeError, "of torch.float32 on the CPU cannot"),
    (lambda m: m.to("meta"), RuntimeError, r"fastlstm.unpack\(model\)"),
    (lambda m: m.weight_ih_l0, AttributeError, r"read it from state_dict\(\), or .*unpack"),
    (lambda m: m.weight_hr_l0, AttributeError, "no attribute 'weight_hr_l0'"),
    (lambda m: setattr(m, "engine", "torch"), AttributeError, "engine: a PrepackedLSTM has no"),
    (lambda m: setattr(m, "zoneout_h", 0.5), AttributeError, "zoneout_h: a PrepackedLSTM has"),
    (lambda m: m.register_parameter("weight_ih_l0", W), AttributeError, "l0: .* load_state_dict"),
    (lambda m: setattr(m, "weight_ih_l0", W.data), AttributeError, "ih_l0: .* load_state_dict"),
    (lambda m: m(X), RuntimeError, "equal to input_size. Expected 6, got 16"),
    (lambda m: m(X6.half()), ValueError, "input dtype .*float16.* weight dtype"),
    (lambda m: m(X6, (torch.zeros(1, 3, 9),) * 2), RuntimeError, r"3, 10\), got \[1, 3, 9\]"),
    (lambda m: m(X6, (torch.zeros(2, 3, 10),) * 2), RuntimeError, r"\[0\] size \(1, 3, 10\)"),
    (lambda m: m(X6.clone().requires_grad_()), RuntimeError, "give no gradients"),
    (lambda m: vmap(lambda x: m(x)[0])(X6[None]), RuntimeError, "gradients and serve no"),
    (lambda m: jvp(lambda x: m(x)[0], (X6,), (X6,)), RuntimeError, "give no gradients"),
    (dual_level()(lambda m: m(make_dual(X6, X6))), RuntimeError, "give no gradients"),
])  # fmt: skip
@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
def test_errors_of_a_layer(call, error, message, weights):
    prepacked = prepacked_copy(small(), weights)
    before = prepacked.state_dict()
    with pytest.raises(error, match=message):
        call(prepacked)
    assert same_bits(list(prepacked.state_dict().values()), list(before.values()))
    assert prepacked.eval() is prepacked.float() is prepacked.cpu() is prepacked.requires_grad_()
    assert not list(prepacked.parameters()) and not prepacked.training
    prepacked.flatten_parameters()  # code for nn.LSTM calls it


@pytest.mark.parametrize("call, error, message", [
    (lambda m: m(X[0]), RuntimeError, "input_size: got 16.* expected 6"),
    (lambda m: m(X6[0].half()), RuntimeError, "same dtype, but got Half and Float"),
    (lambda m: m(X6), ValueError, "Expected input to be 1D or 2D, got 3D"),
    (lambda m: m(X6[0], torch.zeros(3, 10)), TypeError, "must be tuple of Tensors"),
    (lambda m: m(X6[0], (torch.zeros(3, 9),) * 2), RuntimeError, "got 9.* expected 10"),
    (lambda m: m(X6[0].clone().requires_grad_()), RuntimeError, "give no gradients"),
    (lambda m: vmap(m)(X6), RuntimeError, "torch.func transforms"),
])  # fmt: skip
def test_errors_of_a_cell(call, error, message):
    with pytest.raises(error, match=message):
        call(prepacked_copy(LSTMCell(6, 10).eval(), torch.bfloat16))


def test_transforms_of_other_values():
    prepacked = prepacked_copy(small())
    expected = prepacked(X6)
    with dual_level():
        assert same_bits(prepacked(X6), expected)
    shifted = vmap(lambda number: number + prepacked(X6)[0])(torch.zeros(2))
    assert torch.equal(shifted[1], expected[0])


OwnLSTM = type("OwnLSTM", (LSTM,), {})
PRUNED = prune.l1_unstructured(LSTM(3, 4), "weight_hh_l0", 0.5)
WITH_NAN, WITH_NONE = LSTM(3, 4), LSTM(3, 4)
WITH_NAN.weight_hh_l0.data[2, 1], WITH_NONE.weight_hh_l0 = torch.nan, None


@pytest.mark.parametrize("bad, arguments, error, message", [
    (LSTM(3, 4), ("int8",), ValueError, "weights: expected None or one of .* got 'int8'"),
    (LSTM(3, 4), (torch.int16,), ValueError, "got torch.int16"),
    (LSTM(3, 4).double(), (torch.int8,), ValueError, "bad is .*64: .* of None, torch.float64"),
    (LSTM(3, 4, dtype=torch.float16), (torch.float32,), ValueError, "bad is torch.float16"),
    (LSTM(3, 4, device="meta"), (), ValueError, "expected bad on the CPU, got meta"),
    (LSTMCell(3, 0), (), ValueError, "expected sizes of at least 1 in bad"),
    (WITH_NAN, (torch.int8,), ValueError, "bad: weight_hh_l0: .* finite .* int8, got nan"),
    (WITH_NONE, (), TypeError, "weight_hh_l0 of bad to be a tensor, got None"),
    (PRUNED, (), ValueError, "weight_hh_l0 of bad is computed by a hook .*; make it permanent"),
])  # fmt: skip
@pytest.mark.parametrize("convert", [False, True])
def test_no_layer_is_prepacked_if_one_cannot_be(bad, arguments, error, message, convert):
    model = in_a_model(good=LSTM(3, 4), other=nn.LSTM(3, 4), bad=bad)
    before = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        prepack(model, *arguments, convert=convert)
    assert [type(m) for m in model.modules()] == before


def test_a_model_that_prepack_cannot_change():
    for model, name in ((Tagger(), "lstm"), (LSTM(3, 4), "the model itself")):
        with pytest.raises(ValueError, match=f"expected {name} in eval mode: call model.eval"):
            prepack(model)
    for model, hint in (
        (nn.Linear(2, 2), "$"),
        (nn.LSTM(3, 4), "; convert=True takes nn.LSTM and nn.LSTMCell$"),
        (LayerNormLSTM(3, 4), ", got one with LayerNormLSTM, which cannot be .*: it has layer n"),
        (OwnLSTM(3, 4), ", got one with OwnLSTM, which cannot be .* or is a subclass of your"),
    ):
        with pytest.raises(ValueError, match=f"a model with a fastlstm.LSTM or LSTMCell{hint}"):
            prepack(model.eval())
    with pytest.raises(ValueError, match="one that is prepacked already; fastlstm.unpack turns it"):
        prepack(prepacked_copy(LSTM(3, 4).eval()))


@pytest.mark.parametrize("kind", [LayerNormLSTM, OwnLSTM])
def test_a_subclass_stays_unchanged(kind):
    model = in_a_model(a=kind(3, 4), b=LSTM(3, 4), c=nn.LSTM(3, 4))
    message = f"prepack: a stays as it is: its class {kind.__name__} "
    with pytest.warns(UserWarning, match=message) as caught:
        prepack(model)
    assert [warning.filename for warning in caught] == [__file__]
    assert [*map(type, model.values())] == [kind, PrepackedLSTM, nn.LSTM]


def test_without_the_extension(monkeypatch):
    saved = pickle.dumps(prepacked_copy(small()))
    monkeypatch.setattr(_build, "_why_unavailable", "it was not built")
    monkeypatch.setattr(_build, "device_types", ())
    for call in (lambda: prepack(small()), lambda: pickle.loads(saved)):
        with pytest.raises(RuntimeError, match="prepack needs the extension: it was not built"):
            call()
