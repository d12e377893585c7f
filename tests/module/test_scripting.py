"""torch.jit.script, torch.jit.trace and torch.fx with models that contain fastlstm's LSTMs."""

import copy

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import _build, convert, prepack

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
needs_kernels = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
x = torch.linspace(-1, 1, 24).view(4, 2, 3)


class Model(nn.Module):
    def __init__(self, package):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = package.LSTM(3, 5, num_layers=2, bidirectional=True)
        self.blocks = nn.ModuleList([nn.Linear(10, 2)])
        self.cell = package.LSTMCell(2, 4)

    def forward(self, x):
        output, (_, c) = self.lstm(x)
        return self.cell(self.blocks[0](output)[0])[0] + c.mean()


class Doubled(nn.LSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return output * 2, state


MODELS = {"written": lambda: Model(fastlstm), "converted": lambda: convert(Model(nn))}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@every_model
def test_script_is_refused_and_compiles_a_copy_in_torch(make):
    model = make()
    refused = r"cannot compile a LSTM of fastlstm; script a copy: .*convert.*, to=\"torch\"\)\)$"
    with pytest.raises(RuntimeError, match=refused):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match="cannot compile a LSTMCell of fastlstm"):
        torch.jit.script(model.cell)
    scripted = torch.jit.script(convert(copy.deepcopy(model), to="torch"))
    assert "fastlstm::" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), model(x))


@needs_kernels
@pytest.mark.parametrize("engine, op", [("auto", "fastlstm::lstm"), ("torch", "aten::lstm")])
def test_trace_records_the_op_of_the_engine(engine, op):
    lstm = fastlstm.LSTM(3, 5)
    lstm.engine = engine
    traced = torch.jit.trace(lstm, x)
    found = {n.kind() for n in traced.inlined_graph.nodes()}
    assert {"aten::lstm", "fastlstm::lstm"} & found == {op}
    torch.testing.assert_close(traced(x[:3]), lstm(x[:3]))


@every_model
@pytest.mark.parametrize("prepacks", [False, pytest.param(True, marks=needs_kernels)])
def test_fx_keeps_a_layer_as_one_node(make, prepacks):
    model = prepack(make().eval()) if prepacks else make()
    graph = torch.fx.symbolic_trace(model)
    nodes = {n.target: n for n in graph.graph.nodes if n.op == "call_module"}
    assert list(nodes) == ["lstm", "blocks.0", "cell"]
    assert nodes["lstm"].args == nodes["lstm"].args[:1] and nodes["lstm"].kwargs == {}
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_fx_refuses_a_subclass_that_has_its_own_forward():
    with pytest.raises(TypeError, match="torch.fx cannot trace the forward that .*Doubled"):
        torch.fx.symbolic_trace(nn.Sequential(convert(Doubled(3, 5))))
