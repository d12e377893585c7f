"""fastlstm.tune with times of its own, and the file that it leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import _build, _measured, tune

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
X = torch.zeros(5, 3, 4)
MODULE = sys.modules["fastlstm.tune"]  # fastlstm.tune is the function
Found = dict[str, dict[str, float]]


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


def quick(model: nn.Module, *series: dict[str, list[float]]) -> Found:
    """tune(model, X) with the seconds of each engine, in one series and then in the next."""
    left = list(series)

    def in_turn(names: Any, *_: Any) -> list[list[float]]:
        seconds = left.pop(0) if len(left) > 1 else left[0]
        return [seconds[name] for name in names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "in_turn", in_turn)
        patch.setattr(MODULE, "_runner", lambda call, row: row.name)
        return tune(model, X)


OURS, THEIRS = {"op": [1.0], "torch": [2.0]}, {"op": [2.0], "torch": [1.0]}  # the faster one


def as_in_a_later_process() -> None:
    _measured.tuned.clear()
    _measured.load()


def test_the_faster_engine_is_chosen_and_remembered(file: Path, by_torch: list[int]) -> None:
    lstm = fastlstm.LSTM(4, 6)
    ((call, times),) = quick(lstm, THEIRS).items()
    assert list(times.items()) == [("torch", 1e6), ("op", 2e6)]
    ((key, engine),) = json.loads(file.read_text()).items()
    assert key.startswith(call) and f"{torch.get_num_threads()} threads" in key
    assert engine == "torch" and [each.name for each in file.parent.iterdir()] == [file.name]

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
    as_in_a_later_process()
    assert runs_torch(X)

    (times,) = quick(lstm, OURS).values()
    assert list(times) == ["op", "torch"] and not runs_torch(X)
    assert json.loads(file.read_text()) == {}


@pytest.mark.parametrize(
    ("series", "chosen"),
    [
        ([{"op": [1.0], "torch": [1.0]}], "op"),  # a tie
        ([{"op": [1.02], "torch": [1.0]}], "op"),  # less than 3 %
        ([{"op": [1.04], "torch": [1.0]}], "torch"),
        ([THEIRS, OURS], "op"),  # a lucky series
        (
            [{"op": [1.0, 50.0, 1.0, 1.0, 1.0], "torch": [0.5, 1.0, 1.0, 1.0, 1.0]}],
            "op",
        ),  # outliers
        ([{"op": [1.0, 2.0, 4.0], "torch": [0.9, 3.0, 3.6]}], "torch"),  # by pairs
    ],
)
def test_ties_and_noise(series: Sequence[dict[str, list[float]]], chosen: str) -> None:
    (times,) = quick(fastlstm.LSTM(4, 6), *series).values()
    assert next(iter(times)) == chosen


def test_what_is_measured() -> None:
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

    sizes = list(quick(Model(), OURS))
    assert len(sizes) == 5 and all("training on cpu" in call for call in sizes)
    assert "batch up to 1, steps up to 4" in sizes[0] and "packed" in sizes[2]
    assert "batch up to 8, steps up to 4" in sizes[3]
    assert "num_layers 2, directions 2" in sizes[4] and "batch up to 4, steps up to 8" in sizes[4]


@pytest.mark.parametrize("training", [True, False])
def test_what_is_timed(
    training: bool, monkeypatch: pytest.MonkeyPatch, by_torch: list[int]
) -> None:
    lstm, engines, shapes = fastlstm.LSTM(4, 6), [], []

    def in_turn(runs: Sequence[Callable[[], Any]], *_: Any) -> list[list[float]]:
        by_torch.clear()
        for run in runs:
            shapes.append([tensor.shape for tensor in run()])
            engines.append(len(by_torch))
        return [[1.0] for _ in runs]

    monkeypatch.setattr(MODULE, "in_turn", in_turn)
    with torch.set_grad_enabled(training):
        tune(lstm, X)
    gradients, output = [weight.shape for weight in lstm.parameters()], [(3, 6)] * 5
    assert shapes == [gradients if training else output] * 2
    assert engines == [1, 1]  # PyTorch's, then ours
    assert _measured.noted is None and all(p.grad is None for p in lstm.parameters())


def test_a_clock() -> None:
    """tune as users call it; which engine is faster is not known here."""
    (times,) = tune(fastlstm.LSTM(4, 6), X, seconds=0).values()
    assert set(times) == {"op", "torch"} and all(0 < us < 1e6 for us in times.values())


def test_a_model_without_a_call_to_measure() -> None:
    with pytest.raises(ValueError, match=r"expected a model that .*fastlstm\.convert"):
        quick(nn.LSTM(4, 6), OURS)
    with pytest.raises(TypeError, match="model: expected a module, got the class LSTM"):
        quick(fastlstm.LSTM, OURS)  # type: ignore[arg-type]


BAD = ["", "[" * 100_000, "[]", '{"call": 5}', '{"call": {"engine": "torch"}}']


@pytest.mark.parametrize("content", BAD)
def test_a_damaged_or_foreign_file_is_ignored_and_kept(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.warns(RuntimeWarning, match="fastlstm ignores .*tuned.json.*FASTLSTM_TUNE=off"):
        _measured.load()
    assert not _measured.tuned
    lstm = fastlstm.LSTM(4, 6)
    with pytest.warns(RuntimeWarning, match="fastlstm ignores .*tuned.json"):
        quick(lstm, THEIRS)
    assert file.read_text() == content and len(_measured.tuned) == 1
    file.unlink()  # as the warning says
    quick(lstm, THEIRS)
    assert list(json.loads(file.read_text()).values()) == ["torch"]


def test_a_folder_in_place_of_the_file(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="ignores .*tuned.json, which is a folder; set FASTL"):
        assert _measured.load() is None


def test_entries_of_other_machines_stay_and_change_nothing(file: Path, by_torch: list[int]) -> None:
    lstm = fastlstm.LSTM(4, 6)
    quick(lstm, THEIRS)
    ((key, _),) = json.loads(file.read_text()).items()
    file.write_text(json.dumps({f"another {key}": "torch"}))
    as_in_a_later_process()
    lstm(X)
    assert not by_torch
    quick(lstm, THEIRS)
    assert set(json.loads(file.read_text())) == {key, f"another {key}"}


def test_no_file(tmp_path: Path, by_torch: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = fastlstm.LSTM(4, 6)
    monkeypatch.setenv("FASTLSTM_TUNE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick(lstm, THEIRS)
    lstm(X)
    assert by_torch and not list(tmp_path.iterdir())
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path))  # a folder
    with pytest.warns(RuntimeWarning, match="fastlstm ignores"):
        quick(lstm, THEIRS)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path / "file" / "tuned.json"))
    with pytest.raises(OSError, match="file"):
        quick(lstm, THEIRS)
    monkeypatch.delenv("FASTLSTM_TUNE")
    quick(lstm, THEIRS)
    assert (tmp_path / "fastlstm/tuned.json").exists()
