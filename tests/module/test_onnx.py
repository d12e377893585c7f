"""ONNX export: each layer becomes one LSTM node, and onnxruntime gives the module's results."""

import collections
import functools
import traceback

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import _build
from fastlstm.engine import engines

needs_op = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
AS_IMPORTED = engines.has_onnx_translations

LIBRARIES = "onnxscript", "onnx", "onnxruntime"
MISSING = "the extra onnx is not installed"
_, onnx, onnxruntime = (pytest.importorskip(name, reason=MISSING) for name in LIBRARIES)


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = fastlstm.LSTM(3, 5, **options)
        self.linear = nn.Linear(10 if self.lstm.bidirectional else 5, 2)

    def forward(self, x, h_0=None, c_0=None, lengths=None):
        hx = None if h_0 is None or c_0 is None else (h_0, c_0)
        output, (h_n, c_n) = self.lstm(x, hx, lengths=lengths)
        return self.linear(output), h_n, c_n


def inputs(model, batch, steps, given):
    lstm = model.lstm
    states = lstm.num_layers * (2 if lstm.bidirectional else 1)
    x = torch.randn(batch, steps, 3)
    tensors = {"x": x if lstm.batch_first else x.transpose(0, 1).contiguous()}
    if "state" in given:
        tensors |= {"h_0": torch.randn(states, batch, 5), "c_0": torch.randn(states, batch, 5)}
    if "lengths" in given:
        tensors["lengths"] = torch.arange(batch) * 5 % steps + 1
    return tensors


def export(model, given):
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    x = {0: B, 1: T} if model.lstm.batch_first else {0: T, 1: B}
    shapes = {"x": x, "h_0": {1: B}, "c_0": {1: B}, "lengths": {0: B}}
    example = inputs(model, 3, 6, given)
    options = {"dynamic_shapes": {name: shapes[name] for name in example}, "verbose": False}
    options["custom_translation_table"] = fastlstm.onnx.translations()
    return torch.onnx.export(model.eval(), (), kwargs=example, dynamo=True, **options).model_proto


@needs_op
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("given, options", [
    ("", {}),
    ("lengths and state", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("lengths", {"bias": False}),
])  # fmt: skip
def test_onnxruntime_gives_the_same(given, options):
    model = Model(**options).eval()
    proto = export(model, given)
    onnx.checker.check_model(proto)
    nodes = collections.Counter(node.op_type for node in proto.graph.node)
    assert nodes["LSTM"] == model.lstm.num_layers and "Loop" not in nodes and "Scan" not in nodes
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for batch, steps in ((3, 6), (1, 9), (4, 2)):
        example = inputs(model, batch, steps, given)
        found = session.run(None, {name: t.numpy() for name, t in example.items()})
        with torch.no_grad():
            expected = model(**example)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-5, atol=1e-5)


LSTM = functools.partial(fastlstm.LSTM, 3, 5)
LACKS = {  # by the option that ONNX lacks: a function that makes an LSTM, and options of its call
    "proj_size": (lambda: LSTM(proj_size=2), {}),
    "reset": (LSTM, {"reset": torch.zeros(4, 2)}),
    "return_cell_states": (LSTM, {"return_cell_states": True}),
    "layer normalization": (lambda: fastlstm.LayerNormLSTM(3, 5), {}),
    "prepack": (lambda: fastlstm.prepack(LSTM().eval()), {}),
}


@needs_op
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("what", LACKS)
def test_the_error_names_the_option_that_onnx_lacks(what):
    make, given = LACKS[what]
    model, x = make().eval(), torch.randn(4, 2, 3)
    options = {"custom_translation_table": fastlstm.onnx.translations(), "verbose": False}
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as error:
        torch.onnx.export(model, (x,), kwargs=given, dynamo=True, **options)
    message = "operator of ONNX has no" if what != "prepack" else "onnx: export a model before"
    assert f"{message} {what}" in "".join(traceback.format_exception(error.value))


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_build, "_why_unavailable", "it was not built")
    with pytest.raises(RuntimeError, match=r"onnx: the extension is not available .* to=\"torch\""):
        fastlstm.onnx.translations()


@pytest.mark.filterwarnings("ignore")  # torch warns of the older exporter and of tracing
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("given", ["", "lengths"])
def test_export_without_translations(dynamo, given, tmp_path, monkeypatch):
    """A library that exports the models of its users cannot be given the table of fastlstm."""
    monkeypatch.setattr(engines, "has_onnx_translations", AS_IMPORTED)
    model, path = Model(num_layers=2, bidirectional=True).eval(), tmp_path / "model.onnx"
    example = inputs(model, 3, 6, given)
    torch.onnx.export(model, (), path, kwargs=example, dynamo=dynamo, verbose=False)
    assert [node.op_type for node in onnx.load(path).graph.node].count("LSTM") == 2
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    tensors = [tensor.numpy() for tensor in example.values()]
    found = session.run(None, dict(zip(names, tensors, strict=True)))
    for a, b in zip(found, model(**example), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b.detach())


def test_a_cell_needs_no_translations(monkeypatch):
    monkeypatch.setattr(engines, "has_onnx_translations", AS_IMPORTED)
    lstm, x = fastlstm.LSTMCell(3, 5).eval(), torch.randn(2, 3)
    torch.onnx.export(lstm, (x,), dynamo=True, verbose=False)
