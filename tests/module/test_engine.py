"""Which engine serves a call, by its options, FASTLSTM_ENGINE and the kernels that were built."""

import functools
import os
import subprocess
import sys

import pytest
import torch

import fastlstm
from fastlstm import _build, functional
from fastlstm.engine import engines
from fastlstm.engine.call import Call, Regularizers

needs_op = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")


def test_the_extension_is_loaded_if_it_was_built():
    """If a build exists it must load; otherwise the tests of the op would be skipped."""
    record = _build.build_record()
    if not record or not record["kinds"]:
        pytest.skip(f"the extension is not built: {_build.unavailable_reason()}")
    assert _build.extension_available(), _build.unavailable_reason()
    assert _build.has_kernels("cpu")
    assert hasattr(torch.ops.fastlstm, "lstm") and hasattr(torch.ops.fastlstm, "lstm_backward")


def call_on(device, **changes):
    with torch._subclasses.FakeTensorMode():
        input = torch.empty(4, 3, 2, device=device, dtype=changes.pop("dtype", torch.float32))
        weights = [torch.empty(20, n, device=device, dtype=input.dtype) for n in (2, 5)]
    return Call(input, None, weights, "")._replace(**changes)


KERNELS = {"none": (), "cpu": ("cpu",), "both": ("cpu", "cuda")}
PLAIN = {}
BF16 = torch.bfloat16
LENGTHS = {"lengths": torch.tensor([1, 2, 3])}
RESET = {"reset": torch.zeros(4, 3, dtype=torch.bool)}
CELLS = {"return_cell_states": True}
STATE = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
ZONEOUT = {"regularizers": Regularizers(zoneout_c=0.5)}
DROPOUT = {"regularizers": Regularizers(recurrent_dropout=0.5)}

# {(device, kernels that were built, engine that "auto" chooses): [changes of a call]}
CHOSEN = {
    ("cpu", "cpu", "op"): [PLAIN, LENGTHS, DROPOUT, {"dtype": BF16}],
    ("cpu", "cpu", "reference"): [ZONEOUT, {"dtype": torch.complex64, **LENGTHS}],
    ("cpu", "cpu", "torch"): [{"dtype": torch.complex64}],
    ("cpu", "none", "torch"): [PLAIN, LENGTHS], ("cpu", "none", "reference"): [RESET],
    ("meta", "cpu", "op"): [PLAIN], ("meta", "none", "torch"): [PLAIN],
    ("cuda", "both", "torch"): [PLAIN, LENGTHS, {**LENGTHS, "hx": STATE},
                                {**LENGTHS, "num_layers": 2, "num_directions": 2, "dtype": BF16}],
    ("cuda", "both", "op"): [RESET, CELLS, {"layout": "layer_norm"}, LENGTHS | CELLS,
                             LENGTHS | RESET, LENGTHS | DROPOUT,
                             {**LENGTHS, "hx": STATE, "num_directions": 2},
                             {**LENGTHS, "hx": STATE, "dtype": BF16}],
    ("cuda", "both", "reference"): [ZONEOUT],
    ("cuda", "cpu", "torch"): [PLAIN, LENGTHS],
    ("mps", "both", "torch"): [PLAIN, LENGTHS], ("mps", "both", "reference"): [RESET],
}  # fmt: skip
CHOSEN = [(*key, change) for key, changes in CHOSEN.items() for change in changes]


@needs_op
@pytest.mark.parametrize("device, kernels, chosen, change", CHOSEN)
@pytest.mark.filterwarnings("error")  # no warning of missing CUDA kernels on other devices
def test_which_engine_auto_chooses(device, kernels, chosen, change, monkeypatch):
    monkeypatch.setattr(engines, "DEFAULT", "auto")
    monkeypatch.setattr(_build, "device_types", KERNELS[kernels])
    monkeypatch.setattr(_build, "_why_not_this_gpu", lambda index: None)
    assert engines.choose(call_on(device, **change)).name == chosen


@needs_op
@pytest.mark.parametrize("engine, device, change, why", [
    ("persistent", "cpu", PLAIN, "it runs on cuda, meta, and the input is on cpu"),
    ("tiled", "cuda", PLAIN, "the extension is for cpu, and the input is on cuda"),
    ("stepwise", "cpu", {"dtype": torch.int64}, "the input is torch.int64"),
    ("tiled", "cpu", DROPOUT, "it has no layer normalization and no recurrent dropout"),
    ("tiled", "cpu", {"layout": "bias layer_norm"}, "it has no layer norm.* dropout"),
    ("stepwise", "cpu", ZONEOUT, "only the reference computes zoneout"),
    ("torch", "cpu", {**LENGTHS, **RESET}, "PyTorch's own LSTM has no reset"),
    ("torch", "cpu", CELLS | ZONEOUT, "no return_cell_states, zoneout_c"),
    ("torch", "cpu", {"layout": "bias layer_norm"}, "has no layer normalization"),
    ("tiled", "cpu", PLAIN, r"extension is not available \(it was not built\)"),
])  # fmt: skip
def test_a_named_engine_that_cannot_serve_a_call(engine, device, change, why, monkeypatch):
    monkeypatch.setattr(_build, "device_types", () if "it was not built" in why else ("cpu",))
    monkeypatch.setattr(_build, "_why_unavailable", "it was not built")
    message = f"engine '{engine}' cannot serve this call: .*{why}; use one of auto, .*reference"
    with pytest.raises(RuntimeError, match=message):
        engines.choose(call_on(device, **change), engine)


@needs_op
@pytest.mark.parametrize("change, gpu, serves", [
    ({"dtype": BF16}, (132, 90), True),
    ({"regularizers": Regularizers(input_dropout=0.5), **LENGTHS}, (132, 90), True),
    ({"dtype": torch.float64}, (132, 90), False),
    ({"layout": "projection"}, (132, 90), False),
    ({"layout": "layer_norm"}, (132, 90), False),
    (DROPOUT, (132, 90), False),
    ({"dtype": BF16}, (40, 75), False),
    ({"dtype": BF16}, (0, 90), False),
    ({"device": "meta", "dtype": BF16}, (0, 90), True),
])  # fmt: skip
def test_which_calls_the_persistent_engine_serves(change, gpu, serves, monkeypatch):
    monkeypatch.setattr(_build, "device_types", ("cpu", "cuda"))
    monkeypatch.setattr(_build, "gpu_properties", {0: (*gpu, "")}.__getitem__)
    reason = engines.BY_NAME["persistent"].why_not(call_on(**{"device": "cuda"} | change))
    assert (reason is None) == serves
    assert serves or str(reason).startswith("it has no float64, ")


def test_an_unknown_engine_lists_the_known():
    weights = [torch.zeros(4, 3), torch.zeros(4, 1)]
    with pytest.raises(ValueError, match="auto, torch, reference, stepwise.*got 'cudnn'"):
        functional.lstm(torch.zeros(2, 1, 3), None, weights, engine="cudnn")
    for module in (fastlstm.LSTM(3, 5), fastlstm.LSTMCell(3, 5)):
        with pytest.raises(ValueError, match="engine: expected one of"):
            module.engine = "cudnn"
        assert module.engine == "auto"


def test_the_chosen_engine_runs(monkeypatch):
    """The attribute of the layer overrides the default, which the environment sets."""
    inputs = {fastlstm.LSTM(3, 5): torch.zeros(2, 1, 3), fastlstm.LSTMCell(3, 5): torch.zeros(1, 3)}
    built = _build.has_kernels("cpu")
    for default, engine, runs in (
        ("auto", "auto", built),
        ("auto", "reference", False),
        ("reference", "auto", False),
        *(("reference", name, True) for name in ("stepwise", "tiled") if built),
    ):
        monkeypatch.setattr(engines, "DEFAULT", default)
        for layer, x in inputs.items():
            layer.engine = engine
            with torch.profiler.profile() as profile:
                layer(x)
            assert ("fastlstm::lstm" in {event.name for event in profile.events()}) == runs


@needs_op
def test_a_call_without_gradients_skips_the_dispatcher():
    x = torch.randn(4, 3, 4)
    for grad, trains in ((False, True), (True, False), (True, True)):
        lstm = fastlstm.LSTM(4, 5).requires_grad_(trains)
        with torch.set_grad_enabled(grad), torch.profiler.profile(record_shapes=True) as trace:
            lstm(x)
        # Only the dispatcher records the shapes of what it passes on.
        [shapes] = [e.input_shapes for e in trace.events() if e.name == "fastlstm::lstm"]
        assert shapes[:1] == [list(x.shape)] * (grad and trains)


NOT_BUILT = "its kernels are for 9.0, not for this GPU"
FAILED = "cudaGetDevice failed: insufficient"


@needs_op
@pytest.mark.parametrize("why", ["no toolkit", NOT_BUILT, FAILED])
def test_a_gpu_without_kernels_warns_once(monkeypatch, why):
    """A plain call does not warn: it runs PyTorch's own LSTM with or without kernels."""
    kinds, error = ("cpu",) if why == "no toolkit" else ("cpu", "cuda"), why * (why == FAILED)
    record = {"note": "no toolkit" if len(kinds) == 1 else None, "cuda_arch_list": "9.0"}
    monkeypatch.setattr(_build, "device_types", kinds)
    monkeypatch.setattr(_build, "gpu_properties", lambda index: (0, 0, error))
    monkeypatch.setattr(_build, "build_record", lambda: record)
    for name in ("warn_of_no_cuda_kernels", "_why_not_this_gpu"):  # with new caches
        monkeypatch.setattr(_build, name, functools.cache(getattr(_build, name).__wrapped__))
    message = f"no CUDA kernels: {why}.*To build them: FASTLSTM_BUILD=cuda .*pip install"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        chosen = [engines.choose(call_on("cuda", **each)).name for each in (PLAIN, *[RESET] * 2)]
    assert chosen == ["torch", "reference", "reference"] and len(caught) == 1


def in_a_process(engine, code):
    command = [sys.executable, "-c", f"import torch, fastlstm; {code}"]
    environment = os.environ | {"FASTLSTM_ENGINE": engine}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_environment_chooses():
    code = "print(fastlstm.engine.engines.DEFAULT); fastlstm.LSTM(3, 5)(torch.zeros(2, 1, 3))"
    good = in_a_process("reference", code)
    assert good.returncode == 0 and good.stdout.strip() == "reference", good.stderr
    bad = in_a_process("cudnn", code)
    assert bad.returncode != 0 and bad.stdout.strip() == "cudnn"  # only the call raises
    assert bad.stderr.count("engine: expected one of auto, torch") == 1
    assert "FASTLSTM_ENGINE" in bad.stderr
    assert in_a_process("", code).stdout.strip() == "auto"


@pytest.mark.parametrize("engine", ["auto", "tiled", "stepwise", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_each_bias_has_a_gradient_of_its_own(engine, create_graph):
    """Users change gradients in place. In nn.LSTM with oneDNN b_ih and b_hh share a gradient."""
    lstm, cell = fastlstm.LSTM(3, 5, proj_size=2), fastlstm.LSTMCell(3, 5)
    for layer, *sizes in (lstm, 4, 2), (lstm, 1, 2), (cell, 2):
        layer.engine = engine
        biases = [p for name, p in layer.named_parameters() if "bias" in name]
        loss = layer(torch.randn(*sizes, 3))[-1][-1].sum()  # of c, which needs W_hr in a later step
        expected = torch.autograd.grad(loss, biases, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=engine != "reference"):
            grads = torch.autograd.grad(loss, biases, create_graph=create_graph)
        torch.testing.assert_close(grads, expected[::-1])  # both are the same
        assert grads[0].data_ptr() != grads[1].data_ptr()
