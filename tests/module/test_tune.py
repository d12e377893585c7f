"""fastlstm.tune with simulated times, and the file in which it stores the results."""

import json
import linecache
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import _build, tune
from fastlstm.engine import records

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
X = torch.zeros(5, 3, 4)
MODULE = sys.modules["fastlstm.tune"]  # fastlstm.tune is the function


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "cache" / "tuned.json"
    monkeypatch.setenv("FASTLSTM_TUNE", str(path))
    return path


@pytest.fixture
def torch_calls(monkeypatch):
    """A list that grows with each call of PyTorch's own LSTM."""
    calls, real = [], torch._VF.lstm
    monkeypatch.setattr(torch._VF, "lstm", lambda *args: calls.append(1) or real(*args))
    return calls


def tune_with(model, *series):
    """Calls tune(model, X) with simulated seconds of each engine, series after series."""
    left = list(series)

    def times_of(names, _, seconds_in_all):
        assert seconds_in_all == 1  # the default
        seconds = left.pop(0) if len(left) > 1 else left[0]
        return [seconds[name] for name in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "times_of", times_of)
        patch.setattr(MODULE, "runner", lambda call, row: row.name)
        return tune(model, X)


OP_IS_FASTER, TORCH_IS_FASTER = {"op": [1.0], "torch": [2.0]}, {"op": [2.0], "torch": [1.0]}


def test_the_faster_engine_is_chosen_and_remembered(file, torch_calls):
    lstm = fastlstm.LSTM(4, 6)
    ((call, times),) = tune_with(lstm, TORCH_IS_FASTER).items()
    assert list(times.items()) == [("torch", 1e6), ("op", 2e6)]
    ((key, engine),) = json.loads(file.read_text()).items()
    assert key.startswith(call) and f"{torch.get_num_threads()} threads" in key
    assert engine == "torch"
    assert {each.name for each in file.parent.iterdir()} == {file.name, f"{file.name}.lock"}

    def runs_torch(*args, **words):
        before = len(torch_calls)
        lstm(*args, **words)
        return len(torch_calls) > before

    # Sizes with the same next power of two share a measurement.
    assert runs_torch(X) and runs_torch(torch.zeros(8, 4, 4))
    assert not runs_torch(torch.zeros(9, 3, 4))
    assert not runs_torch(X, lengths=torch.tensor([1, 2, 3]))
    with torch.no_grad():
        assert not runs_torch(X)
    lstm.engine = "tiled"
    assert not runs_torch(X)
    lstm.engine = "auto"
    records.tuned.clear(), records.load()  # as a new process does
    assert runs_torch(X)

    (times,) = tune_with(lstm, OP_IS_FASTER).values()
    assert list(times) == ["op", "torch"] and not runs_torch(X)
    assert json.loads(file.read_text()) == {}


@pytest.mark.parametrize("series, chosen", [
    ([{"op": [1.0], "torch": [1.0]}], "op"),  # a tie
    ([{"op": [1.029], "torch": [1.0]}], "op"),  # a difference below 3 %
    ([{"op": [1.03], "torch": [1.0]}], "torch"),
    ([TORCH_IS_FASTER, OP_IS_FASTER], "op"),  # the second series contradicts the first
    ([TORCH_IS_FASTER, TORCH_IS_FASTER, OP_IS_FASTER], "torch"),  # a third is not measured
    # Outliers do not count.
    ([{"op": [1.0, 50.0, 1.0, 1.0, 1.0], "torch": [0.5, 1.0, 1.0, 1.0, 1.0]}], "op"),
    # The median of the ratios of pairs decides.
    ([{"op": [1.0, 2.0, 4.0], "torch": [0.9, 3.0, 3.6]}], "torch"),
])  # fmt: skip
def test_ties_and_noise(series, chosen):
    (times,) = tune_with(fastlstm.LSTM(4, 6), *series).values()
    assert next(iter(times)) == chosen


def test_which_calls_are_measured():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = fastlstm.LSTM(4, 6, batch_first=True)
            self.second = fastlstm.LSTM(6, 4, 2, bidirectional=True, proj_size=3)
            self.forced, self.zoned = fastlstm.LSTM(4, 6), fastlstm.LSTM(4, 6, zoneout_h=0.5)
            self.forced.engine = "tiled"

        def forward(self, x):
            self.forced(x), self.zoned(x), self.first(x, reset=torch.zeros(5, 3))
            self.second(self.first(x[0], None)[0])
            self.first(input=pack_sequence([x[0], x[1, :2]]), hx=None)
            return self.second(self.first(x)[0])

    sizes = list(tune_with(Model(), OP_IS_FASTER))
    assert len(sizes) == 5 and all("training on cpu" in call for call in sizes)
    assert "batch up to 1, steps up to 4" in sizes[0] and "packed" in sizes[2]
    assert "batch up to 8, steps up to 4" in sizes[3]
    assert "output size (6, 4, 3), num_layers 2, directions 2" in sizes[4]
    assert "batch up to 4, steps up to 8" in sizes[4]


@pytest.mark.parametrize("training", [True, False])
def test_which_functions_are_timed(training, monkeypatch, torch_calls):
    lstm, counts, shapes = fastlstm.LSTM(4, 6), [], []

    def times_of(runs, *_):
        torch_calls.clear()
        for run in runs:
            shapes.append([tensor.shape for tensor in run()])
            counts.append(len(torch_calls))
        return [[1.0] for _ in runs]

    monkeypatch.setattr(MODULE, "times_of", times_of)
    with torch.set_grad_enabled(training):
        tune(lstm, X)
    gradients, output = [weight.shape for weight in lstm.parameters()], [(3, 6)] * 5
    assert shapes == [gradients if training else output] * 2
    assert counts == [1, 1]  # PyTorch's LSTM runs first, then the op
    assert records.calls_to_tune is None and all(p.grad is None for p in lstm.parameters())


def test_real_times():
    """The test does not know which engine is faster."""
    (times,) = tune(fastlstm.LSTM(4, 6), X, seconds=0).values()
    assert set(times) == {"op", "torch"} and all(0 < us < 1e6 for us in times.values())


BAD = ["", "[" * 100_000, "[]", '{"call": 5}', '{"call": {"engine": "torch"}}']


@pytest.mark.parametrize("content", BAD)
def test_a_damaged_or_foreign_file_is_ignored_and_kept(file, content):
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.warns(RuntimeWarning, match="fastlstm ignores .*tuned.json.*FASTLSTM_TUNE=off"):
        records.load()
    assert not records.tuned
    lstm = fastlstm.LSTM(4, 6)
    with pytest.warns(RuntimeWarning, match="fastlstm ignores .*tuned.json") as caught:
        tune_with(lstm, TORCH_IS_FASTER)
    assert "return tune(" in linecache.getline(caught[0].filename, caught[0].lineno)
    assert file.read_text() == content and len(records.tuned) == 1
    file.unlink()  # as the warning advises
    tune_with(lstm, TORCH_IS_FASTER)
    assert list(json.loads(file.read_text()).values()) == ["torch"]


def test_entries_of_other_machines_stay_and_change_nothing(file, torch_calls):
    lstm = fastlstm.LSTM(4, 6)
    tune_with(lstm, TORCH_IS_FASTER)
    ((key, _),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({f"another {key}": "torch"}))
    records.tuned.clear(), records.load()  # as a new process does
    lstm(X)
    assert not torch_calls
    tune_with(lstm, TORCH_IS_FASTER)
    assert set(json.loads(file.read_text())) == {key, f"another {key}"}


def test_the_environment_variable(tmp_path, torch_calls, monkeypatch):
    lstm = fastlstm.LSTM(4, 6)
    monkeypatch.setenv("FASTLSTM_TUNE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tune_with(lstm, TORCH_IS_FASTER)
    lstm(X)
    assert torch_calls and not list(tmp_path.iterdir())
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path))
    for call in (records.load, lambda: tune_with(lstm, TORCH_IS_FASTER)):
        with pytest.warns(RuntimeWarning, match="ignores .*, which is a folder; set FASTLSTM"):
            call()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path / "file" / "tuned.json"))
    with pytest.raises(OSError, match="file"):
        tune_with(lstm, TORCH_IS_FASTER)
    monkeypatch.delenv("FASTLSTM_TUNE")
    tune_with(lstm, TORCH_IS_FASTER)
    assert (tmp_path / "fastlstm/tuned.json").exists()
