"""convert changes the class of a module and nothing else."""

import copy
import functools
import pickle
import types
import warnings
from abc import ABC

import pytest
import torch
from samples import every_copy
from torch import nn
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm import convert
from fastlstm.engine import engines

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
needs_kernels = pytest.mark.skipif(not fastlstm._build.has_kernels("cpu"), reason="no CPU kernels")
x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 2, 3)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 3), nn.Tanh())])
        self.shared = nn.LSTM(3, 3, dropout=0.0)
        self.blocks.append(self.shared)
        self.cell = nn.LSTMCell(3, 4, bias=False)
        self.gru = nn.GRU(3, 3)
        self.double()

    def forward(self, x):
        y = self.blocks[0](self.encoder(x)[0])
        y = self.shared(self.blocks[1](y)[0])[0]
        return self.cell(self.gru(y)[0][-1])[0]


def is_converted(module, keep_class=True):
    name = type(module).__name__
    is_torch = isinstance(module, getattr(nn, name))
    return isinstance(module, getattr(fastlstm, name)) and is_torch == keep_class


@pytest.mark.parametrize("keep_class", [True, False])
def test_a_model_both_ways(keep_class):
    model = Model()
    text, expected = repr(model), model(x)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    optimizer, modules = torch.optim.SGD(model.parameters(), lr=0.1), dict(model.named_modules())
    assert convert(model, keep_class=keep_class) is convert(model, keep_class=keep_class) is model
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(is_converted(m, keep_class) for m in (model.encoder, model.cell, model.shared))
    assert type(model.gru) is nn.GRU and model.blocks[1] is model.shared
    converted = dict(model.named_parameters())
    assert list(converted) == list(parameters) and list(model.state_dict()) == keys
    assert all(converted[name] is parameter for name, parameter in parameters.items())
    assert repr(model) == text.replace("LSTM", "fastlstm.LSTM")
    torch.testing.assert_close(model(x), expected, **CLOSE)
    model(x).sum().backward()
    optimizer.step()
    stepped = model(x)
    assert not torch.equal(stepped, expected)
    assert convert(model, to="torch") is model
    assert type(model.encoder) is nn.LSTM and type(model.cell) is nn.LSTMCell
    assert model.blocks[1] is model.shared
    assert all(p is parameters[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(x), stepped, **CLOSE)


def test_keep_class_can_be_changed_later():
    model = convert(convert(Model()), keep_class=False)
    for again in (model, convert(model)):  # convert does not make it an nn.LSTM again
        assert [*map(type, (again.encoder, again.cell))] == [fastlstm.LSTM, fastlstm.LSTMCell]


both_ways = pytest.mark.parametrize("to", ["fastlstm", "torch"])


def layer(to, **options):
    torch.manual_seed(0)
    made = nn.LSTM(3, 5, **options).double()
    return made if to == "fastlstm" else convert(made)


@both_ways
def test_a_replaced_forward(to):
    """accelerate replaces and restores the forward of a module in this way."""
    lstm = layer(to)
    lstm._old_forward = lstm.forward
    lstm.forward = functools.partial(lambda module, x: module._old_forward(2 * x), lstm)
    expected = lstm(x)
    converted = convert(lstm, to)
    torch.testing.assert_close(converted(x), expected, **CLOSE)
    assert converted._old_forward == types.MethodType(type(converted).forward, converted)
    converted.forward = converted._old_forward
    converted(x)
    convert(converted, "torch" if to == "fastlstm" else "fastlstm")(x)


@both_ways
def test_a_layer_that_compiles_itself(to):
    lstm = layer(to, num_layers=2, dropout=0.5)
    lstm.compile(backend="eager")
    lstm(x)
    converted = convert(lstm, to).eval()
    torch.testing.assert_close(converted(x), converted.forward(x), **CLOSE)


class Plain(nn.LSTM, ABC):
    """A subclass that adds nothing but a metaclass."""


class Named(nn.LSTM):
    """A subclass with attributes and methods of the same names as those of fastlstm.LSTM."""

    zoneout_c = "the user's"

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight_dropout, self.recurrent_dropout = 0.5, nn.Dropout(0.5)
        self.engine = "v8"

    def _run(self, *_):
        raise AssertionError("fastlstm called a method of the user")

    _check = _keep_flat = _forward_packed = _forward_at_once = _forced_engine = _run

    def forward(self, input, hx=None):
        if not hasattr(self, "zoneout_h"):
            self.zoneout_h = []
        self.zoneout_h.append(1)
        self.engine += "!"
        return super().forward(input, hx)


def test_attributes_of_a_subclass_stay():
    own = Named(3, 5).double()
    expected = own(x)
    back = [convert(own), convert(own, to="torch")]
    convert(own)
    torch.testing.assert_close(own(x), expected, **CLOSE)
    own(nn.utils.rnn.pack_sequence([x[:, 0]]))
    assert own.engine == "v8!!!" and own.weight_dropout == 0.5 and len(own.zoneout_h) == 3
    assert own.zoneout_c == "the user's" and isinstance(own.recurrent_dropout, nn.Dropout)
    assert not hasattr(own, "input_dropout") and back == [own, own]


def test_attributes_that_users_set_stay():
    lstm = layer("fastlstm")
    lstm.engine, lstm.zoneout_h = "v8", nn.Linear(1, 1)
    convert(lstm)(x)
    assert lstm.engine == "v8" and isinstance(lstm.zoneout_h, nn.Linear)
    lstm.engine = "v9"
    assert lstm.engine == "v9" and lstm.input_dropout == 0.0
    lstm.input_dropout = 0.5
    assert not torch.equal(lstm(x)[0], lstm.eval()(x)[0])


@pytest.mark.parametrize("name", ["compare", "convert", "prepack", "unpack"])
def test_an_argument_that_is_not_a_module(name):
    for argument, got in ((nn.LSTM, "the class LSTM"), ([nn.LSTM(3, 4)], "list")):
        with pytest.raises(TypeError, match=f"model: expected a module, got {got}"):
            getattr(fastlstm, name)(argument)


@both_ways
def test_a_model_without_lstms_is_an_error(to):
    with pytest.raises(ValueError, match="convert: expected a model with an LSTM or LSTMCell"):
        convert(nn.Sequential(nn.GRU(3, 4)), to)
    already = nn.Sequential(nn.LSTM(3, 4) if to == "torch" else fastlstm.LSTM(3, 4))
    assert convert(already, to) is already


def test_options_that_nn_lstm_lacks_are_named_once_per_module():
    first = fastlstm.LSTM(3, 3, dropout=0.0, recurrent_dropout=0.5, zoneout_c=0.1)
    model = nn.ModuleDict({"a": first, "again": first, "plain": fastlstm.LSTM(3, 5)})
    model["last"] = nn.Sequential(fastlstm.LSTM(3, 5, weight_dropout=0.2))
    first.engine = "reference"
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model, to="torch")
    assert [str(warning.message) for warning in caught] == [
        "convert: a goes on without recurrent_dropout=0.5, zoneout_c=0.1, which nn.LSTM lacks",
        "convert: last.0 goes on without weight_dropout=0.2, which nn.LSTM lacks",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    assert not hasattr(model["a"], "engine")  # nn.LSTM has no such attribute
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convert(model)["a"].zoneout_c == 0.1  # convert kept the option


@pytest.mark.parametrize("cls", [nn.LSTM, nn.LSTMCell])
def test_parametrizations_both_ways(cls):
    module = cls(3, 5).double()
    name = "weight_hh_l0" if cls is nn.LSTM else "weight_hh"
    parametrizations.weight_norm(module, name)
    argument = x if cls is nn.LSTM else x[0]
    expected = module(argument)
    converted = convert(module)
    assert isinstance(converted, (fastlstm.LSTM, fastlstm.LSTMCell))
    torch.testing.assert_close(converted(argument), expected, **CLOSE)
    getattr(converted.parametrizations, name).original0.data.zero_()
    assert getattr(converted, name).count_nonzero() == 0
    back = convert(converted, to="torch")
    assert isinstance(back, cls) and getattr(back, name).count_nonzero() == 0
    torch.testing.assert_close(back(argument), converted(argument), **CLOSE)


class Doubled(nn.LSTM):
    def __init__(self, input_size, hidden_size, **options):
        super().__init__(input_size, hidden_size, **options)
        self.head = nn.LSTM(3, 2)

    def forward(self, input, hx=None, times=2):
        output, state = super().forward(input, hx)
        return output * times, state

    def extra_repr(self):
        return "doubled"


class Mixin:
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


Wrapped = type("Wrapped", (Mixin, type(convert(nn.LSTM(1, 1)))), {"__module__": __name__})


@every_copy
@pytest.mark.parametrize("cls", [nn.LSTM, Doubled, nn.LSTMCell])
def test_a_class_on_top_of_a_converted_one_is_copied(copied, cls):
    """Libraries add methods to a module in this way."""
    module = convert(cls(3, 5).double())
    subclass = Wrapped if cls is nn.LSTM else type("Wrapped", (Mixin, type(module)), {})
    module.__class__ = subclass
    argument = x[0] if cls is nn.LSTMCell else x
    if copied is not copy.deepcopy and subclass is not Wrapped:
        with pytest.raises((pickle.PicklingError, AttributeError), match="Wrapped"):
            copied(module)  # pickle finds no class that was made at run time
        return
    other = copied(module)
    assert type(other) is subclass
    torch.testing.assert_close(other(argument), module(argument), rtol=0, atol=0)
    with pytest.warns(UserWarning, match="stays as it is: its class Wrapped derives from fastlstm"):
        convert(module, to="torch")
    assert type(module) is subclass


class DoubledCell(nn.LSTMCell):
    def forward(self, input, hx=None):
        h, c = super().forward(input, hx)
        return h * 2, c


@pytest.fixture
def calls(monkeypatch):
    """Records each call that fastlstm computes: "lstm" or "lstm_cell"."""
    seen, choose = [], engines.choose

    def record(call, *requested):
        seen.append("lstm_cell" if call.is_cell else "lstm")
        return choose(call, *requested)

    monkeypatch.setattr(engines, "choose", record)
    monkeypatch.setattr(engines, "auto_means_op", lambda *tensors: False)
    return seen


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("cls", [Doubled, Plain, DoubledCell])
def test_a_subclass_keeps_its_methods_and_runs_fastlstm(cls, batched, calls):
    own = cls(3, 5).double()
    model, text = nn.ModuleDict({"own": own}), repr(own)
    argument = x if cls is not DoubledCell else x[0]
    argument = argument if batched else argument.select(-2, 0)
    expected = own(argument)
    assert calls == []
    converted = convert(model)["own"]
    assert isinstance(converted, cls) and isinstance(converted, (fastlstm.LSTM, fastlstm.LSTMCell))
    assert converted is own
    assert repr(converted) == text.replace("(head): LSTM", "(head): fastlstm.LSTM")
    torch.testing.assert_close(converted(argument), expected, **CLOSE)
    assert set(calls) == {"lstm_cell" if cls is DoubledCell else "lstm"}
    assert type(convert(model)["own"]) is type(converted) is type(convert(cls(3, 5)))
    calls.clear()
    back = convert(model, to="torch")["own"]
    assert type(back) is cls and calls == []
    torch.testing.assert_close(back(argument), expected, **CLOSE)


@every_copy
@pytest.mark.parametrize("make", [Model, lambda: Doubled(3, 5).double()])
def test_a_converted_module_is_copied_and_saved(copied, make):
    converted = convert(make())
    other = copied(converted)
    modules = zip(converted.modules(), other.modules(), strict=True)
    assert all(type(a) is type(b) and a is not b for a, b in modules)
    assert not {*converted.parameters()} & {*other.parameters()}
    torch.testing.assert_close(other(x), converted(x), rtol=0, atol=0)


class Stack(nn.Module):
    """LSTMs of several kinds with other operators between them; torch.compile breaks the graph."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(3, 3)
        # torch 2.15 cannot compile Doubled, converted or not (InternalTorchDynamoError).
        own = Plain if torch.__version__.startswith("2.15") else Doubled
        self.second = own(3, 3, num_layers=2, bias=False)
        self.third = nn.LSTM(3, 3, num_layers=3)
        self.double()

    def forward(self, x):
        x = self.first(x.sin())[0].cos()
        x = self.second(x)[0].exp()
        return self.third(x)[0].sum()


@pytest.mark.parametrize("model", [Stack, lambda: nn.LSTM(3, 5).double()], ids=["stack", "itself"])
def test_torch_compile_makes_the_graphs_of_nn_lstm(model):
    from torch._dynamo.testing import CompileCounter

    graphs = []
    for change in (lambda model: model, convert):
        torch.manual_seed(0)
        torch._dynamo.reset()
        changed, counter = change(model()), CompileCounter()
        compiled = torch.compile(changed, backend=counter)
        for steps in range(1, 12):
            y = torch.randn(steps, 2, 3, dtype=torch.float64)
            torch.testing.assert_close(compiled(y), changed(y), **CLOSE)
        graphs.append((counter.frame_count, counter.op_count))
    assert graphs[0] == graphs[1]


@needs_kernels
@pytest.mark.parametrize("allow_rnn", [True, False])
def test_one_graph(allow_rnn):
    model = convert(nn.Sequential(nn.LSTM(3, 5)).double(), keep_class=allow_rnn)
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        found = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, model(x), **CLOSE)


@pytest.mark.parametrize(
    "name", "permute_hidden _update_flat_weights _weights_have_changed _flat_weights".split()
)
def test_a_subclass_that_overrides_a_part_of_forward_stays(name):
    make_member = (lambda f: property(f, f)) if name == "_flat_weights" else (lambda f: f)
    own = type("Own", (nn.LSTM,), {name: make_member(lambda self, *_: [])})
    model = nn.ModuleDict({"first": nn.LSTM(3, 5), "own": nn.Sequential(own(3, 5))})
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model)
    (warning,) = caught
    message = f"own.0 stays as it is: its class Own overrides {name}, which LSTM.forward uses"
    assert str(warning.message) == f"convert: {message}" and warning.filename == __file__
    assert is_converted(model["first"]) and type(model["own"][0]) is own


class Scaled(list):
    """Weights that are doubled when nn.LSTM reads them."""

    def __iter__(self):
        return (2 * weight for weight in super().__iter__())


def scales(lstm):
    class Own(nn.LSTM):
        """Computes its `_flat_weights` from its parameters in every call."""

        @property
        def _flat_weights(self):
            return [2 * weight for weight in self.parameters()]

        @_flat_weights.setter
        def _flat_weights(self, weights):
            pass

    lstm.__class__ = Own
    return "its class scales.<locals>.Own overrides _flat_weights"


def holds_scaled(lstm):
    lstm._flat_weights = Scaled(lstm._flat_weights)
    return "it has its own _flat_weights"


def permutes(lstm):
    lstm.permute_hidden = lambda hx, permutation: (-hx[0], -hx[1])
    return "it has its own permute_hidden"


@pytest.mark.parametrize("change", [scales, holds_scaled, permutes])
@pytest.mark.parametrize("keep_class", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_an_lstm_with_flat_weights_of_its_own_stays(change, keep_class, options):
    model = nn.ModuleDict({"first": nn.LSTM(3, 5), "own": nn.LSTM(3, 5, **options).double()})
    why = change(model["own"])
    expected = model["own"](x)
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model, keep_class=keep_class)
    assert [str(warning.message) for warning in caught] == [
        f"convert: own stays as it is: {why}, which LSTM.forward uses"
    ]
    torch.testing.assert_close(model["own"](x), expected, rtol=0, atol=0)
    assert [isinstance(m, fastlstm.LSTM) for m in model.values()] == [True, False]


@needs_kernels
def test_prepack_leaves_a_subclass_as_convert_made_it():
    model = nn.ModuleDict({"own": Doubled(3, 5), "plain": nn.LSTM(3, 5)}).double().eval()
    expected = model["own"](x)
    with pytest.warns(UserWarning, match="^prepack: own stays as it is: its class Doubled is more"):
        fastlstm.prepack(model, convert=True)
    assert isinstance(model["own"], fastlstm.LSTM) and isinstance(model["own"], Doubled)
    assert [type(m).__name__ for m in (model["plain"], model["own"].head)] == ["PrepackedLSTM"] * 2
    torch.testing.assert_close(model["own"](x), expected, **CLOSE)


class DoubledFast(fastlstm.LSTM):
    def forward(self, input, *args, **options):
        output, *rest = super().forward(input, *args, **options)
        return output * 2, *rest


def test_a_subclass_of_fastlstm_cannot_become_nn_lstm():
    model = nn.ModuleDict({"own": DoubledFast(3, 5), "plain": fastlstm.LSTM(3, 5)})
    with pytest.warns(UserWarning, match="^convert: own stays as it is: .* DoubledFast derives"):
        convert(model, to="torch")
    assert type(model["own"]) is DoubledFast and type(model["plain"]) is nn.LSTM


def test_an_overridden_forward_sees_an_unbatched_call_once():
    own = DoubledFast(3, 5).double()
    expected = fastlstm.LSTM.forward(own, x[:, :1])[0].squeeze(1) * 2
    torch.testing.assert_close(own(x[:, 0])[0], expected, **CLOSE)


def test_sharded_and_scripted_modules_are_refused():
    from torch.distributed.fsdp import FSDPModule

    sharded = nn.LSTM(3, 5)
    sharded.__class__ = type("FSDPLSTM", (FSDPModule, nn.LSTM), {})
    with pytest.raises(TypeError, match="net: FSDPLSTM is sharded; convert before fully_shard"):
        convert(nn.ModuleDict({"first": nn.LSTM(3, 5), "net": sharded}))
    with pytest.raises(TypeError, match="0.*is scripted"):
        convert(nn.Sequential(torch.jit.script(nn.LSTM(3, 5))))


@pytest.mark.parametrize("keep_class", [True, False])
def test_a_compiled_model_is_compiled_again(keep_class, calls):
    compiled = torch.compile(Model(), backend="eager")
    expected = compiled(x)
    assert convert(compiled, keep_class=keep_class) is compiled
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected, **CLOSE)
    assert set(calls) == {"lstm", "lstm_cell"}
    torch.testing.assert_close(convert(compiled, to="torch")(x), expected, rtol=0, atol=0)
