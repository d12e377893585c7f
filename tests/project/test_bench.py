"""The benchmarks: both sides compute the same, and documents show the measured figures."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_lstm  # noqa: E402
import gpu  # noqa: E402
import peers  # noqa: E402
import random_calls  # noqa: E402
import summary  # noqa: E402
from cases import GROUPS, Case, Group  # noqa: E402
from timing import Pairs, wall_clock  # noqa: E402
from workload import build, check_agreement, settings  # noqa: E402

from fastlstm import _build  # noqa: E402

TINY = Case(2, 5, 3, 4)
needs_extension = pytest.mark.skipif(not _build.extension_available(), reason="no extension")


def small(case):
    """Returns a case of the same kind whose sizes are so small that it takes milliseconds."""
    sizes = {"batch": min(case.batch, 4), "steps": min(case.steps, 9), "input_size": 3}
    proj_size = min(case.proj_size, 2)
    return replace(case, name="", hidden_size=32, proj_size=proj_size, **sizes)


# Kinds of cases that are in no group.
OTHERS = replace(TINY, lengths=True), replace(TINY, lengths=True, mode="inference")
KINDS = sorted({small(c) for c in (*(c for g in GROUPS for c in g.cases), *OTHERS)}, key=str)


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_both_sides_do_the_same_work(case):
    if not peers.is_installed(case.peer):
        pytest.skip(f"needs {case.peer}")
    with settings(case):
        expected, actual = build(case, case.peer, "cpu"), build(case, "auto", "cpu")
        check_agreement(case, expected, actual)
        assert wall_clock(expected.step, 3) > 0
        if case.mode == "inference" or case.saturated:
            assert expected.step().requires_grad == (case.mode == "training")
            return
        assert all(leaf.grad is not None for leaf in actual.leaves)
        with torch.no_grad():
            actual.leaves[1].mul_(2)
        with pytest.raises(RuntimeError, match="the results differ"):
            check_agreement(case, expected, actual)


def test_a_run_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    path, cases = tmp_path / "new" / "run.json", (TINY, replace(TINY, mode="inference"))
    monkeypatch.setattr(bench_lstm, "GROUPS", (Group("tiny", "tiny cases", cases),))
    assert bench_lstm.main(["--seconds", "0.01", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "(2,5,3,4) training" in printed and "; training: mean" in printed
    text = path.read_text()
    assert str(tmp_path) not in text and str(BENCHMARKS.parent) not in text
    record = json.loads(text)
    assert record["complete"] and record["threads"] == torch.get_num_threads()
    assert record["command"].startswith("python benchmarks/bench_lstm.py --seconds")
    assert record["command"].endswith("--output run.json")
    training, inference = record["groups"][0]["results"]
    for entry in (training, inference):
        first, third = entry["quartiles"]
        assert 0 < first <= entry["ratio"] <= third
        assert all(seconds > 0 for seconds in entry["seconds"].values())
    # Training allocates at least the gradients of the input and of the weights.
    gradients = 4 * (2 * 5 * 3 + 16 * (3 + 4 + 2))
    assert all(training["memory"][who]["allocated"] >= gradients for who in ("torch", "fastlstm"))
    assert "memory" not in inference
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_the_documents_show_the_newest_results(tmp_path, monkeypatch):
    """They have what `python benchmarks/summary.py` writes."""
    root = BENCHMARKS.parent
    monkeypatch.setattr(summary, "ROOT", tmp_path)
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    documents = ["docs/reference/figures.md", "docs/programs.md"]
    for name in documents:
        (tmp_path / name).write_text((root / name).read_text())
    summary.main([])
    for name in documents:
        assert (tmp_path / name).read_text() == (root / name).read_text(), name


def test_the_pictures_show_the_newest_results(tmp_path):
    """docs/pictures has the texts that `python benchmarks/chart.py` writes, in the same order."""
    chart = pytest.importorskip("chart", reason="needs matplotlib", exc_type=ImportError)
    chart.draw(tmp_path)
    stored = BENCHMARKS.parent / "docs" / "pictures"
    assert sorted(p.name for p in stored.iterdir()) == sorted(p.name for p in tmp_path.iterdir())
    for path in stored.iterdir():
        old, new = (re.findall("<text.*?>(.*?)</text>", p.read_text(), re.S)
                    for p in (path, tmp_path / path.name))  # fmt: skip
        assert old and old == new, path.name


@needs_extension
def test_the_engines_of_a_gpu_are_compared_before_they_are_timed(monkeypatch):
    found = gpu.measure(TINY, ["auto"], device="cpu")
    assert found["auto"] > 0 and found["torch.nn us"] > 0
    monkeypatch.setitem(gpu.check_agreement.__globals__["AGREEMENT"], "float32", -1.0)
    assert "the results differ by" in gpu.measure(TINY, ["auto"], device="cpu")["auto"]


def test_results_in_16_bits_are_compared_with_float64(monkeypatch):
    limits = check_agreement.__globals__["AGREEMENT"]
    for name in ("bfloat16", "float32"):
        monkeypatch.setitem(limits, name, -1.0)
    case = replace(TINY, precision="bfloat16")
    expected, actual = build(case, "torch.nn", "cpu"), build(case, "auto", "cpu")
    check_agreement(case, expected, actual)
    with torch.no_grad():
        actual.leaves[1].mul_(1.1)
    with pytest.raises(RuntimeError, match="the results differ"):
        check_agreement(case, expected, actual)


def test_random_calls_are_measured_by_group(capsys):
    drawn = list(random_calls.draw(300, seed=7))
    assert drawn[:20] == list(random_calls.draw(20, seed=7)) != list(random_calls.draw(20, seed=8))
    assert max(map(random_calls.multiply_adds, drawn)) <= random_calls.LARGEST
    kinds = {random_calls.group(case) for case in drawn}
    assert len(kinds) == 8 and any(case.proj_size for case in drawn)
    random_calls.report({replace(TINY, lengths=True): 0.5, TINY: 2.0, replace(TINY, steps=3): 4.5})
    printed = " ".join(capsys.readouterr().out.split())
    assert "dense, training 2 3.00 2.00 lengths, training 1 0.50 0.50 all 3 1.65 0.50" in printed
    assert "1 of 3 calls are below 0.97" in printed


def test_a_slow_call_is_measured_again(monkeypatch):
    alternate = Mock(side_effect=[Pairs([0.9], [1.0]), Pairs([1.2], [1.0])])
    monkeypatch.setattr(random_calls, "alternate", alternate)
    assert random_calls.measure(replace(TINY, lengths=True), pairs=2) == 1.2
    assert [effort.min_pairs for (*_, effort), _ in alternate.call_args_list] == [2, 6]
