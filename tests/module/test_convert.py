"""convert(): modules change their class, and nothing else changes."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import types
import warnings
from abc import ABC
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations, prune

import fastlstm
from fastlstm import convert

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
needs_kernels = pytest.mark.skipif(
    not fastlstm._build.has_kernels("cpu"), reason="no extension to pack for, nor for one graph"
)
x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 2, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 3), nn.Tanh())])
        self.shared = nn.LSTM(3, 3, dropout=0.0)
        self.blocks.append(self.shared)
        self.cell = nn.LSTMCell(3, 4, bias=False)
        self.gru = nn.GRU(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](self.encoder(x)[0])
        y = self.shared(self.blocks[1](y)[0])[0]
        return self.cell(self.gru(y)[0][-1])[0]


def is_ours(module: nn.Module, keep_class: bool = True) -> bool:
    """Whether convert made it of an nn.LSTM or nn.LSTMCell."""
    of_torch, ours = [getattr(package, type(module).__name__) for package in (nn, fastlstm)]
    return isinstance(module, ours) and isinstance(module, of_torch) == keep_class


@pytest.mark.parametrize("keep_class", [True, False])
def test_a_model_both_ways(keep_class: bool) -> None:
    model = Model()
    text, expected = repr(model), model(x)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    assert convert(model, keep_class=keep_class) is model
    assert all(is_ours(m, keep_class) for m in (model.encoder, model.cell, model.shared))
    assert type(model.gru) is nn.GRU and model.blocks[1] is model.shared
    found = dict(model.named_parameters())
    assert list(found) == list(parameters) and list(model.state_dict()) == keys
    assert all(found[name] is parameter for name, parameter in parameters.items())
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


@pytest.mark.parametrize("cls", [nn.LSTM, nn.LSTMCell])
def test_the_root_itself(cls: type[nn.Module]) -> None:
    root = cls(3, 5).double()
    argument = x if cls is nn.LSTM else x[0]
    expected = root(argument)
    assert convert(root) is root and is_ours(root)
    torch.testing.assert_close(root(argument), expected, **CLOSE)
    assert convert(root, to="torch") is root and type(root) is cls
    torch.testing.assert_close(root(argument), expected, rtol=0, atol=0)


def test_converting_twice_changes_nothing() -> None:
    model = convert(Model())
    modules = dict(model.named_modules())
    assert convert(model) is model
    assert all(module is modules[name] for name, module in model.named_modules())


def test_keep_class_can_be_changed_later() -> None:
    model = convert(convert(Model()), keep_class=False)
    assert type(model.encoder) is fastlstm.LSTM and type(model.cell) is fastlstm.LSTMCell
    own = model.encoder
    assert convert(model).encoder is own  # nobody's nn.LSTM


def test_training_mode_attributes_and_requires_grad_stay() -> None:
    lstm = nn.LSTM(3, 5).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    lstm.note = "mine"
    converted = convert(lstm)
    assert not converted.training and converted.note == "mine"
    assert not converted.weight_hh_l0.requires_grad


def test_hooks_stay_and_their_handles_work() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.LSTM(3, 5).double())
    handle = model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("pre"))
    convert(model)(x)
    assert seen == ["pre", "forward"]
    handle.remove()
    model(x)
    assert seen == ["pre", "forward", "pre"]


# Who holds a module in another way than in the tables of its parents.

both_ways = pytest.mark.parametrize("to", ["fastlstm", "torch"])


def layer(to: str, **options: Any) -> Any:
    """A layer that convert(to=to) changes."""
    torch.manual_seed(0)
    made = nn.LSTM(3, 5, **options).double()
    return made if to == "fastlstm" else convert(made)


@both_ways
def test_a_plain_list_of_layers_follows_the_model(to: Any) -> None:
    """As in AllenNLP's stacked LSTMs."""
    model = nn.Sequential(layer(to, num_layers=2, dropout=0.5))
    held = list(model)
    convert(model, to).eval()
    assert held[0] is model[0]
    torch.testing.assert_close(held[0](x), held[0](x), rtol=0, atol=0)


@both_ways
def test_a_forward_that_wraps_the_old_one(to: Any) -> None:
    """As accelerate puts it on a module, and takes it off again."""
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
def test_hooks_that_know_the_module(to: Any) -> None:
    lstm, seen = layer(to), []
    lstm.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    lstm.register_state_dict_pre_hook(lambda module, *_: seen.append(module))
    lstm.scale = 1.0
    lstm.register_forward_hook(types.MethodType(lambda self, *_: seen.append(self.scale), lstm))
    converted = convert(lstm, to)
    converted.load_state_dict(converted.state_dict())
    assert [module is converted for module in seen] == [True, True]
    converted.scale = 3.0
    converted(x)
    assert seen[2:] == [3.0]


@both_ways
def test_a_layer_that_compiles_itself(to: Any) -> None:
    lstm = layer(to, num_layers=2, dropout=0.5)
    lstm.compile(backend="eager")
    lstm(x)
    converted = convert(lstm, to).eval()
    torch.testing.assert_close(converted(x), converted.forward(x), **CLOSE)


class Slotted(nn.LSTM):
    __slots__ = ("note",)

    def __new__(cls, name: str, *sizes: int) -> Any:
        return super().__new__(cls)

    def __init__(self, name: str, *sizes: int) -> None:
        super().__init__(*sizes)
        self.note = name


def test_slots_and_new_with_arguments() -> None:
    own = convert(Slotted("mine", 3, 5))
    assert own.note == "mine" and isinstance(own, fastlstm.LSTM)
    assert convert(own, to="torch").note == "mine" and type(own) is Slotted


class Plain(nn.LSTM, ABC):
    """Only its class is its own, and a metaclass."""


# What is the user's: names, and what happens to subclasses.


class Named(nn.LSTM):
    """Every name is its own, that fastlstm.LSTM has too."""

    zoneout_c = "its own"

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight_dropout, self.recurrent_dropout = 0.5, nn.Dropout(0.5)
        self.engine = "v8"

    def _run(self, *_: Any) -> Any:
        raise AssertionError("nobody calls it")

    _check = _keep_flat = _forward_packed = _forward_at_once = _forced_engine = _run

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        if not hasattr(self, "zoneout_h"):
            self.zoneout_h = []
        self.zoneout_h.append(1)
        self.engine += "!"
        return super().forward(input, hx)


def test_names_of_a_subclass_stay_its_own() -> None:
    own = Named(3, 5).double()
    expected = own(x)
    back = [convert(own), convert(own, to="torch")]
    convert(own)
    torch.testing.assert_close(own(x), expected, **CLOSE)
    own(nn.utils.rnn.pack_sequence([x[:, 0]]))
    assert own.engine == "v8!!!" and own.weight_dropout == 0.5 and len(own.zoneout_h) == 3
    assert own.zoneout_c == "its own" and isinstance(own.recurrent_dropout, nn.Dropout)
    assert not hasattr(own, "input_dropout") and back == [own, own]


def test_names_on_a_layer_stay_the_users() -> None:
    lstm = layer("fastlstm")
    lstm.engine, lstm.zoneout_h = "v8", nn.Linear(1, 1)
    convert(lstm)(x)
    assert lstm.engine == "v8" and isinstance(lstm.zoneout_h, nn.Linear)
    lstm.engine = "v9"
    assert lstm.engine == "v9" and lstm.input_dropout == 0.0
    lstm.input_dropout = 0.5
    assert not torch.equal(lstm(x)[0], lstm.eval()(x)[0])


class Built(nn.LSTM):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.made = "by its own"

    def __reduce__(self) -> Any:
        return type(self), (self.input_size, self.hidden_size), {"_parameters": self._parameters}


class Registered(nn.LSTM):
    known: list[type] = []

    def __init_subclass__(cls, *, name: str) -> None:
        Registered.known.append(cls)


class Last(nn.LSTM):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses, please")


class Counting(type):
    count = 0

    def __init__(cls, *args: Any) -> None:
        Counting.count += 1


class Counted(nn.LSTM, metaclass=Counting):
    pass


class Alone(type):
    def mro(cls) -> Any:
        if cls.__name__ != "Lonely" or len(cls.__bases__) > 1:
            raise TypeError("Lonely takes no company")
        return super().mro()


class Lonely(nn.LSTM, metaclass=Alone):
    pass


@pytest.mark.parametrize("cls", [Registered, Last, Counted, Plain])
@pytest.mark.parametrize("parametrized", [False, True])
def test_what_a_class_does_with_its_subclasses_is_not_done(cls: Any, parametrized: bool) -> None:
    own, count = cls(3, 5).double(), Counting.count
    expected = own(x)
    if parametrized and cls in (Counted, Plain):  # the others torch itself cannot parametrize
        parametrizations.weight_norm(own, "weight_hh_l0")
        count = Counting.count
    convert(nn.Sequential(own, nn.LSTM(3, 5)))
    assert isinstance(own, fastlstm.LSTM) and isinstance(own, cls)
    assert not isinstance(cls(3, 5), type(own))
    torch.testing.assert_close(own(x), expected, **CLOSE)
    convert(own, to="torch")
    assert isinstance(own, cls) and not isinstance(own, fastlstm.LSTM)
    assert Registered.known == [] and Counting.count == count


def test_a_class_that_python_cannot_derive_from_is_left_alone() -> None:
    model = nn.Sequential(nn.LSTM(3, 5), Lonely(5, 5))
    with pytest.warns(UserWarning, match="^convert: 1 stays as it is: its class Lonely: .*company"):
        convert(model)
    assert is_ours(model[0]) and type(model[1]) is Lonely


@pytest.mark.parametrize("change", [convert, fastlstm.prepack, fastlstm.unpack])
def test_what_is_no_module(change: Any) -> None:
    with pytest.raises(TypeError, match="model: expected a module, got the class LSTM"):
        change(nn.LSTM)
    with pytest.raises(TypeError, match="model: expected a module, got list"):
        change([nn.LSTM(3, 4)])


@pytest.mark.parametrize("to", ["fastlstm", "torch"])
def test_a_model_without_lstms_is_an_error(to: Any) -> None:
    with pytest.raises(ValueError, match="convert: expected a model with an LSTM or LSTMCell"):
        convert(nn.Sequential(nn.GRU(3, 4)), to)
    already = nn.Sequential(nn.LSTM(3, 4) if to == "torch" else fastlstm.LSTM(3, 4))
    assert convert(already, to) is already


def test_the_forced_engine_is_no_attribute_of_torch() -> None:
    lstm = fastlstm.LSTM(3, 5)
    lstm.engine = "reference"
    assert not hasattr(convert(lstm, to="torch"), "engine")


def test_options_that_torch_has_not_are_named_once_per_module() -> None:
    first = fastlstm.LSTM(3, 3, dropout=0.0, recurrent_dropout=0.5, zoneout_c=0.1)
    model = nn.ModuleDict({"a": first, "again": first, "plain": fastlstm.LSTM(3, 5)})
    model["last"] = nn.Sequential(fastlstm.LSTM(3, 5, weight_dropout=0.2))
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model, to="torch")
    assert [str(warning.message) for warning in caught] == [
        "convert: a goes on without recurrent_dropout=0.5, zoneout_c=0.1, which nn.LSTM lacks",
        "convert: last.0 goes on without weight_dropout=0.2, which nn.LSTM lacks",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convert(model)["a"].zoneout_c == 0.1  # kept for the way back, which loses nothing


@pytest.mark.parametrize("cls", [nn.LSTM, nn.LSTMCell])
def test_parametrizations_both_ways(cls: type[nn.Module]) -> None:
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


def test_pruning_stays() -> None:
    lstm = nn.LSTM(3, 5).double()
    prune.l1_unstructured(lstm, "weight_hh_l0", amount=0.5)
    expected = lstm(x)[0]
    converted = convert(lstm)
    torch.testing.assert_close(converted(x)[0], expected, **CLOSE)
    assert (converted.weight_hh_l0 == 0).sum() == 50


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    torch.save(model, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


copied = pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])


@copied
def test_a_converted_model_is_copied_and_saved(copied: Any) -> None:
    model = convert(Model())
    other = copied(model)
    assert is_ours(other.encoder) and is_ours(other.cell)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert other.encoder.weight_ih_l0 is not model.encoder.weight_ih_l0


class Doubled(nn.LSTM):
    """A subclass as they are written: with options and methods of its own."""

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size, **options)
        self.head = nn.LSTM(3, 2)

    def forward(self, input: Tensor, hx: Any = None, times: int = 2) -> Any:
        output, state = super().forward(input, hx)
        return output * times, state

    def zeros(self, rows: int) -> tuple[Tensor, Tensor]:
        h = torch.zeros(self.num_layers, rows, self.hidden_size, dtype=self.weight_ih_l0.dtype)
        return h, h

    def extra_repr(self) -> str:
        return "doubled"


class DoubledCell(nn.LSTMCell):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        h, c = super().forward(input, hx)
        return h * 2, c


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that reach fastlstm."""
    seen: list[str] = []
    choose = fastlstm.engines.choose

    def record(call: Any, *requested: str) -> Any:
        seen.append("lstm_cell" if call.is_cell else "lstm")
        return choose(call, *requested)

    monkeypatch.setattr(fastlstm.engines, "choose", record)
    monkeypatch.setattr(fastlstm.engines, "is_op_at_once", lambda *tensors: False)
    return seen


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "cls, ours", [(Doubled, "lstm"), (Plain, "lstm"), (DoubledCell, "lstm_cell")]
)
def test_a_subclass_keeps_its_methods_and_runs_fastlstm(
    cls: type[nn.Module], ours: str, batched: bool, calls: list[str]
) -> None:
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
    assert set(calls) == {ours}
    assert type(convert(model)["own"]) is type(converted) is type(convert(cls(3, 5)))

    calls.clear()
    back = convert(model, to="torch")["own"]
    assert type(back) is cls and calls == []
    torch.testing.assert_close(back(argument), expected, **CLOSE)


def test_what_a_converted_subclass_has() -> None:
    converted = convert(Doubled(3, 5, num_layers=2).double())
    torch.testing.assert_close(
        converted(x, converted.zeros(2), times=3)[0], converted(x)[0] * 1.5, **CLOSE
    )
    assert is_ours(converted.head)
    assert type(type(converted)(3, 5)) is type(converted)
    with pytest.raises(RuntimeError, match="Expected hidden\\[0\\] size"):
        converted(x, converted.zeros(7))


@copied
@pytest.mark.parametrize("cls", [Doubled, Built])
def test_a_converted_subclass_is_copied_and_saved(copied: Any, cls: Any) -> None:
    converted = convert(cls(3, 5).double())
    other = copied(converted)
    assert vars(other).get("made") == ("by its own" if cls is Built else None)
    assert type(other) is type(converted)
    assert other.weight_ih_l0 is not converted.weight_ih_l0
    torch.testing.assert_close(other(x), converted(x), rtol=0, atol=0)


def test_a_parametrized_subclass() -> None:
    own = Doubled(3, 5).double()
    parametrizations.weight_norm(own, "weight_hh_l0")
    expected = own(x)
    converted = convert(own)
    assert isinstance(converted, fastlstm.LSTM) and isinstance(converted, Doubled)
    torch.testing.assert_close(converted(x), expected, **CLOSE)
    torch.testing.assert_close(convert(converted, to="torch")(x), expected, **CLOSE)


def test_a_subclass_in_a_compiled_model() -> None:
    # torch 2.15 cannot compile `super().forward` in a subclass of nn.LSTM, converted or not.
    model = convert(nn.Sequential(Plain(3, 5))).double()
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected, **CLOSE)


class Stack(nn.Module):
    """Layers between LSTMs of several kinds, each of which needs a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 3)
        # Which torch 2.15 cannot compile, converted or not (InternalTorchDynamoError).
        own = Plain if torch.__version__.startswith("2.15") else Doubled
        self.second = own(3, 3, num_layers=2, bias=False)
        self.third = nn.LSTM(3, 3, num_layers=3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.sin())[0].cos()
        x = self.second(x)[0].exp()
        return self.third(x)[0].sum()


@pytest.mark.parametrize("model", [Stack, lambda: nn.LSTM(3, 5).double()], ids=["stack", "itself"])
def test_torch_compile_does_as_with_nn_lstm(model: Any) -> None:
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
def test_one_graph(allow_rnn: bool) -> None:
    """With keep_class=False, or where torch.compile is told not to mind nn.LSTM."""
    model = convert(nn.Sequential(nn.LSTM(3, 5)).double(), keep_class=allow_rnn)
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        found = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, model(x), **CLOSE)


class Reversed(nn.LSTM):
    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        return hx[::-1]


def test_a_subclass_that_changes_a_part_of_forward_is_left_alone() -> None:
    model = nn.ModuleDict({"first": nn.LSTM(3, 5), "own": nn.Sequential(Reversed(3, 5))})
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model)
    assert [str(warning.message) for warning in caught] == [
        "convert: own.0 stays as it is: its class Reversed overrides permute_hidden, which "
        "LSTM.forward calls"
    ]
    assert caught[0].filename == __file__
    assert is_ours(model["first"]) and type(model["own"][0]) is Reversed


class Scaled(nn.LSTM):
    """As icefall has it: its forward calls torch's function itself."""

    def scaled(self) -> list[Tensor]:
        return [weight * 2 for weight in self._flat_weights]

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        zeros = input.new_zeros(1, input.size(1), self.hidden_size)
        output, h, c = torch.lstm(
            input, (zeros, zeros), self.scaled(), True, 1, 0.0, False, False, False
        )
        return output, (h, c)


class ByName(nn.LSTM):
    def run(self, input: Tensor) -> Any:
        return nn.LSTM.forward(self, input)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return self.run(input)


def test_a_subclass_that_never_calls_forward_of_nn_lstm_is_left_alone() -> None:
    model = nn.ModuleDict({"own": Scaled(3, 5), "by_name": ByName(3, 5)})
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model)
    assert [str(warning.message) for warning in caught] == [
        "convert: own stays as it is: its class Scaled calls neither super().forward nor "
        "LSTM.forward"
    ]
    assert type(model["own"]) is Scaled and isinstance(model["by_name"], fastlstm.LSTM)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_what_torch_ao_has_quantized_is_named() -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    model = quantize(nn.Sequential(nn.LSTM(3, 5), nn.LSTMCell(5, 5)), {nn.LSTM}, torch.qint8)
    with pytest.warns(UserWarning, match="^convert: 0 stays as it is: torch.ao has .*prepack"):
        convert(model)
    assert is_ours(model[1])
    with pytest.raises(ValueError, match="got one without; convert: 0 .*torch.ao has quantized"):
        convert(model[:1])


@needs_kernels
def test_prepack_refuses_a_layer_with_a_forward_of_its_own() -> None:
    lstm = layer("torch").eval()
    lstm.forward = functools.partial(lambda f, x: f(2 * x), lstm.forward)
    with pytest.raises(ValueError, match="^prepack: the model itself has a forward of its own"):
        fastlstm.prepack(lstm)
    lstm.forward = functools.partial(type(lstm).forward, lstm).func.__get__(lstm)
    with torch.no_grad():
        torch.testing.assert_close(fastlstm.prepack(lstm)(x), lstm(x), **CLOSE)


@needs_kernels
def test_prepack_leaves_a_subclass_as_convert_made_it() -> None:
    model = nn.ModuleDict({"own": Doubled(3, 5), "plain": nn.LSTM(3, 5)}).double().eval()
    expected = model["own"](x)
    with pytest.warns(UserWarning, match="^prepack: own stays as it is: its class Doubled is more"):
        fastlstm.prepack(model, convert=True)
    assert isinstance(model["own"], fastlstm.LSTM) and isinstance(model["own"], Doubled)
    assert [type(m).__name__ for m in (model["plain"], model["own"].head)] == ["PackedLSTM"] * 2
    torch.testing.assert_close(model["own"](x), expected, **CLOSE)


class OwnFast(fastlstm.LSTM):
    def forward(self, input: Tensor, *args: Any, **options: Any) -> Any:
        output, *rest = super().forward(input, *args, **options)
        return output * 2, *rest


def test_a_subclass_of_fastlstm_stays_on_the_way_to_torch() -> None:
    model = nn.ModuleDict({"own": OwnFast(3, 5), "plain": fastlstm.LSTM(3, 5)})
    with pytest.warns(UserWarning, match="^convert: own stays as it is: its class OwnFast derives"):
        convert(model, to="torch")
    assert type(model["own"]) is OwnFast and type(model["plain"]) is nn.LSTM


def test_an_overridden_forward_sees_an_unbatched_call_once() -> None:
    own = OwnFast(3, 5).double()
    expected = fastlstm.LSTM.forward(own, x[:, :1])[0].squeeze(1) * 2
    torch.testing.assert_close(own(x[:, 0])[0], expected, **CLOSE)


def test_a_sharded_module_is_refused() -> None:
    from torch.distributed.fsdp import FSDPModule

    sharded = nn.LSTM(3, 5)
    sharded.__class__ = type("FSDPLSTM", (FSDPModule, nn.LSTM), {})
    with pytest.raises(TypeError, match="net: FSDPLSTM is sharded; convert before fully_shard"):
        convert(nn.ModuleDict({"first": nn.LSTM(3, 5), "net": sharded}))


def test_a_scripted_module_is_refused() -> None:
    scripted = nn.Sequential(torch.jit.script(nn.LSTM(3, 5)))
    with pytest.raises(TypeError, match="0.*is scripted"):
        convert(scripted)


@pytest.mark.parametrize("keep_class", [True, False])
def test_a_compiled_model_is_compiled_again(keep_class: bool, calls: list[str]) -> None:
    compiled = torch.compile(Model(), backend="eager")
    expected = compiled(x)
    assert convert(compiled, keep_class=keep_class) is compiled
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected, **CLOSE)
    assert set(calls) == {"lstm", "lstm_cell"}
    torch.testing.assert_close(convert(compiled, to="torch")(x), expected, rtol=0, atol=0)


def test_the_target_must_be_known() -> None:
    with pytest.raises(ValueError, match="to: expected 'fastlstm' or 'torch', got 'haste'"):
        convert(nn.LSTM(3, 5), to="haste")  # type: ignore[arg-type]


USER = """
import torch
from torch import Tensor, nn

import fastlstm


class Net(nn.Module):
    def score(self, x: Tensor) -> Tensor:
        return x.mean()


x = torch.randn(5, 3, 4)
net = fastlstm.convert(Net())
net.score(x)
fastlstm.prepack(net, torch.int8).score(x)
fastlstm.convert(Net(), to="torch").score(x)
lstm = fastlstm.convert(nn.LSTM(4, 8))
lstm(x, lengths=torch.tensor([5, 0, 2]), reset=torch.zeros(5, 3))
cell: fastlstm.PackedLSTMCell = fastlstm.prepack(nn.LSTMCell(4, 8), convert=True)
back: nn.LSTM = fastlstm.convert(lstm, to="torch")
wrong: int = net
"""


@pytest.mark.slow  # mypy reads torch
def test_mypy_knows_the_types(tmp_path: Path) -> None:
    """The type of a model stays, a bare layer becomes ours: only the last line is an error."""
    api = pytest.importorskip("mypy.api", reason="the extra lint is not installed")
    (tmp_path / "user.py").write_text(USER)
    found, errors, _ = api.run(["--strict", f"--cache-dir={tmp_path}", str(tmp_path / "user.py")])
    problems = found.splitlines()[:-1]
    assert not errors
    assert len(problems) == 1 and 'expression has type "Net"' in problems[0], found
