"""PyTorch's own LSTM in compiled code, as one op: on the CPU, which stands for a GPU too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import _build, _choice, _route

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(**options: Any) -> tuple[fastlstm.LSTM, nn.LSTM]:
    torch.manual_seed(0)
    ours, theirs = fastlstm.LSTM(8, 16, **options), nn.LSTM(8, 16, **options)
    theirs.load_state_dict(ours.state_dict())
    ours.engine = "torch"
    return ours, theirs


def ops_of(model: Any, *args: Any, **compile_options: Any) -> set[str]:
    """The ops of fastlstm in the graph that torch.compile makes of a call."""
    found: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        names = (str(node.target) for node in graph.graph.nodes)
        found.update(name.removeprefix("fastlstm.") for name in names if "fastlstm." in name)
        return graph.forward

    torch._dynamo.reset()
    compile_options = {"fullgraph": True, "dynamic": False} | compile_options
    torch.compile(model, backend=keep, **compile_options)(*args)
    return found


OPTIONS = [
    {},
    dict(num_layers=2, bidirectional=True, batch_first=True),
    dict(num_layers=2, bias=False),
    dict(proj_size=5, bidirectional=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_op(options: dict[str, Any]) -> None:
    """Schema, Meta kernel, autograd and tracing, by torch's own checks; packed data too."""
    _, theirs = pair(**options)
    directions = 2 if theirs.bidirectional else 1
    count = directions * theirs.num_layers
    layout = "bias" * theirs.bias + " projection" * bool(theirs.proj_size)
    for batch_sizes in (None, torch.tensor([3, 3, 1])):
        x = torch.randn(4, 3, 8) if batch_sizes is None else torch.randn(7, 8)
        h_0, c_0 = torch.randn(count, 3, theirs.proj_size or 16), torch.randn(count, 3, 16)
        weights = [w.detach().requires_grad_() for w in theirs.parameters()]
        tensors = [t.requires_grad_() for t in (x, h_0, c_0)]
        last = layout.strip(), batch_sizes, theirs.num_layers, directions
        torch.library.opcheck(torch.ops.fastlstm.torch_lstm, (*tensors, weights, *last))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_results_and_gradients(options: dict[str, Any], backend: str) -> None:
    ours, theirs = pair(**options)
    compiled = torch.compile(ours, fullgraph=True, backend=backend, dynamic=False)
    data = torch.randn(4, 3, 8)

    def run(model: Any) -> list[Tensor]:
        x = data.clone().requires_grad_()
        output, (_, c_n) = model(x)
        loss = output.sin().sum() + c_n.sum()  # h_n has no gradient
        return [output, c_n, *torch.autograd.grad(loss, [x, *ours_or_theirs(model)])]

    def ours_or_theirs(model: Any) -> list[Tensor]:
        return list((theirs if model is theirs else ours).parameters())

    torch.testing.assert_close(run(compiled), run(theirs), **CLOSE)
    assert ops_of(ours, data) == {"torch_lstm"}


def test_what_takes_ours() -> None:
    """Dropout, of which backward would draw another mask; autocast; export."""
    if not _build.has_kernels("cpu"):
        pytest.skip("no CPU kernels")
    ours, _ = pair(num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 8)
    assert ops_of(ours, x) == {"lstm"}
    ours.eval()
    assert ops_of(ours, x) == {"torch_lstm"}
    assert ops_of(ours, x, dynamic=True) == {"torch_lstm"}
    with torch.autocast("cpu"):
        assert ops_of(ours, x) == {"lstm"}
    exported = torch.export.export(ours, (x,))
    assert {"fastlstm.lstm.default"} == {
        str(n.target) for n in exported.graph.nodes if "fastlstm" in str(n.target)
    }


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
def test_who_is_chosen_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, where forward runs twice, only what ours would do step by step is left."""
    monkeypatch.setattr(_route, "_GPU", "cpu")
    monkeypatch.setattr(_route, "_ALWAYS_OURS", False)
    monkeypatch.setattr(_build, "gpu", lambda index: (132, 90, ""))
    lstm = fastlstm.LSTM(256, 256)
    few, many = torch.randn(4, 3, 256), torch.randn(100, 3, 256)
    with torch.no_grad():
        assert ops_of(lstm.bfloat16(), few.bfloat16()) == {"torch_lstm"}
        assert ops_of(lstm, many.bfloat16()) == {"lstm"}
        assert ops_of(lstm, few.bfloat16(), dynamic=True) == {"lstm"}  # of which nobody knows T
    assert ops_of(lstm, few.bfloat16()) == {"lstm"}
    assert ops_of(lstm.double(), few.double()) == {"torch_lstm"}
    lstm.engine = "stepwise"
    assert ops_of(lstm, few.double()) == {"lstm"}
    lstm.engine = "auto"
    refused = _choice.Choice("torch", "this GPU refused to launch ours", no_walk=True)
    monkeypatch.setattr(_choice, "of_stack", lambda stack, device: refused)
    assert ops_of(lstm.bfloat16(), few.bfloat16()) == {"torch_lstm"}
    monkeypatch.setattr(_build, "gpu", lambda index: (0, 0, "the driver is too old"))
    _build.warn_of_no_cuda_kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="the driver is too old"):
        assert ops_of(lstm, few.bfloat16()) == {"torch_lstm"}


def test_packed_data() -> None:
    ours, theirs = pair()
    x = pack_padded_sequence(torch.randn(4, 3, 8), [4, 3, 1])
    compiled = torch.compile(ours, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(compiled(x)[0].data, theirs(x)[0].data, **CLOSE)
