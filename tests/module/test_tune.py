"""fastlstm.tune with a clock of its own, and the file that it leaves."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import _build, _measured, tune
from fastlstm._call import Call
from fastlstm.engines import Engine

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
X = torch.zeros(5, 3, 4)
MODULE = sys.modules["fastlstm.tune"]  # fastlstm.tune is the function


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv("FASTLSTM_TUNE", str(path))
    return path


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of PyTorch's own LSTM."""
    calls: list[int] = []
    aten: Any = torch._VF
    real = aten.lstm
    monkeypatch.setattr(aten, "lstm", lambda *args: (calls.append(1), real(*args))[1])
    return calls


class Clock:
    """Seconds of a call: those of its engine in turn, the last for ever."""

    def __init__(self, op: list[float], torch: list[float]) -> None:
        self.seconds = {"op": op, "torch": torch}
        self.taken: Counter[str] = Counter()

    def __call__(self, engine: str, device: torch.device) -> float:
        seconds, k = self.seconds[engine], self.taken[engine]
        self.taken[engine] += 1
        return seconds[min(k, len(seconds) - 1)]


def quick(
    model: nn.Module, clock: Any, seconds: float = 0, quiet: bool = True
) -> list[fastlstm.Measurement]:
    """tune(model, X) by a clock of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "seconds_of", clock)
        if isinstance(clock, Clock):
            patch.setattr(MODULE, "_runner", lambda call, row: row.name)
        return tune(model, X, seconds=seconds, quiet=quiet)


def test_the_faster_engine_is_chosen_and_remembered(file: Path, by_torch: list[int]) -> None:
    lstm = fastlstm.LSTM(4, 6)
    (found,) = quick(lstm, Clock([2.0], [1.0]))
    assert found.chosen == "torch" and found.microseconds == {"op": 2e6, "torch": 1e6}
    ((machine, entries),) = json.loads(file.read_text())["machines"].items()
    assert (
        machine == _measured.machine(X.device) and f"{torch.get_num_threads()} threads" in machine
    )
    assert entries == {found.call: {"engine": "torch", "microseconds": found.microseconds}}

    def runs_torch(*args: Any, **words: Any) -> bool:
        before = len(by_torch)
        lstm(*args, **words)
        return len(by_torch) > before

    assert runs_torch(X) and runs_torch(torch.zeros(8, 4, 4))  # up to the same powers of two
    assert not runs_torch(torch.zeros(9, 3, 4))
    assert not runs_torch(X, lengths=torch.tensor([1, 2, 3]))
    with torch.no_grad():
        assert not runs_torch(X)
    lstm.engine = "tiled"
    assert not runs_torch(X)
    lstm.engine = "auto"
    _measured.machines.clear()
    _measured.load()
    assert runs_torch(X)  # as a later process reads it

    (found,) = quick(lstm, Clock([1.0], [2.0]))
    assert found.chosen == "op" and not runs_torch(X)
    assert json.loads(file.read_text())["machines"] == {machine: {}}


@pytest.mark.parametrize(
    ("op", "torch_seconds", "chosen"),
    [
        ([1.0], [1.0], "op"),  # a tie
        ([1.02], [1.0], "op"),  # less than 3 %
        ([1.04], [1.0], "torch"),
        ([9.0, 1.0], [1.0], "op"),  # the first calls, which fill caches, do not count
        ([1.0], [9.0, 0.5, 0.5, 0.5, 1.0], "op"),  # a lucky round is measured again
        ([1.0, 50.0, 1.0, 1.0] * 2, [1.0], "op"),  # something else ran once, and once again
    ],
)
def test_ties_and_noise(op: list[float], torch_seconds: list[float], chosen: str) -> None:
    (found,) = quick(fastlstm.LSTM(4, 6), Clock(op, torch_seconds))
    assert found.chosen == chosen


def test_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = fastlstm.LSTM(4, 6, batch_first=True)
            self.second = fastlstm.LSTM(6, 4, 2, bidirectional=True)
            self.forced, self.zoned = fastlstm.LSTM(4, 6), fastlstm.LSTM(4, 6, zoneout_h=0.5)
            self.forced.engine = "tiled"

        def forward(self, x: torch.Tensor) -> Any:
            self.forced(x), self.zoned(x), self.first(x, reset=torch.zeros(5, 3))
            self.second(self.first(x[0], None)[0])
            self.first(input=pack_sequence([x[0], x[1, :2]]), hx=None)
            return self.second(self.first(x)[0])

    found = quick(Model(), Clock([1.0], [2.0]), quiet=False)
    sizes = [m.call for m in found]
    assert len(sizes) == len(set(sizes)) == 5 and all("training" in call for call in sizes)
    assert "batch up to 1, steps up to 4" in sizes[0] and "packed" in sizes[2]
    assert "batch up to 8, steps up to 4" in sizes[3]
    assert "num_layers 2, directions 2" in sizes[4] and "batch up to 4, steps up to 8" in sizes[4]
    told = capsys.readouterr().out
    assert told.count(" op ") == 5 and all(call in told for call in sizes)


@pytest.mark.parametrize("training", [True, False])
def test_how_a_call_is_timed(
    training: bool, monkeypatch: pytest.MonkeyPatch, by_torch: list[int]
) -> None:
    lstm, order, shapes = fastlstm.LSTM(4, 6), [], []

    def clock(run: Any, device: torch.device) -> float:
        before = len(by_torch)
        shapes.append([tensor.shape for tensor in run()])
        order.append("torch" if len(by_torch) > before else "op")
        return 1.0

    with torch.set_grad_enabled(training):
        quick(lstm, clock)
    gradients, output = [weight.shape for weight in lstm.parameters()], [(3, 6)] * 5
    assert all(found == (gradients if training else output) for found in shapes)
    there, back = ["op", "torch"], ["torch", "op"]
    assert order == [*there, *there, *back, *there]  # one to warm up, three rounds
    order.clear()
    monkeypatch.setattr(MODULE, "MOST_ROUNDS", 5)
    quick(lstm, clock, seconds=1e9)
    assert len(order) == 2 * (1 + 5)
    assert _measured.noted is None


def test_a_model_without_a_call_to_measure() -> None:
    with pytest.raises(ValueError, match=r"expected a model that .*fastlstm\.convert"):
        quick(nn.LSTM(4, 6), Clock([1.0], [1.0]))
    with pytest.raises(TypeError, match="model: expected a module, got the class LSTM"):
        quick(fastlstm.LSTM, Clock([1.0], [1.0]))  # type: ignore[arg-type]


def test_no_run_depends_on_its_own_measurement_if_it_is_deterministic(
    file: Path, by_torch: list[int]
) -> None:
    lstm = fastlstm.LSTM(4, 6)
    torch.use_deterministic_algorithms(True)
    try:
        quick(lstm, Clock([2.0], [1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    by_torch.clear()
    lstm(X)
    assert not by_torch
    _measured.load()
    lstm(X)
    assert by_torch


def test_it_is_not_for_processes_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="before torch.distributed is initialized"):
        quick(fastlstm.LSTM(4, 6), Clock([1.0], [1.0]))


BAD = ["", "[" * 100_000, '{"format": 2, "machines": {}}', '{"format": 1}',
       '{"format": 1, "machines": {"m": {"c": {"engine": 5}}}}']  # fmt: skip


@pytest.mark.parametrize("content", BAD)
def test_a_damaged_or_foreign_file_is_ignored_and_kept(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.warns(RuntimeWarning, match="fastlstm ignores .*tuned.json.*FASTLSTM_TUNE=off"):
        _measured.load()
    assert not _measured.active
    lstm = fastlstm.LSTM(4, 6)
    with pytest.warns(RuntimeWarning, match="cannot be written .* not what fastlstm.tune writes"):
        quick(lstm, Clock([2.0], [1.0]))
    assert file.read_text() == content and _measured.active
    file.unlink()  # as the warning says
    quick(lstm, Clock([2.0], [1.0]))
    assert len(json.loads(file.read_text())["machines"]) == 1


def test_entries_of_other_machines_stay_and_change_nothing(file: Path, by_torch: list[int]) -> None:
    lstm = fastlstm.LSTM(4, 6)
    quick(lstm, Clock([2.0], [1.0]))
    record = json.loads(file.read_text())
    (entries,) = record["machines"].values()
    record["machines"] = {"another": entries}
    file.write_text(json.dumps(record))
    _measured.machines.clear()
    _measured.load()
    by_torch.clear()
    lstm(X)
    assert not by_torch
    quick(lstm, Clock([2.0], [1.0]))
    assert set(json.loads(file.read_text())["machines"]) == {"another", _measured.machine(X.device)}


def test_what_is_no_file_is_neither_read_nor_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="fastlstm ignores"):
        _measured.load()
    with pytest.warns(RuntimeWarning, match="cannot be written .*not what fastlstm.tune writes"):
        quick(fastlstm.LSTM(4, 6), Clock([2.0], [1.0]))
    assert tmp_path.is_dir()
    monkeypatch.setenv("FASTLSTM_TUNE", "~nobody-of-this-name/tuned.json")
    _measured.load()  # as at import
    with pytest.warns(RuntimeWarning, match="cannot be written .*home"):
        quick(fastlstm.LSTM(4, 6), Clock([2.0], [1.0]))


def test_a_refused_launch_leaves_an_engine_out() -> None:
    def refuse(call: Call) -> Any:
        raise RuntimeError("the launch failed")

    call = Call(X, None, list(fastlstm.LSTM(4, 6).parameters()), "bias")
    with pytest.warns(RuntimeWarning, match="tune leaves out 'persistent': the launch failed"):
        assert not MODULE._runs(call, Engine("persistent", lambda call: None, refuse))
    assert not MODULE._runs(call, Engine("persistent", lambda call: "no", refuse))
    assert MODULE._runs(call, Engine("torch", lambda call: None, refuse))
