"""The benchmark: that both sides do the same work, that its figures are what was measured."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_lstm  # noqa: E402
import floor  # noqa: E402
import memory  # noqa: E402
import never_slower  # noqa: E402
import overhead  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import summary  # noqa: E402
from cases import GROUPS, Case, Group  # noqa: E402
from timing import Effort, Pairs, Rested, alternate, cpu_clock, median_time  # noqa: E402
from workload import build, check_agreement, ragged_lengths, settings  # noqa: E402

from fastlstm import _build  # noqa: E402

TINY = Case(2, 5, 3, 4)
needs_extension = pytest.mark.skipif(not _build.extension_available(), reason="no extension")


def test_no_case_is_measured_twice() -> None:
    cases = [case for group in GROUPS for case in group.cases]
    assert len(cases) == len(set(cases)) == len(set(map(str, cases)))
    assert len(GROUPS) == len({group.key for group in GROUPS})


def test_pairs() -> None:
    pairs = Pairs([2.0, 6.0, 4.0, 9.0, 10.0], [1.0, 2.0, 4.0, 3.0, 2.0])  # ratios 2 3 1 3 5
    assert pairs.ratio == 3.0
    assert pairs.quartiles == (2.0, 3.0)
    # It is not the ratio of the medians, 10 / 10.
    assert Pairs([1.0, 10.0, 100.0], [10.0, 2.0, 20.0]).ratio == 5.0


def test_alternate_takes_turns_and_stops() -> None:
    calls: list[str] = []
    first, second = (lambda: calls.append("a")), (lambda: calls.append("b"))

    def clock(step: Callable[[], object], count: int) -> float:
        step()
        return {first: 3.0, second: 1.0}[step]

    pairs = alternate(first, second, clock, Effort(60.0, min_pairs=9, max_pairs=4))
    warm_up = 2 * ["a"] + 2 * ["b"]
    assert calls == [*warm_up, *"baabbaab"]
    assert pairs.ratios == [3.0] * 4
    assert len(alternate(first, second, clock, Effort(0.0, min_pairs=9)).ratios) == 3


def test_samples_last_long_enough() -> None:
    counts: list[int] = []

    def clock(step: Callable[[], object], count: int) -> float:
        counts.append(count)
        return 2.0**-19

    assert median_time(lambda: None, clock, Effort(0.0, sample=2.0**-10)) == 2.0**-19
    assert counts[-3:] == [512] * 3


def test_a_clock_counts_each_call() -> None:
    calls: list[None] = []
    assert 0 <= cpu_clock(lambda: calls.append(None), 7) < 0.1
    assert len(calls) == 7
    cpu_clock(Rested(lambda: calls.append(None)), 3)
    assert len(calls) == 13


def test_flops() -> None:
    case = Case(3, 5, 7, 11, "inference")
    assert floor.flops(case) == 2 * 15 * 44 * 18
    assert floor.flops(replace(case, mode="training")) == 3 * floor.flops(case)
    assert floor.flops(case, steps=10) == 2 * 10 * 44 * 18
    assert floor.flops(replace(case, proj_size=4)) == 2 * 15 * (44 * (7 + 4) + 4 * 11)
    two_layers = replace(case, num_layers=2, bidirectional=True)
    assert floor.flops(two_layers) == 2 * (2 * 15 * 44 * (7 + 11)) + 2 * (2 * 15 * 44 * (22 + 11))


def test_gemm_peak_is_a_rate() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    peak = floor.gemm_peak(torch.float32, [(64, 64, 64), (256, 256, 256)])
    assert peak is not None and 1e8 < peak < 1e15
    assert floor.gemm_peak(torch.float64, [(64, 64, 64)]) is None


@pytest.mark.parametrize(("batch", "steps"), [(128, 20), (32, 50), (32, 200), (8, 400)])
def test_ragged_lengths(batch: int, steps: int) -> None:
    lengths = ragged_lengths(batch, steps)
    assert lengths.shape == (batch,) and lengths.min() >= 1 and lengths.max() == steps
    assert 0.6 <= lengths.sum() / (batch * steps) <= 0.75
    assert torch.equal(lengths, ragged_lengths(batch, steps))


FROZEN = replace(TINY, hidden_size=32, mode="inference", prepacked="int8")


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        replace(TINY, batch=8, steps=10, ragged=True, num_layers=2, bidirectional=True),
        replace(TINY, steps=1, mode="inference"),
        replace(TINY, steps=1, mode="inference", module="LSTMCell"),
        replace(TINY, module="LSTMCell"),
        replace(TINY, batch=4, steps=9, resets=True),
        replace(TINY, batch=1, ragged=True, bidirectional=True),
        replace(TINY, precision="bfloat16"),
        replace(TINY, precision="float64"),
        replace(TINY, proj_size=2, steps=1, mode="inference"),
        replace(FROZEN, prepacked="float32"),
        replace(FROZEN, module="LSTMCell", steps=1),
        replace(FROZEN, beside="torch.ao"),
        replace(FROZEN, prepacked="float32", beside="onnxruntime"),
        replace(FROZEN, beside="onnxruntime int8"),
    ],
    ids=str,
)
def test_both_sides_do_the_same_work(case: Case) -> None:
    if not peers.is_installed(case.beside):
        pytest.skip(f"needs {case.beside}")
    with settings(case):
        expected, actual = build(case, case.beside, "cpu"), build(case, "auto", "cpu")
        check_agreement(case, expected, actual)
        assert cpu_clock(expected.step, 3) > 0
        if case.mode == "inference":
            assert not expected.step().requires_grad
            return
        assert all(leaf.grad is not None for leaf in actual.leaves)
        with torch.no_grad():
            actual.leaves[1].mul_(2)
        with pytest.raises(RuntimeError, match="the results differ"):
            check_agreement(case, expected, actual)


def run(monkeypatch: pytest.MonkeyPatch, path: Path, cases: list[Case], *arguments: str) -> int:
    group = Group("tiny", "tiny cases", tuple(cases))
    monkeypatch.setattr(bench_lstm, "GROUPS", (group,))
    words = ["--seconds", "0.01", "--output", str(path)]
    return bench_lstm.main([*words, *arguments])


def test_a_run_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "run.json"
    assert run(monkeypatch, path, [TINY, replace(TINY, mode="inference")]) == 0
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
    # The gradients alone: the input's, and those of the weights.
    gradients = 4 * (2 * 5 * 3 + 16 * (3 + 4 + 2))
    assert all(training["memory"][who]["allocated"] >= gradients for who in ("torch", "fastlstm"))
    assert "memory" not in inference
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "bench_lstm.py"), "--quick"]
    options = ["--group", "step,cell", "--seconds", "0.01", "--output", "run.json"]
    subprocess.run([*script, *options], cwd=tmp_path, check=True, timeout=120)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [len(group["results"]) for group in record["groups"]] == [2, 4]


def test_a_refused_case_is_reported_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    cases = [replace(TINY, mode="inference", precision=p) for p in ("float16", "float32")]
    pairs = bench_lstm.Bench._pairs

    def refuse_half(self: Any, case: Case) -> Pairs:
        if case.precision == "float16":
            raise RuntimeError("no half")
        return pairs(self, case)

    monkeypatch.setattr(bench_lstm.Bench, "_pairs", refuse_half)
    assert run(monkeypatch, path, cases) == 1
    refused, measured = json.loads(path.read_text())["groups"][0]["results"]
    assert refused["error"] == "RuntimeError: no half" and measured["ratio"] > 0
    assert "1 failed" in capsys.readouterr().out


def test_allocated_memory_is_the_peak() -> None:
    def step() -> torch.Tensor:
        first = torch.empty(2**20, dtype=torch.uint8)
        del first
        blocks = [torch.empty(2**20, dtype=torch.uint8) for _ in range(3)]
        return blocks[0][:1].clone()

    assert 3 * 2**20 <= memory.allocated(step) < 3 * 2**20 + 4096


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    report.write_json(path, {"ratio": 1.0})
    with pytest.raises(ValueError):
        report.write_json(path, {"ratio": math.nan})
    assert json.loads(path.read_text()) == {"ratio": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--group dense,typo", "--group: expected some of real, .* got typo"),
        ("--output run.txt", "--output: expected a name that ends in .json, got run.txt"),
        ("--seconds 0", "--seconds: expected a positive number, got 0"),
    ],
)
def test_bad_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_lstm.parse(arguments.split())
    assert re.search(message, capsys.readouterr().err)


def record(cpu: str, date: str, **groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "machine": {"cpu": cpu, "capability": "AVX2"},
        "threads": 2,
        "versions": {"torch": "2.13.0"},
        "git": {"commit": "0123456789", "dirty": True},
        "date": f"{date}T03:04:05+00:00",
        "gemm_peak": {"float32": 5.3e11},
        "quick": False,
        "complete": False,
        "command": "python bench",
        "groups": [{"key": k, "title": k, "results": results} for k, results in groups.items()],
    }


def result(ratio: float, mode: str = "training", **more: Any) -> dict[str, Any]:
    return {"case": {"mode": mode, "resets": False}, "ratio": ratio, **more}


def test_a_summary_says_what_was_measured_and_what_failed() -> None:
    peaks = {"torch": {"allocated": 100}, "fastlstm": {"allocated": 101}}
    dense = [result(1.0), result(4.0, memory=peaks), result(3.0, "inference")]
    failed: dict[str, Any] = {"case": {"mode": "training"}, "error": "RuntimeError: no"}
    found = summary.summary(record("a CPU", "2026-01-02", dense=[*dense, failed], nothing=[]))
    assert found.splitlines() == [
        "a CPU, 2 threads, AVX2; torch 2.13.0; commit 0123456 with changes; 2026-01-02; "
        "GEMM peak in GFLOP/s: float32 530; stopped before the end. `python bench`",
        "",
        "| peer / fastlstm | cases | inference | training | peak memory, allocated | resident |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dense | 4, 1 failed | 3.00 | 2.00 (1.00) | 1.01 | - |",
        "| nothing | 0 | - | - | - | - |",
    ]


def test_the_front_page_has_a_column_for_each_processor() -> None:
    resets = {"case": {"mode": "training", "resets": True}, "ratio": 9.0}
    real = [result(2.0, "inference"), resets]
    one = record("a CPU", "2026-01-02", dense=[result(1.0), result(4.0)], real=real, double=real)
    two = record("other", "2026-01-03", step=[result(5.0, "inference")])
    assert summary.front_page([one, two]).splitlines()[2:] == [
        "| dense | - | 2.00 (1.00) | - | - |",
        "| resets, beside a loop over the steps | - | 9.00 | - | - |",
        "| LSTMs of known projects without resets | 2.00 | - | - | - |",
        "| step | - | - | 5.00 | - |",
    ]
    assert "| a CPU, 2 threads, 2026-01-02, 0123456: inference | training | other" in (
        summary.front_page([one, two])
    )


def test_of_each_processor_the_newest_result_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="expected files lstm-cpu"):
        summary.newest()
    for k, cpu, date in ((1, "b", "2026-01-02"), (0, "b", "2026-01-03"), (2, "a", "2026-01-01")):
        report.write_json(tmp_path / f"lstm-cpu-2026{k}.json", record(cpu, date))
    found = [(r["machine"]["cpu"], r["date"][:10]) for r in summary.newest()]
    assert found == [("a", "2026-01-01"), ("b", "2026-01-03")]


def test_the_documents_show_the_newest_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold what `python benchmarks/summary.py` writes."""
    root = BENCHMARKS.parent
    monkeypatch.setattr(summary, "ROOT", tmp_path)
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    documents = ["README.md", "docs/reference/figures.md"]
    for name in documents:
        (tmp_path / name).write_text((root / name).read_text())
    summary.main([])
    for name in documents:
        assert (tmp_path / name).read_text() == (root / name).read_text(), name


@needs_extension
def test_never_slower(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTLSTM_TUNE", "off")  # put back afterwards
    monkeypatch.setattr(never_slower, "LARGEST", 1e6)
    ratios = iter([0.5, 1.0, 1.2, 1.0])
    monkeypatch.setattr(never_slower, "ratio", lambda *args: next(ratios))
    never_slower.main(["--cases", "2", "--seconds", "0.01", "--device", "cpu"])
    told = capsys.readouterr().out
    assert "before tune: 1 of 2 below 0.97; least 0.50\n" in told
    assert "after tune: 0 of 2 below 0.97; least 1.00\n" in told


@needs_extension
def test_overhead(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each row has a time of the module, and what a row compares gives the same."""
    path = tmp_path / "overhead.json"
    overhead.main(["--seconds", "0", "--json", str(path)])
    printed = capsys.readouterr().out
    for name, us in json.loads(path.read_text()).items():
        assert f"| {name} |" in printed and us["module"] > 0
    with torch.no_grad():
        for columns in overhead.cases(3, 4, 5).values():
            theirs, ours, op = (columns.get(name) for name in ("nn", "module", "op"))
            found: Any = ours and ours()
            for other in filter(None, (theirs, op)):
                torch.testing.assert_close(other()[0], found[0])  # type: ignore[index]
