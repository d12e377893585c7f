"""convert(): modules change their class, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastlstm
from fastlstm import convert

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
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


def test_a_model_both_ways() -> None:
    model = Model()
    text, expected = repr(model), model(x)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    assert convert(model) is model
    assert type(model.encoder) is fastlstm.LSTM and type(model.cell) is fastlstm.LSTMCell
    assert type(model.gru) is nn.GRU
    assert model.blocks[1] is model.shared and type(model.shared) is fastlstm.LSTM
    found = dict(model.named_parameters())
    assert list(found) == list(parameters) and list(model.state_dict()) == keys
    assert all(found[name] is parameter for name, parameter in parameters.items())
    assert repr(model) == text
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
    converted = convert(root)
    assert type(converted).__module__ == "fastlstm.modules" and type(root) is cls
    assert converted.weight_ih_l0 is root.weight_ih_l0 if cls is nn.LSTM else True
    back = convert(converted, to="torch")
    assert type(back) is cls
    argument = x if cls is nn.LSTM else x[0]
    torch.testing.assert_close(back(argument), converted(argument), **CLOSE)


def test_converting_twice_changes_nothing() -> None:
    model = convert(Model())
    modules = dict(model.named_modules())
    assert convert(model) is model
    assert all(module is modules[name] for name, module in model.named_modules())


def test_training_mode_attributes_and_requires_grad_stay() -> None:
    lstm = nn.LSTM(3, 5).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    lstm.note = "mine"
    converted = convert(lstm)
    assert not converted.training and converted.note == "mine"
    assert not converted.weight_hh_l0.requires_grad


def test_the_new_module_does_not_share_its_tables() -> None:
    lstm = nn.LSTM(3, 5)
    converted = convert(lstm)
    converted.weight_ih_l0 = nn.Parameter(torch.zeros(20, 3))
    assert lstm.weight_ih_l0.count_nonzero() > 0
    assert lstm._flat_weights[0] is lstm.weight_ih_l0
    assert converted._flat_weights[0] is converted.weight_ih_l0


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


def test_the_forced_engine_is_no_attribute_of_torch() -> None:
    lstm = fastlstm.LSTM(3, 5)
    lstm.engine = "reference"
    assert not hasattr(convert(lstm, to="torch"), "engine")


def test_options_that_torch_has_not_are_named_once_per_module() -> None:
    first = fastlstm.LSTM(3, 3, dropout=0.0, recurrent_dropout=0.5, zoneout_c=0.1)
    model = nn.ModuleDict({"a": first, "again": first, "plain": fastlstm.LSTM(3, 5)})
    model["last"] = nn.Sequential(fastlstm.LSTM(3, 5, weight_dropout=0.2, recompute=True))
    with pytest.warns(UserWarning, match="^convert: ") as caught:
        convert(model, to="torch")
    assert [str(warning.message) for warning in caught] == [
        "convert: nn.LSTM has no recurrent_dropout=0.5, zoneout_c=0.1: a goes on without",
        "convert: nn.LSTM has no weight_dropout=0.2, recompute=True: last.0 goes on without",
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


def test_deepcopy_of_a_converted_model() -> None:
    model = convert(Model())
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert other.encoder.weight_ih_l0 is not model.encoder.weight_ih_l0


class OwnLSTM(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output * 2, state


def test_a_subclass_is_refused_and_nothing_is_changed() -> None:
    model = nn.ModuleDict({"first": nn.LSTM(3, 5), "own": nn.Sequential(OwnLSTM(3, 5))})
    with pytest.raises(TypeError, match=r"own\.0: OwnLSTM is a subclass"):
        convert(model)
    assert type(model["first"]) is nn.LSTM
    own = OwnLSTM(3, 5)
    parametrizations.weight_norm(own, "weight_hh_l0")
    with pytest.raises(TypeError, match="the model itself.* is a subclass"):
        convert(own)


def test_scripted_and_compiled_modules_are_refused() -> None:
    scripted = nn.Sequential(torch.jit.script(nn.LSTM(3, 5)))
    with pytest.raises(TypeError, match="0.*is scripted"):
        convert(scripted)
    compiled = nn.ModuleDict({"net": torch.compile(nn.Sequential(nn.LSTM(3, 5)))})
    with pytest.raises(TypeError, match="net.*is compiled"):
        convert(compiled)


def test_the_target_must_be_known() -> None:
    with pytest.raises(ValueError, match="to: expected 'fastlstm' or 'torch', got 'haste'"):
        convert(nn.LSTM(3, 5), to="haste")  # type: ignore[arg-type]
