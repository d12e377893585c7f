"""Attributes, buffers and hooks that users add survive prepack and unpack, or are refused."""

import copy
from types import MethodType

import pytest
import torch
from prepacked_layers import X, in_a_model, prepacked_copy, same_bits, small
from torch import nn
from torch.nn.utils import parametrize

import fastlstm
from fastlstm import LSTM, LSTMCell, _build, prepack, unpack

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
KINDS = {
    "LSTM": lambda: small(),
    "LSTMCell": lambda: LSTMCell(6, 10).eval(),
    "nn.LSTM": lambda: nn.LSTM(6, 10).eval(),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def run(layer):
    return layer(X[0, :, :6])


def with_additions(layer):
    layer.tag, layer._private = ["kept"], "kept too"
    layer.register_buffer("mean", torch.arange(3.0))
    layer.register_buffer("scratch", torch.ones(2), persistent=False)
    layer.register_parameter("gain", nn.Parameter(torch.full((4,), 2.0)))
    layer.adapter = nn.Linear(2, 3)
    layer.own_sizes = MethodType(lambda self: (type(self), self.hidden_size), layer)
    layer.weight_hh_l0_frozen = None
    next(layer.parameters()).requires_grad_(False)
    return layer


def test_a_weight_with_two_names_stays_frozen():
    layer = LSTM(6, 10).eval()
    layer.bias_hh_l0 = layer.bias_ih_l0.requires_grad_(False)
    back = unpack(prepack(layer))
    assert not back.bias_ih_l0.requires_grad and not back.bias_hh_l0.requires_grad


@every_kind
def test_additions_survive_prepack_and_unpack(kind):
    layer = with_additions(KINDS[kind]())
    before, adapter = layer.state_dict(), layer.adapter
    prepacked = prepack(layer, convert=True)
    back = unpack(copy.deepcopy(prepacked))
    for now in (prepacked, copy.deepcopy(prepacked), back):
        assert list(now.state_dict()) == list(before)
        assert same_bits(list(now.state_dict().values()), list(before.values()))
        assert now.tag == ["kept"] and now._private == "kept too"
        assert torch.equal(now.scratch, torch.ones(2)) and now.own_sizes() == (type(now), 10)
        assert {name for name, _ in now.named_parameters()} >= {"gain", "adapter.weight"}
        assert not now.training and now.adapter.training
    assert prepacked.adapter is adapter and prepacked.gain is layer.gain
    pairs = zip(back.parameters(), layer.parameters(), strict=True)
    assert all(a.requires_grad == b.requires_grad for a, b in pairs)
    state = {k: v + 1 for k, v in before.items()}
    prepacked.load_state_dict(state)
    assert same_bits(list(prepacked.state_dict().values()), list(state.values()))
    with pytest.raises(RuntimeError, match='(?s)Missing.*"gain". .*Unexpected.*"other". $'):
        prepacked.load_state_dict({**{k: v for k, v in state.items() if k != "gain"}, "other": X})


def register_all(layer, log):
    """Registers hooks of each kind. A hook appends its name and its module to `log`."""
    note = lambda name: lambda module, *_: log.append((name, module))
    layer.register_forward_pre_hook(note("before"))
    layer.register_forward_pre_hook(note("by name"), with_kwargs=True)
    layer.register_forward_hook(note("after"))
    layer.register_forward_hook(note("always"), always_call=True)
    layer.register_full_backward_hook(note("backward"))
    layer.register_state_dict_pre_hook(note("saves"))
    layer.register_state_dict_post_hook(note("saved"))
    layer.register_load_state_dict_pre_hook(note("loads"))
    layer.register_load_state_dict_post_hook(note("loaded"))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@every_kind
def test_hooks_survive_prepack_and_unpack(kind):
    log = []
    layer = KINDS[kind]()
    register_all(layer, log)
    prepacked = prepack(layer, convert=True)
    back = unpack(copy.deepcopy(prepacked))
    del layer  # no hook may need the old layer
    forward = ["by name", "before", "after", "always"]
    for now, names in ((prepacked, forward), (back, [*forward, "backward"])):
        log.clear()
        h = run(now)[0]
        if h.requires_grad:
            h.sum().backward()
        assert {name for name, _ in log} == set(names) and all(m is now for _, m in log)
        log.clear()
        now.load_state_dict(now.state_dict())
        assert [name for name, _ in log] == ["saves", "saved", "loads", "loaded"]
        assert all(module is now for _, module in log)
    log.clear()
    with pytest.raises(RuntimeError, match="got 16"):
        prepacked(X[0])
    assert "always" in {name for name, _ in log} and "after" not in {name for name, _ in log}


def test_a_hook_may_rename_the_weights():
    lstm = small()
    rename = lambda a, b: lambda _, state, at, *__: state.update({at + b: state.pop(at + a)})
    lstm.register_state_dict_post_hook(rename("weight_ih_l0", "W"))
    lstm.register_load_state_dict_pre_hook(rename("W", "weight_ih_l0"))
    prepacked, other = prepacked_copy(lstm), prepacked_copy(lstm, torch.int8)
    assert "W" in prepacked.state_dict()
    prepacked.load_state_dict({k: v * 2 for k, v in lstm.state_dict().items()})
    assert torch.equal(prepacked.state_dict()["W"], lstm.weight_ih_l0 * 2)
    prepacked.load_state_dict(other.state_dict())


@pytest.mark.parametrize("way", [prepack, unpack])
def test_nothing_is_shared(way):
    calls, old = [], prepack(small()) if way is unpack else small()
    handle = old.register_forward_hook(lambda module, *_: calls.append(module))
    new = way(old)
    handle.remove()
    new.register_forward_pre_hook(lambda module, _: calls.append(module))
    new.register_buffer("more", torch.ones(1), persistent=False)
    new.inner, new.gain = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    with torch.no_grad():
        run(old)
        assert calls == []
        expected = run(new)
        assert calls == [new, new]
        for tensor in (*old.parameters(), *old.buffers()):
            tensor.zero_()
        assert same_bits(run(new), expected)
    for name in ("more", "inner", "gain"):
        assert hasattr(new, name) and not hasattr(old, name)
    assert "more" not in old._non_persistent_buffers_set


def test_layers_inside_a_layer():
    lstm = small()
    lstm.inner = in_a_model(cell=LSTMCell(3, 4))
    prepacked = prepack(lstm)
    assert type(prepacked.inner["cell"]) is fastlstm.PrepackedLSTMCell
    assert all(buffer.is_shared() for buffer in prepacked.share_memory().inner.buffers())
    assert type(unpack(prepacked).inner["cell"]) is LSTMCell


@pytest.mark.filterwarnings("ignore:.*(torch.ao|quantiz)")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_additions_to_layers_of_torch_ao(kind):
    model = in_a_model(layer=kind(6, 10))
    model = torch.ao.quantization.quantize_dynamic(model, {kind})
    with pytest.raises(ValueError, match="torch.ao has quantized; fastlstm.prepack"):
        fastlstm.convert(model)
    calls = []
    model["layer"].tag = "kept"
    model["layer"].register_forward_hook(lambda module, *_: calls.append(module))
    prepacked = prepack(model)["layer"]
    run(prepacked)
    assert prepacked.tag == "kept" and calls == [prepacked]
    names = kind(6, 10).state_dict().keys()
    assert {name.removesuffix("_scale") for name in prepacked.state_dict()} == names
    assert not list(prepacked.parameters())


def parametrized(lstm):
    lstm.register_parameter("gain", nn.Parameter(torch.ones(1)))
    parametrize.register_parametrization(lstm, "gain", nn.Identity())


@pytest.mark.parametrize("add, message", [
    (lambda m: setattr(m, "dtype", torch.float32), "lstm has dtype, set on the module"),
    (lambda m: setattr(m, "weights", nn.Linear(1, 1)), "lstm has weights, set on the module"),
    (lambda m: m.register_buffer("prepacked_weight_ih_l0", torch.ones(1)), "prepacked_weight"),
    (lambda m: setattr(m, "_buffer_names", []), "lstm has _buffer_names"),
    (lambda m: m.compile(backend="eager"), "lstm has _compiled_call_impl, set"),
    (lambda m: setattr(m, "forward", lambda x: x), "lstm has a forward of its own"),
    (parametrized, "lstm has gain, set on the module"),
])  # fmt: skip
@pytest.mark.parametrize("source", [LSTM, nn.LSTM])
def test_additions_that_prepack_refuses(add, message, source):
    model = in_a_model(lstm=source(6, 10), other=source(6, 10))
    add(model["lstm"])
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    with pytest.raises(ValueError, match=f"prepack: .*{message}"):
        prepack(model, convert=True)
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before


@every_kind
@pytest.mark.parametrize("prefix", ["", "inside."])
def test_a_layer_that_is_not_prepacked_refuses_int8_weights(kind, prefix):
    layer = fastlstm.convert(KINDS[kind]())
    model = in_a_model(inside=layer) if prefix else layer
    given = prepacked_copy(model, torch.int8).state_dict()
    before = copy.deepcopy(layer.state_dict())
    for options in ({"strict": False}, {"assign": True}, {}):
        with pytest.raises(RuntimeError, match=f"{prefix}weight_ih.*: expected floating weights"):
            model.load_state_dict(given, **options)
        assert same_bits(list(layer.state_dict().values()), list(before.values()))
    model.load_state_dict(prepacked_copy(model, torch.bfloat16).state_dict())

    def dequantize(module, state, at, *_):
        for name in [name for name in state if name.endswith("_scale")]:
            weight = name.removesuffix("_scale")
            state[weight] = state[weight] * state.pop(name).unsqueeze(1)

    layer.register_load_state_dict_pre_hook(dequantize)  # a user may convert the weights
    model.load_state_dict(given)
    expected = unpack(prepacked_copy(model, torch.int8)).state_dict()
    torch.testing.assert_close(model.state_dict(), expected)
