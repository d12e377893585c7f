"""The programs and the notebook in examples/ run, and their LSTMs give equal results."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, request):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


SHORT_RUNS = {
    "language_model": ["--steps", "2", "--hidden", "16", "--batch", "256", "--window", "16"],
    "recurrent_policy": ["--updates", "2", "--batch", "4", "--steps", "12", "--corridor", "4"],
}


@pytest.mark.parametrize("example", SHORT_RUNS, indirect=True)
def test_examples_run(example):
    """Both LSTMs, trained from the same seed, reach the same score but for rounding."""
    results = example.main(SHORT_RUNS[example.__name__])
    assert list(results) == ["fastlstm", "torch"]
    assert results["fastlstm"][0] == pytest.approx(results["torch"][0], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("example", ["stream"], indirect=True)
def test_a_stream_runs(example, threads):
    """Each way to run the stream gives the scores of nn.LSTM, within the error of its weights."""
    errors = example.main(["--hidden", "48", "--seconds", "1"])
    limits = {"nn.LSTM": 0, "onnxruntime": 1e-5, "prepack, float32": 1e-5}
    limits |= {"prepack, bfloat16": 0.01, "prepack, int8": 0.05}
    if any(find_spec(name) is None for name in ("onnxruntime", "onnxscript")):
        del limits["onnxruntime"]
    assert list(errors) == list(limits)
    assert all(errors[name] <= limit for name, limit in limits.items()), errors


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """Runs the cells in order, in one namespace. Its figure must have a bar for every time."""
    pytest.importorskip("matplotlib", reason="the notebook plots")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "replace_an_lstm.ipynb").read_text())
    namespace = {}
    for k, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"code cell {k + 1}", "exec"), namespace)
        assert cell["outputs"] or cell["execution_count"], "the notebook is stored with its outputs"
    training, single = ([b.get_height() for b in axes.patches] for axes in namespace["figure"].axes)
    assert training == [time for times in namespace["training"].values() for time in times]
    assert single == [time for times in namespace["single"].values() for time in times]
