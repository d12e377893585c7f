"""Which route serves a call: a pure function, the environment, and the state of the extension."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import _build, _route
from fastlstm._route import route_for

CPU = ("cpu", "meta")
BOTH = ("cpu", "cuda", "meta")


def test_the_extension_is_loaded_if_it_was_built() -> None:
    """So that no test of the op is skipped because a build that was wanted is broken."""
    record = _build.build_record()
    if not record or not record["kinds"]:
        pytest.skip(f"the extension is not built: {_build.unavailable_reason()}")
    assert _build.extension_available(), _build.unavailable_reason()
    assert _build.has_kernels("cpu")
    assert hasattr(torch.ops.fastlstm, "lstm") and hasattr(torch.ops.fastlstm, "lstm_backward")


@pytest.mark.parametrize(
    ("engine", "device", "dtype", "transformed", "op_devices", "expected"),
    [
        ("auto", "cpu", torch.float32, False, CPU, "auto"),
        ("torch", "cpu", torch.float32, False, CPU, "auto"),
        ("torch", "cpu", torch.float32, False, (), "reference"),
        ("auto", "cpu", torch.float64, False, CPU, "auto"),
        ("auto", "cpu", torch.bfloat16, False, CPU, "auto"),
        ("auto", "cpu", torch.float16, False, CPU, "auto"),
        ("auto", "meta", torch.float32, False, CPU, "auto"),
        ("auto", "cuda", torch.float32, False, BOTH, "auto"),
        ("auto", "cuda", torch.float32, False, CPU, "reference"),
        ("auto", "mps", torch.float32, False, BOTH, "reference"),
        ("auto", "cpu", torch.complex64, False, CPU, "reference"),
        ("auto", "cpu", torch.float32, True, CPU, "reference"),
        ("auto", "cpu", torch.float32, False, (), "reference"),
        ("stepwise", "cpu", torch.float32, False, CPU, "stepwise"),
        ("stepwise", "cuda", torch.float16, False, BOTH, "stepwise"),
        ("tiled", "cpu", torch.float32, False, CPU, "tiled"),
        ("persistent", "cuda", torch.bfloat16, False, BOTH, "persistent"),
        ("persistent:8x8x1", "cuda", torch.bfloat16, False, BOTH, "persistent:8x8x1"),
        ("reference", "cpu", torch.float32, False, CPU, "reference"),
        ("reference", "mps", torch.int64, True, (), "reference"),
    ],
)
def test_choice(
    engine: str,
    device: str,
    dtype: torch.dtype,
    transformed: bool,
    op_devices: tuple[str, ...],
    expected: str,
) -> None:
    assert route_for(engine, device, dtype, transformed, op_devices, False).engine == expected


@pytest.mark.parametrize(
    ("engine", "device", "dtype", "transformed", "op_devices", "expected"),
    [
        ("auto", "cpu", torch.float32, False, CPU, "auto"),
        ("auto", "cpu", torch.float32, False, (), "torch"),
        ("auto", "cuda", torch.bfloat16, False, CPU, "torch"),
        ("auto", "mps", torch.float32, False, BOTH, "torch"),
        ("auto", "cpu", torch.complex64, False, (), "reference"),
        ("auto", "cpu", torch.float32, True, (), "reference"),
        ("torch", "cpu", torch.float32, False, CPU, "torch"),
        ("torch", "cpu", torch.float32, True, CPU, "reference"),
        ("torch", "cpu", torch.int64, False, CPU, "reference"),
        ("stepwise", "cpu", torch.float32, False, CPU, "stepwise"),
        ("reference", "mps", torch.float32, False, (), "reference"),
    ],
)
def test_choice_for_a_plain_call(
    engine: str,
    device: str,
    dtype: torch.dtype,
    transformed: bool,
    op_devices: tuple[str, ...],
    expected: str,
) -> None:
    assert route_for(engine, device, dtype, transformed, op_devices, True).engine == expected


@pytest.mark.parametrize(
    ("device", "dtype", "transformed", "op_devices", "why"),
    [
        ("cuda", torch.float32, False, CPU, "built for cpu, meta, and the input is on cuda"),
        ("cpu", torch.int64, False, CPU, "input is torch.int64"),
        ("cpu", torch.float32, True, CPU, "torch.func"),
        ("cpu", torch.float32, False, (), "the extension is not available"),
    ],
)
def test_a_forced_engine_that_cannot_serve(
    device: str, dtype: torch.dtype, transformed: bool, op_devices: tuple[str, ...], why: str
) -> None:
    with pytest.raises(RuntimeError, match=f"'stepwise' cannot serve this call: .*{why}"):
        route_for("stepwise", device, dtype, transformed, op_devices, False)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_an_unknown_engine_lists_the_known(device: str) -> None:
    with pytest.raises(ValueError, match="auto, torch, reference, stepwise.*got 'cudnn'"):
        route_for("cudnn", device, torch.float32, False, CPU, False)
    for module in (fastlstm.LSTM(3, 5), fastlstm.LSTMCell(3, 5)):
        with pytest.raises(ValueError, match="engine: expected one of"):
            module.engine = "cudnn"
        assert module.engine == "auto"


class Calls(TorchDispatchMode):
    """The ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def runs_the_op(lstm: fastlstm.LSTM, x: Tensor) -> bool:
    with Calls() as calls:
        lstm(x)
    return "fastlstm.lstm.default" in calls.names


def test_the_choice_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, x = fastlstm.LSTM(3, 5), torch.zeros(2, 1, 3)
    built = _build.has_kernels("cpu")
    monkeypatch.setattr(_route, "_DEFAULT_ENGINE", "auto")
    assert runs_the_op(lstm, x) == built
    lstm.engine = "reference"
    assert not runs_the_op(lstm, x)
    lstm.engine = "auto"
    monkeypatch.setattr(_route, "_DEFAULT_ENGINE", "reference")
    assert not runs_the_op(lstm, x)
    if built:
        for engine in ("stepwise", "tiled"):  # what is asked for in code wins over the environment
            lstm.engine = engine
            assert runs_the_op(lstm, x)


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize(
    ("engine", "kind"), [("persistent", fastlstm.LSTM), ("tiled", fastlstm.LayerNormLSTM)]
)
def test_an_engine_that_does_not_serve_the_call_says_so(
    engine: str, kind: type[fastlstm.LSTM]
) -> None:
    lstm = kind(3, 5)
    lstm.engine = engine
    with pytest.raises(RuntimeError, match=f'expected engine .*"tiled".*got "{engine}"'):
        lstm(torch.zeros(2, 1, 3))


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize(
    ("devices", "record", "error", "why"),
    [
        (CPU, {"note": "no CUDA toolkit"}, "", "no CUDA toolkit"),
        (
            (*CPU, "cuda"),
            {"note": None, "cuda_arch_list": "9.0"},
            "",
            "they were built for 9.0, not for this GPU",
        ),
        (
            (*CPU, "cuda"),
            {"note": None, "cuda_arch_list": "9.0"},
            "lstm: cudaGetDevice failed: CUDA driver version is insufficient",
            "lstm: cudaGetDevice failed: CUDA driver version is insufficient",
        ),
    ],
)
def test_a_gpu_without_kernels_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    record: dict[str, Any],
    error: str,
    why: str,
) -> None:
    monkeypatch.setattr(_route, "_OP_DEVICES", devices)
    monkeypatch.setattr(_build, "gpu", lambda index: (0, 0, error))
    monkeypatch.setattr(_build, "build_record", lambda: record)
    _build.warn_of_no_cuda_kernels.cache_clear()
    message = f"no CUDA kernels: {why}.*To build them: FASTLSTM_BUILD=cuda .*pip install"
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 1, 3, device="cuda")
    with pytest.warns(RuntimeWarning, match=message) as caught:
        chosen = [_route.of_input(x, "auto", plain=plain).engine for plain in (False, True)]
    assert chosen == ["reference", "torch"]
    assert len(caught) == 1


def in_a_process(engine: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import torch, fastlstm; {code}"],
        env={**os.environ, "FASTLSTM_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_environment_chooses() -> None:
    code = "print(fastlstm._route._DEFAULT_ENGINE); fastlstm.LSTM(3, 5)(torch.zeros(2, 1, 3))"
    good = in_a_process("reference", code)
    assert good.returncode == 0 and good.stdout.strip() == "reference", good.stderr
    bad = in_a_process("cudnn", code)
    assert bad.returncode != 0 and bad.stdout.strip() == "cudnn"  # the call raises, not the import
    assert bad.stderr.count("engine: expected one of auto, torch") == 2
    assert "FASTLSTM_ENGINE" in bad.stderr
    assert in_a_process("", code).stdout.strip() == "auto"


@pytest.mark.skipif(not _build.extension_available(), reason="no extension")
@pytest.mark.parametrize("free", ["garbage", "-1"])
def test_a_wrong_number_of_free_multiprocessors_is_seen_without_a_gpu(
    free: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLSTM_FREE_SMS", free)
    done = in_a_process("auto", "fastlstm.LSTM(3, 5)(torch.zeros(2, 1, 3))")
    assert done.returncode == 0 and "Warning: FASTLSTM_FREE_SMS: expected a number" in done.stderr


@pytest.mark.parametrize("engine", ["auto", "tiled", "stepwise", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_each_bias_has_a_gradient_of_its_own(engine: str, create_graph: bool) -> None:
    """Users scale gradients in place, and all-reduce them. (nn.LSTM itself has one for both.)"""
    lstm, cell = fastlstm.LSTM(3, 5), fastlstm.LSTMCell(3, 5)
    for layer, x in ((lstm, torch.randn(4, 2, 3)), (cell, torch.randn(2, 3))):
        layer.engine = engine
        biases = [p for name, p in layer.named_parameters() if "bias" in name]
        grads = torch.autograd.grad(layer(x)[0].sum(), biases, create_graph=create_graph)
        torch.testing.assert_close(*grads)
        assert grads[0].data_ptr() != grads[1].data_ptr()


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
def test_subnormal_numbers_are_zero_within_a_call_alone() -> None:
    """Gates shut so far that c is subnormal; PyTorch computes with such numbers as before."""
    lstm = fastlstm.LSTM(64, 128)
    with torch.no_grad():
        lstm.bias_ih_l0[:256] = -40  # i and f
    c_0 = torch.full((1, 16, 128), 1e-3)
    tiny = torch.full((1 << 20,), 1e-40)  # enough for every thread
    for x in (torch.randn(40, 16, 64), torch.randn(40, 16, 64, requires_grad=True)):
        output, (_, c_n) = lstm(x, (torch.zeros_like(c_0), c_0))
        output[-1].sum().backward()
        assert c_n.abs().max() < 1e-16
        assert (tiny * 0.5 > 0).all()


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
@pytest.mark.parametrize("reset", [None, torch.tensor([[True, False], [False, False]])])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False}],
    ids=str,
)
def test_a_layer_with_a_state_reaches_the_op_at_once(
    options: dict[str, Any], reset: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm = fastlstm.LSTM(3, 5, **options)
    state = torch.randn(1 + lstm.bidirectional, 2, lstm.proj_size or 5), torch.randn(1, 2, 5)
    state = state[0], state[1].expand(1 + lstm.bidirectional, 2, 5)
    x = torch.randn(2, 2, 3)
    expected = lstm._fastlstm_run(x, state, None, None, reset, False)
    monkeypatch.setattr(fastlstm.functional, "lstm", None)
    torch.testing.assert_close(lstm(x, state, reset=reset), expected, rtol=0, atol=0)


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
def test_what_has_something_to_decide_does_not_reach_the_op_at_once() -> None:
    x, state = torch.randn(2, 2, 3), (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    lstm = fastlstm.LSTM(3, 5)
    assert lstm._fastlstm_forward_by_op(x, state, None) is not None
    assert lstm._fastlstm_forward_by_op(x[:, 0], (state[0][0], state[1][0]), None) is None
    assert lstm._fastlstm_forward_by_op(x, (state[0], state[1][..., :4]), None) is None
    assert lstm._fastlstm_forward_by_op(x.to(torch.complex64), state, None) is None
    with fastlstm._measured.force("torch"):
        assert lstm._fastlstm_forward_by_op(x, state, None) is None
    lstm.zoneout_h = 0.5
    assert lstm._fastlstm_forward_by_op(x, state, None) is None
    assert lstm.eval()._fastlstm_forward_by_op(x, state, None) is not None
    lstm.engine = "stepwise"
    assert lstm._fastlstm_forward_by_op(x, state, None) is None
