"""torch.compile, torch.export and autocast: a layer is one node of a graph, for any sizes."""

import copy
import shutil

import pytest
import torch
from functorch.compile import aot_module  # the AOTAutograd that torch.compile uses
from samples import AUTO_ROUTES, REFERENCE_AND_AUTO, Route, draw, with_gradients
from torch import nn
from torch._dynamo.testing import CompileCounter

import fastlstm

every_route = pytest.mark.parametrize("route", REFERENCE_AND_AUTO)
every_op_route = pytest.mark.parametrize("route", AUTO_ROUTES)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self, route, **options):
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True} | options
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 4)
        self.lstm = fastlstm.LSTM(4, 5, **options)
        self.lstm.engine = route.engine
        self.to(route.device, torch.float64)

    def forward(self, x, *state, lengths=None, reset=None):
        given = {"lengths": lengths, "reset": reset}
        given = {name: tensor for name, tensor in given.items() if tensor is not None}
        output, (h_n, c_n) = self.lstm(self.embed(x), state or None, **given)
        return output, h_n, c_n


def run(model, *tensors, **arguments):
    leaves = [t.detach().requires_grad_() for t in tensors]
    return with_gradients(model(*leaves, **arguments), [*leaves, *model.parameters()])


def inputs(route, batch, steps, kind):
    x = draw(route, batch, steps, 3)
    if kind == "state":
        return [x, draw(route, 4, batch, 5), draw(route, 4, batch, 5)], {}
    lengths = (torch.arange(batch) * 7 % (steps + 1)).to(route.device)
    reset = (torch.arange(batch * steps).view(batch, steps) % 3 == 1).to(route.device)
    return [x], {"lengths": lengths, "reset": reset} if kind == "lengths" else {}


# No size equals another size of the model: dynamo would take equal sizes for the same symbol.
SIZES = ((6, 8), (2, 7), (9, 11))
KINDS = pytest.mark.parametrize("kind", ["plain", "state", "lengths"])


@every_op_route
@KINDS
def test_dynamic(route, kind):
    model, counter = Model(route), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    counted = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for batch, steps in SIZES:
        tensors, arguments = inputs(route, batch, steps, kind)
        found = run(compiled, *tensors, **arguments)
        torch.testing.assert_close(found, run(model, *tensors, **arguments), **CLOSE)
        with torch.no_grad():
            counted(*tensors, **arguments)
    assert counter.frame_count == 1


@every_op_route
def test_the_graphs_hold_one_node_per_layer(route):
    graphs = []

    def keep(graph, _):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    run(aot_module(Model(route), fw_compiler=keep, bw_compiler=keep), draw(route, 2, 9, 3))
    forward, backward = graphs
    assert forward.count("fastlstm.lstm.default") == 2
    assert backward.count("fastlstm.lstm_backward.default") == 2
    assert "fastlstm.lstm.default" not in backward


@pytest.mark.skipif(not shutil.which("c++"), reason="inductor needs a C++ compiler")
@every_op_route
def test_inductor(route):
    model = Model(route)
    compiled = torch.compile(model, fullgraph=True, backend="inductor", dynamic=True)
    for batch, steps in SIZES[:2]:
        tensors, arguments = inputs(route, batch, steps, "lengths")
        found = run(compiled, *tensors, **arguments)
        torch.testing.assert_close(found, run(model, *tensors, **arguments), **CLOSE)


@every_op_route
def test_forms_of_a_call(route):
    lstm = Model(route).lstm
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for shape, options in (((3, 4), {}), ((2, 3, 4), {"return_cell_states": True})):
        x = draw(route, *shape)
        torch.testing.assert_close(compiled(x, **options), lstm(x, **options), **CLOSE)


@every_op_route
def test_cell(route):
    cell = fastlstm.LSTMCell(3, 5, dtype=torch.float64, device=route.device)
    cell.engine = route.engine

    class Loop(nn.Sequential):
        def forward(self, x):
            hx = None
            for step in x:
                hx = self[0](step, hx)
            return hx

    model, x = Loop(cell), draw(route, 4, 2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x), run(model, x), **CLOSE)


@every_op_route
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("state", ["compiled", None, torch.float32, torch.bfloat16], ids=str)
def test_dtypes_under_autocast_are_those_of_torch(route, proj_size, state):
    """On a CPU, c_n of a layer with a projection stays in float32, as in nn.LSTM."""
    theirs = nn.LSTM(3, 5, 2, bidirectional=True, proj_size=proj_size, device=route.device)
    ours = fastlstm.convert(copy.deepcopy(theirs), keep_class=False)
    ours.engine = route.engine
    call = torch.compile(ours, backend="aot_eager") if state == "compiled" else ours
    x = draw(route, 4, 2, 3).float()
    hx = None
    if isinstance(state, torch.dtype):
        hx = draw(route, 4, 2, proj_size or 5).to(state), draw(route, 4, 2, 5).to(state)
    found, expected = [], []
    for module, results in ((call, found), (theirs, expected)):
        with torch.autocast(route.device, torch.bfloat16):
            output, (h_n, c_n) = module(x, hx)
        results += [output, h_n, c_n]
        sum(r.float().sin().sum() for r in results).backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)  # compares the dtypes too
    ours.engine = "reference"
    with torch.autocast(route.device, torch.bfloat16):
        output, state = ours(x, hx)
    torch.testing.assert_close([output, *state], expected, rtol=0, atol=0.03)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.05 * b.grad.norm()


@every_route
def test_a_carried_cell_state_is_float32_under_autocast(route):
    """c keeps 1,024 increments of 2^-12, each of which rounding to bfloat16 would lose."""
    if route.device != "cpu":
        pytest.skip("cuDNN rounds c to 16 bits too")
    lstm = fastlstm.LSTM(1, 2, proj_size=1)
    lstm.engine = route.engine
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        lstm.bias_ih_l0.copy_(torch.tensor([20.0, 20, 2**-12, 0]).repeat_interleave(2))
        hx = torch.zeros(1, 1, 1), torch.ones(1, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(1024):
                _, hx = lstm(torch.zeros(1, 1, 1), hx)
    assert hx[0].dtype == torch.bfloat16
    torch.testing.assert_close(hx[1], torch.full((1, 1, 2), 1.25), rtol=0, atol=1e-6)


@every_route
def test_a_cell_takes_c_in_float32_with_h_in_bfloat16(route):
    cell = fastlstm.LSTMCell(3, 5, device=route.device, dtype=torch.bfloat16)
    cell.engine = route.engine
    x, h = draw(route, 2, 3).bfloat16(), draw(route, 2, 5).bfloat16()
    for c in (h, h.float()):
        results = cell(x, (h, c))
        assert [result.dtype for result in results] == [torch.bfloat16, c.dtype]
        torch.testing.assert_close(results[1].bfloat16(), cell(x, (h, h))[1])


@every_op_route
@KINDS
def test_export_with_any_number_of_steps(route, kind):
    model = Model(route).eval()
    tensors, arguments = inputs(route, 3, 4, kind)
    T, B = torch.export.Dim("T", min=1), torch.export.Dim("B")
    shapes = {"x": {0: B, 1: T}}
    shapes |= {"state": ({1: B}, {1: B})} if tensors[1:] else {}
    shapes |= {"lengths": {0: B}, "reset": {0: B, 1: T}} if arguments else {}
    exported = torch.export.export(model, tuple(tensors), arguments, dynamic_shapes=shapes)
    layers = [node for node in exported.graph.nodes if "fastlstm.lstm" in str(node.target)]
    assert layers and not any(arg is True for node in layers for arg in node.args)  # no save_cells
    for batch, steps in ((3, 4), (2, 1), (4, 13)):
        tensors, arguments = inputs(route, batch, steps, kind)
        found = exported.module()(*tensors, **arguments)
        torch.testing.assert_close(found, model(*tensors, **arguments), **CLOSE)


def test_meta_tensors():
    model = Model(Route("auto")).to("meta")
    results = model(torch.empty(3, 4, 3, dtype=torch.float64, device="meta"))
    assert [r.shape for r in results] == [(3, 4, 10), (4, 3, 5), (4, 3, 5)] and results[0].is_meta
