"""What only a GPU can show: the CUDA kernels themselves, graphs, streams, and large batches."""

import copy
import os

import op_call
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastlstm
from fastlstm import _build
from fastlstm.engine import engines
from fastlstm.engine.call import Call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("checked_gpu"),
    pytest.mark.skipif(not _build.has_kernels("cuda"), reason="no CUDA kernels were built"),
]


def require(engine):
    gpu = torch.cuda.get_device_properties()
    if engine == "persistent" and gpu.major < 8:
        pytest.skip("the persistent engine needs sm_80")
    if engine == "persistent" and not _build.gpu_properties(0)[0]:
        pytest.skip("FASTLSTM_FREE_SMS leaves the persistent engine no multiprocessor")


@pytest.mark.parametrize("engine, options", op_call.GPU_CALLS, ids=str)
@pytest.mark.parametrize("kind", [*op_call.KINDS, "float64"], indirect=True)
def test_engine(kind, engine, options):
    require(engine)
    if kind != "float64" or engine == "stepwise":
        op_call.Call(kind, **options, ops=torch.ops.fastlstm, device="cuda").check(engine)


def large_layer(dtype, hidden_size=512, batch=64, steps=100):
    """Returns a layer and an input. Without FASTLSTM_ENGINE, "persistent" runs if it can."""
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(hidden_size, hidden_size, device="cuda", dtype=dtype)
    x = torch.randn(steps, batch, hidden_size, device="cuda", dtype=dtype, requires_grad=True)
    reason = engines.BY_NAME["persistent"].why_not(Call(x, None, lstm._flat_weights, "bias"))
    lstm.engine = os.environ.get("FASTLSTM_ENGINE") or ("stepwise" if reason else "persistent")
    return lstm, x


def run(lstm, x):
    lstm.zero_grad()
    x.grad = None
    y, (h, c) = lstm(x)
    (y.float().square().sum() + h.float().sum() + c.float().sum()).backward()
    return [t.detach().clone() for t in (y, h, c, x.grad, *(p.grad for p in lstm.parameters()))]


@pytest.mark.parametrize("kind", op_call.KINDS, indirect=True)
@pytest.mark.parametrize("batch", [1, 16, 64, 128])
@pytest.mark.parametrize("hidden_size", [256, 1024])
def test_errors_are_like_those_of_nn_lstm(kind, batch, hidden_size):
    lstm, x = large_layer(op_call.dtype_of(kind), hidden_size, batch)
    theirs = fastlstm.convert(copy.deepcopy(lstm), to="torch")
    exact = copy.deepcopy(theirs).double()
    with torch.no_grad():
        results = [(y, *state) for y, state in (lstm(x), theirs(x), exact(x.double()))]
    for got, torch_got, want in zip(*results, strict=True):
        error = (got.double() - want).abs().max()
        assert error <= 4 * (torch_got.double() - want).abs().max() + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_every_time(dtype):
    lstm, x = large_layer(dtype)
    first = run(lstm, x)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, run(lstm, x), strict=True))


def test_large_batch():
    """The batch has more rows than a grid has threads, so that a thread computes several rows."""
    lstm = fastlstm.LSTM(3, 5, device="cuda")
    lstm.engine = "stepwise"
    x = torch.randn(2, 70_000, 3, device="cuda", requires_grad=True)
    theirs = fastlstm.convert(copy.deepcopy(lstm), to="torch")
    torch.testing.assert_close(lstm(x)[0], theirs(x)[0], rtol=1e-3, atol=1e-3)
    lstm(x)[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_cuda_graph(dtype, packed):
    lstm, x = large_layer(dtype, steps=20)
    lengths = sorted((1 + i % 20 for i in range(64)), reverse=True)
    sequence = x.detach()
    if packed:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(sequence, lengths)

    def step():
        y = lstm(sequence)[0]
        y = y.data if packed else y
        return [y, *torch.autograd.grad(y.float().square().sum(), list(lstm.parameters()))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [t.clone() for t in step()]
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_what_auto_runs(training):
    """With `reset` our kernels run, otherwise PyTorch's own. No persistent kernel runs."""
    lstm, x = large_layer(torch.bfloat16, hidden_size=256, batch=16, steps=20)
    lstm.engine, x = "auto", x.detach()
    lengths = torch.full((16,), 20, device="cuda")
    reset = torch.zeros(20, 16, dtype=torch.bool, device="cuda")
    for options, is_ours in (({}, False), ({"lengths": lengths}, False), ({"reset": reset}, True)):
        with torch.set_grad_enabled(training), profile(activities=[ProfilerActivity.CUDA]) as trace:
            lstm(x, **options)
            torch.cuda.synchronize()
        names = [event.name for event in trace.events()]
        assert any("fastlstm" in name for name in names) == is_ours, names
        assert not any("walk_kernel" in name for name in names), names


def test_two_streams():
    calls = [large_layer(torch.bfloat16), large_layer(torch.float32, hidden_size=256)]
    expected = [run(*call) for call in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    results = []
    for _ in range(5):
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(*call))
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(result, expected[i % 2], strict=True))


def test_no_synchronization():
    lstm, x = large_layer(torch.bfloat16, steps=20)
    lengths = torch.randint(0, 21, (64,), device="cuda")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [20] * 32 + [7] * 32)
    run(lstm, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(lstm, x)
        lstm(x, lengths=lengths)[0].float().sum().backward()
        lstm(packed)[0].data.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_keeps_nobody_waiting(dtype):
    """The bits of this NaN are those that mark an exchanged value as not written yet."""
    lstm, x = large_layer(dtype, steps=5)
    set_bits = torch.full((x.element_size() * x.numel(),), 255, dtype=torch.uint8, device="cuda")
    x = set_bits.view(dtype).view_as(x).requires_grad_()
    assert all(t.isnan().all() for t in run(lstm, x)[:3])
    torch.cuda.synchronize()


@pytest.mark.filterwarnings("error:RNN module weights are not part of single contiguous")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}, {"proj_size": 64}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lengths_by_cudnn_do_not_synchronize(dtype, options):
    lstm = fastlstm.LSTM(256, 256, num_layers=2, **options, device="cuda", dtype=dtype)
    x = torch.randn(20, 16, 256, device="cuda", dtype=dtype)
    lengths = torch.randint(0, 21, (16,), device="cuda")
    lstm.engine = "torch"
    lstm(x, lengths=lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        lstm(x, lengths=lengths)[0].float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("engine", ["torch", "stepwise"])
def test_lengths_out_of_range_do_no_harm(engine):
    """Lengths on the GPU are not checked. None may cause an access outside the tensors."""
    lstm, x = large_layer(torch.bfloat16, steps=20)
    lstm.engine = engine
    lengths = torch.randint(-5, 50, (64,), device="cuda")
    assert torch.equal(lstm(x, lengths=lengths)[0], lstm(x, lengths=lengths.clamp(0, 20))[0])
    torch.cuda.synchronize()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    lstm, x = large_layer(torch.bfloat16, hidden_size=128, steps=12)
    expected = run(lstm, x)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=dynamic)
    y, _ = compiled(x)
    assert torch.equal(y, expected[0])  # the engine is the same
    y.float().square().sum().backward()
    assert x.grad.isfinite().all()
