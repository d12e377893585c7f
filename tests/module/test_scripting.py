"""torch.jit.script, torch.jit.trace and torch.fx: what they make of a model with LSTMs of ours."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm import _build, convert, prepack

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
needs_kernels = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
x = torch.linspace(-1, 1, 24).view(4, 2, 3)


class Model(nn.Module):
    def __init__(self, package: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = package.LSTM(3, 5, num_layers=2, bidirectional=True)
        self.blocks = nn.ModuleList([nn.Linear(10, 2)])
        self.cell = package.LSTMCell(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, (_, c) = self.lstm(x)
        return self.cell(self.blocks[0](output)[0])[0] + c.mean()


class Doubled(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output * 2, state


every_model = pytest.mark.parametrize(
    "make", [lambda: Model(fastlstm), lambda: convert(Model(nn))], ids=["written", "converted"]
)


@every_model
def test_script_compiles_nn_lstm_and_leaves_the_model_alone(make: Any) -> None:
    model = make()
    modules = list(model.modules())
    for _ in range(2):
        scripted = torch.jit.script(model)
        assert list(model.modules()) == modules
        names = [scripted.lstm.original_name, scripted.cell.original_name]
        assert names == ["LSTM", "LSTMCell"] and "fastlstm::" not in str(scripted.inlined_graph)
        torch.testing.assert_close(scripted(x), model(x))
    with torch.no_grad():
        model.lstm.weight_hh_l0.zero_()
    torch.testing.assert_close(scripted(x), model(x))  # the Parameters are shared
    torch.jit.save(scripted, buffer := io.BytesIO())
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), model(x))


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_script_of_a_layer_itself(kind: str) -> None:
    layer = getattr(fastlstm, kind)(3, 5)
    scripted = torch.jit.script(layer)
    assert scripted.original_name == kind and layer.__class__ is getattr(fastlstm, kind)
    if kind == "LSTMCell":  # torch cannot call a scripted nn.LSTM that stands alone
        torch.testing.assert_close(scripted(x[0]), layer(x[0]))


def test_a_refused_script_does_not_disturb_the_next() -> None:
    with pytest.raises(RuntimeError, match="LayerNormLSTM: torch.jit.script is not supported"):
        torch.jit.script(nn.Sequential(fastlstm.LSTM(3, 3), fastlstm.LayerNormLSTM(3, 3)))
    linear = nn.Linear(3, 3)
    torch.testing.assert_close(torch.jit.script(linear)(x), linear(x))


class Unfinished(nn.Module):
    """What torch.jit.script refuses after it has prepared the LSTM, or before."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.lstm = fastlstm.LSTM(3, 5, zoneout_h=0.0)
        self.fails = Refused() if fails == "prepare" else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return eval("x")


class Refused(nn.Module):
    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize("fails", ["prepare", "compile"])
def test_a_script_that_fails_leaves_the_model_as_it_was(fails: str) -> None:
    model = Unfinished(fails)
    before = vars(torch.jit._recursive).copy()
    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(model)
    assert isinstance(model.lstm, fastlstm.LSTM)
    model.lstm(x, lengths=torch.tensor([4, 1]))
    assert type(model.lstm) is fastlstm.LSTM
    assert vars(torch.jit._recursive) == before
    alive = weakref.ref(model.lstm)
    del model
    gc.collect()
    assert alive() is None


def pickled(lstm: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(lstm))


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickled, convert])
def test_a_layer_after_it_was_scripted(use: Any) -> None:
    lstm = fastlstm.LSTM(3, 5)
    torch.jit.script(nn.Sequential(lstm))
    lstm.engine = "reference"
    torch.jit.script(nn.Sequential(lstm))
    other = use(lstm)
    assert type(other) is type(lstm) is fastlstm.LSTM and "engine='reference'" in repr(other)


def test_a_parametrized_layer_is_refused() -> None:
    lstm = fastlstm.LSTM(3, 5)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    with pytest.raises(RuntimeError, match="LSTM: torch.jit.script is not .* is parametrized"):
        torch.jit.script(nn.Sequential(lstm))


@needs_kernels
@pytest.mark.parametrize("engine, op", [("auto", "fastlstm::lstm"), ("torch", "aten::lstm")])
def test_trace_records_the_op_of_the_engine(engine: str, op: str) -> None:
    lstm = fastlstm.LSTM(3, 5)
    lstm.engine = engine
    traced = torch.jit.trace(lstm, x)
    found = {n.kind() for n in traced.inlined_graph.nodes()}
    assert {"aten::lstm", "fastlstm::lstm"} & found == {op}
    torch.testing.assert_close(traced(x[:3]), lstm(x[:3]))


@every_model
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_kernels)])
def test_fx_keeps_a_layer_as_one_node(make: Any, packed: bool) -> None:
    model = prepack(make().eval()) if packed else make()
    graph = torch.fx.symbolic_trace(model)
    nodes = {n.target: n for n in graph.graph.nodes if n.op == "call_module"}
    assert list(nodes) == ["lstm", "blocks.0", "cell"]
    assert nodes["lstm"].args == nodes["lstm"].args[:1] and nodes["lstm"].kwargs == {}
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_fx_keeps_the_options_of_a_call() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fastlstm.LSTM(3, 5)

        def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor) -> Any:
            return self.lstm(x, (h, c), lengths=lengths, return_cell_states=True)

    model, state = Ragged(), torch.ones(1, 2, 5)
    arguments = x, state, state, torch.tensor([4, 1])
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*arguments), model(*arguments))


def test_fx_refuses_a_subclass_that_has_its_own_forward() -> None:
    with pytest.raises(TypeError, match="Doubled: torch.fx cannot trace its own forward"):
        torch.fx.symbolic_trace(nn.Sequential(convert(Doubled(3, 5))))
