"""The benchmark: what it measures, its statistics and floors, and the files that it leaves."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_lstm  # noqa: E402
import compiled  # noqa: E402
import floor  # noqa: E402
import gpu  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import plan_table  # noqa: E402
import report  # noqa: E402
from cases import CPU_GROUPS, CUDA_GROUPS, Case, Group, cudnn_class  # noqa: E402
from timing import Effort, Pairs, alternate, cpu_clock, median_time  # noqa: E402
from workload import build, check_agreement, ragged_lengths, settings  # noqa: E402

from fastlstm import _build  # noqa: E402

TINY = Case(2, 5, 3, 4)
DENSE = (
    "(1,32,64,64) (16,32,64,128) (1,100,256,256) (7,13,300,300) (32,35,200,200) (20,35,650,650) "
    "(33,50,40,100) (128,20,256,512) (64,100,128,256) (16,200,512,512) (128,20,512,1024)"
)
PACKED = "(128,20,256,512) (32,50,256,256) (32,200,128,256) (8,400,80,320)"
BFLOAT16 = "(128,20,256,512) (64,100,128,256) (16,200,512,512)"
STEPS = " ".join(
    f"({B},1,{sizes})" for sizes in ("256,512", "64,64", "512,1024") for B in (1, 5, 32)
)
# What the CPU engine was asked to reach: shapes, geometric mean, worst, and what all cases are.
LARGE = "(64,100,128,256) (128,20,256,512) (128,20,512,1024)"
CPU_TABLE: dict[str, tuple[str, float | None, float | None, dict[str, object]]] = {
    "training": (DENSE, 1.4, 1.05, {"mode": "training", "precision": "float32"}),
    "inference": (DENSE, 1.4, 1.05, {"mode": "inference", "precision": "float32"}),
    "packed-training": (PACKED, 4, 2, {"mode": "training", "ragged": True}),
    "packed-inference": (PACKED, 2.5, 1.5, {"mode": "inference", "ragged": True}),
    "bidirectional": (
        "(16,50,128,256) (32,35,200,200)",
        1.4,
        1.2,
        {"mode": "training", "num_layers": 2, "bidirectional": True},
    ),
    "bfloat16": (f"{BFLOAT16} {BFLOAT16}", 1.2, 1.0, {"precision": "bfloat16"}),
    "products-in-bfloat16": (
        "(128,20,256,512) (64,100,128,256) (128,20,512,1024) (16,200,512,512) (32,35,200,200)",
        3,
        2,
        {"mode": "training", "precision": "products in bfloat16"},
    ),
    "tf32": (" ".join([LARGE, LARGE]), None, None, {"precision": "tf32"}),
    "float16": ("(32,35,200,200) (32,35,200,200)", None, None, {"precision": "float16"}),
    "projection": ("(32,35,200,400) (32,35,200,400)", None, None, {"proj_size": 200}),
    "saturated": ("(16,64,64,256) (16,64,64,256)", None, None, {"saturated": True}),
    "double": (
        "(32,35,200,200) (8,50,64,128)",
        2,
        1.5,
        {"mode": "training", "precision": "float64"},
    ),
    "step": (STEPS, 5, 2, {"mode": "inference", "module": "LSTM"}),
    "cell": (STEPS, 1.7, 1.2, {"mode": "inference", "module": "LSTMCell"}),
    "cell-training": (
        "(128,8,1536,512) (32,8,256,512) (8,8,64,128)",
        1.1,
        1,
        {"mode": "training", "module": "LSTMCell"},
    ),
}


@pytest.mark.parametrize("key", CPU_TABLE)
def test_cpu_groups_are_the_table(key: str) -> None:
    (group,) = (group for group in CPU_GROUPS if group.key == key)
    shapes, mean, worst, traits = CPU_TABLE[key]
    assert " ".join(str(case).split()[0] for case in group.cases) == shapes
    assert (group.geometric_mean, group.worst) == (mean, worst)
    for case in group.cases:
        assert {name: getattr(case, name) for name in traits} == traits


def test_no_cpu_group_is_left_out_and_the_gemm_share_is_asked_where_it_counts() -> None:
    assert [group.key for group in CPU_GROUPS] == ["real", *CPU_TABLE]
    bound = {
        str(case): case.gemm_fraction
        for group in CPU_GROUPS
        for case in group.cases
        if case.gemm_fraction is not None
    }
    shapes = ("(128,20,256,512)", "(64,100,128,256)", "(128,20,512,1024)")
    assert bound == {f"{shape} training": 0.85 for shape in shapes}


# What the CUDA engine was asked to reach: number of cases, least ratio forward, and with backward.
CUDA_TABLE = {
    "bf16": (8, 2.5, 2.0),
    "bf16-1024": (2, 2.0, 1.5),
    "tf32": (4, 2.5, 2.0),
    "packed": (16, 4.0, 4.0),
    "packed-float64": (4, None, None),
    "fp16": (3, 0.9, 0.9),
    "bidirectional": (1, 2.0, 1.7),
    # 4 precisions x 5 H x 4 B x 2, less the 25 above with B in the grid
    "grid-standard": (110, 0.95, 0.95),
    "grid-small-h": (16, 0.95, 0.95),
    "grid-persist-static": (9, 0.9, 0.9),
}


def test_cuda_groups_are_the_table() -> None:
    groups = {group.key: group for group in CUDA_GROUPS}
    assert groups.pop("real") == CPU_GROUPS[0]
    for key, (count, forward, both) in CUDA_TABLE.items():
        for mode, worst in (("inference", forward), ("training", both)):
            group = groups.pop(f"{key}-{mode}")
            assert (len(group.cases), group.worst) == (count, worst)
            assert {case.mode for case in group.cases} == {mode}
            assert {case.steps for case in group.cases} == {512}
            limits = {case.over_floor for case in group.cases} - {None}
            assert limits <= {1.5 if mode == "inference" else 2.0}
    assert not groups


def test_where_cudnn_has_persistent_kernels() -> None:
    def kind(H: int, precision: str = "float16", **traits: Any) -> str:
        return cudnn_class(replace(Case(64, 512, H, H), precision=precision, **traits))

    assert kind(512) == kind(512, batch=8) == "persist static"
    assert {
        kind(512, "bfloat16"),
        kind(512, ragged=True),
        kind(500),
        kind(512, batch=1),
        kind(512, bidirectional=True),
        kind(512, num_layers=2),
        kind(2048),
    } == {"standard"}
    assert kind(128) == kind(128, "float32") == kind(192, "tf32", mode="inference") == "small H"
    assert kind(192, "tf32") == kind(64, "float64") == kind(64, ragged=True) == "standard"


@pytest.mark.skipif(not _build.extension_available(), reason="no extension")
def test_the_document_has_what_the_planner_predicts() -> None:
    document = (BENCHMARKS.parent / "docs/cuda.md").read_text()
    assert f"<!-- plan -->\n{plan_table.predictions()}\n<!-- /plan -->" in document, (
        "run python benchmarks/plan_table.py --write docs/cuda.md"
    )


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
    assert floor.peak_shapes([Case(3, 5, 7, 11)]) == [(1024, 1024, 1024), (15, 44, 18)]


# Microseconds of a step on an H100 by B = 1, 16, 64, 128: forward, and backward alone. By hand,
# bfloat16, H 512, B 16, forward, 64 blocks in 2 groups: trip .5, cell .15, 1 MB from L2 .19, 32 KB
# of weights from shared memory .146.
STEP_TABLE = {
    ("bfloat16", 256): ((0.7, 0.8, 0.9, 1.0), (0.7, 0.9, 1.1, 1.3)),
    ("bfloat16", 512): ((0.75, 1.0, 1.3, 1.6), (0.8, 1.3, 2.0, 2.55)),
    ("bfloat16", 1024): ((1.0, 1.6, 3.0, 5.3), (1.1, 2.5, 5.7)),
    ("tf32", 256): ((0.7, 0.9, 1.1, 1.3), (0.8, 1.1, 1.6, 2.0)),
    ("tf32", 512): ((0.85, 1.3, 2.0, 3.0), (1.0, 2.0, 3.45, 5.75)),
    ("tf32", 1024): ((1.3, 2.5), (1.6, 5.2)),
}


@pytest.mark.parametrize(("precision", "hidden_size"), STEP_TABLE)
def test_cuda_step_floor(precision: str, hidden_size: int) -> None:
    forward, backward = STEP_TABLE[precision, hidden_size]
    for batch, expected in zip((1, 16, 64, 128), forward, strict=False):
        case = Case(batch, 512, hidden_size, hidden_size, "inference", precision)
        assert floor.cuda_step(case) == pytest.approx(expected * 1e-6, rel=0.05)
    for batch, *expected in zip((1, 16, 64, 128), forward, backward, strict=False):
        case = Case(batch, 512, hidden_size, hidden_size, "training", precision)
        assert floor.cuda_step(case) == pytest.approx(sum(expected) * 1e-6, rel=0.05)


def test_no_persistent_plan_is_predicted_below_the_floor() -> None:
    for case in {case for group in CUDA_GROUPS for case in group.cases}:
        if case.mode == "training" or not bench_lstm.single(case):
            continue
        plan = _build.library.plan_cuda(
            hidden_size=case.hidden_size,
            batch=case.batch,
            steps=case.steps,
            directions=1,
            dtype=str(case.dtype).removeprefix("torch."),
            allow_tf32=case.precision == "tf32",
            backward=False,
            sm_count=floor.SMS,
            capability=floor.CAPABILITY,
        )
        bound = floor.cuda_step(case)
        assert plan["engine"] == "stepwise" or (bound and plan["step_us"] * 1e-6 >= bound), case


def test_cuda_step_has_no_floor_where_the_weights_do_not_fit() -> None:
    assert floor.cuda_step(Case(1, 512, 4096, 4096, precision="tf32")) is None
    assert floor.cuda_step(Case(1, 512, 64, 64, precision="float64")) is None


@pytest.mark.parametrize(("batch", "steps"), [(128, 20), (32, 50), (32, 200), (8, 400)])
def test_ragged_lengths(batch: int, steps: int) -> None:
    lengths = ragged_lengths(batch, steps)
    assert lengths.shape == (batch,) and lengths.min() >= 1 and lengths.max() == steps
    assert 0.6 <= lengths.sum() / (batch * steps) <= 0.75
    assert torch.equal(lengths, ragged_lengths(batch, steps))


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        replace(TINY, mode="inference"),
        replace(TINY, batch=8, steps=10, ragged=True, num_layers=2, bidirectional=True),
        replace(TINY, steps=1, mode="inference"),
        replace(TINY, steps=1, mode="inference", module="LSTMCell"),
        replace(TINY, batch=4, steps=9, resets=True),
        replace(TINY, batch=1, ragged=True, bidirectional=True),
        replace(TINY, precision="bfloat16"),
        replace(TINY, precision="float64"),
        replace(TINY, proj_size=2, num_layers=2, bidirectional=True),
        replace(TINY, proj_size=2, steps=1, mode="inference"),
    ],
    ids=str,
)
def test_workloads_of_all_implementations_agree(case: Case) -> None:
    with settings(case):
        expected = build(case, "torch.nn", "cpu")
        for implementation in ("auto", "reference"):
            actual = build(case, implementation, "cpu")
            check_agreement(case, expected, actual)
        if case.mode == "inference":
            assert not expected.step().requires_grad
            return
        assert all(leaf.grad is not None for leaf in actual.leaves)
        with torch.no_grad():
            actual.leaves[1].mul_(2)
        with pytest.raises(RuntimeError, match="the results differ"):
            check_agreement(case, expected, actual)


def result(ratio: float, case: Case = TINY, **entries: Any) -> dict[str, Any]:
    return {"case": vars(case), "ratio": ratio, **entries}


def test_verdicts() -> None:
    def peaks(theirs: int, ours: int) -> dict[str, dict[str, int]]:
        return {"torch": {"allocated": theirs}, "fastlstm": {"allocated": ours}}

    near_peak = replace(TINY, gemm_fraction=0.85)
    bound = replace(TINY, over_floor=1.5)
    results = [
        result(1.0, gemm_share=0.1, memory=peaks(100, 50)),
        result(4.0, near_peak, gemm_share=0.8, memory=peaks(100, 101)),
        result(2.0, bound, per_step={"over_floor": 1.4}),
    ]
    found = {v.name: v for v in report.verdicts(Group("g", "g", (), 2.0, 1.5), results)}
    assert list(found) == [
        "geometric mean",
        "worst",
        "share of GEMM peak",
        "step over floor",
        "peak memory, allocated",
    ]
    assert found["geometric mean"].measured == pytest.approx(2.0) and found["geometric mean"].met
    assert found["worst"].measured == 1.0 and not found["worst"].met
    assert found["share of GEMM peak"].measured == 0.8 and not found["share of GEMM peak"].met
    assert found["step over floor"].met
    assert found["peak memory, allocated"].measured == 1.01
    assert str(found["worst"]) == "worst 1.00 (>= 1.5: NOT MET)"
    failed = report.verdicts(Group("g", "g", (), worst=1.0), [{"case": {}, "error": "refused"}])
    assert [(v.name, v.met) for v in failed] == [("failed cases", False)]


def run(monkeypatch: pytest.MonkeyPatch, path: Path, cases: list[Case], *arguments: str) -> int:
    group = Group("tiny", "tiny cases", tuple(cases), 1.4, 1.05)
    monkeypatch.setitem(bench_lstm.GROUPS, "cpu", (group,))
    words = ["--device", "cpu", "--seconds", "0.01", "--no-compile", "--output", str(path)]
    return bench_lstm.main([*words, *arguments])


def test_a_run_prints_a_table_and_writes_json_and_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "run.json"
    assert run(monkeypatch, path, [TINY, replace(TINY, mode="inference")]) == 0
    printed = capsys.readouterr().out
    assert "(2,5,3,4) training" in printed and "geometric mean" in printed
    text = path.read_text()
    assert str(tmp_path) not in text and str(BENCHMARKS.parent) not in text
    record = json.loads(text)
    assert record["complete"] and record["threads"] == torch.get_num_threads()
    assert record["command"].startswith("python benchmarks/bench_lstm.py --device cpu")
    assert record["command"].endswith("--output run.json")
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert record["versions"]["torch"] == torch.__version__
    training, inference = record["groups"][0]["results"]
    for entry in (training, inference):
        first, third = entry["quartiles"]
        assert 0 < first <= entry["ratio"] <= third
        assert entry["reference_ratio"] > 0 and all(s > 0 for s in entry["seconds"].values())
    # The gradients alone: the input's, and those of the weights.
    gradients = 4 * (2 * 5 * 3 + 16 * (3 + 4 + 2))
    assert all(training["memory"][who]["allocated"] >= gradients for who in ("torch", "fastlstm"))
    assert "memory" not in inference
    plot = path.with_suffix(".png")
    if (exists := plot.exists()) or "no plot" not in printed:
        assert exists and plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.json"] + ["run.png"] * exists


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "bench_lstm.py"), "--device", "cpu", "--quick"]
    options = ["--group", "step,cell", "--seconds", "0.01", "--output", "run.json"]
    subprocess.run([*script, *options], cwd=tmp_path, check=True, timeout=120)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [len(group["results"]) for group in record["groups"]] == [2, 2]


def test_a_refused_case_is_reported_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    cases = [replace(TINY, mode="inference", precision=p) for p in ("float16", "float32")]
    monkeypatch.setattr(bench_lstm.Bench, "_pairs", refuse_half(bench_lstm.Bench._pairs))
    assert run(monkeypatch, path, cases) == 1
    refused, measured = json.loads(path.read_text())["groups"][0]["results"]
    assert refused["error"] == "RuntimeError: no half" and measured["ratio"] > 0
    assert "failed cases 1.00 (<= 0: NOT MET)" in capsys.readouterr().out


def refuse_half(pairs: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def wrapped(self: Any, case: Case) -> Pairs:
        if case.precision == "float16":
            raise RuntimeError("no half")
        return pairs(self, case)

    return wrapped


def test_time_per_step_is_the_slope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = bench_lstm.parse(["--device", "cpu", "--group", "cell", "--quick"])
    bench = bench_lstm.Bench(args)
    monkeypatch.setattr(bench, "on_h100", True)
    pairs = Pairs([64 * 3e-6], [64 * 2e-6])
    monkeypatch.setattr(bench, "_pairs", lambda case: {64: pairs}[case.steps])
    case = Case(16, 512, 512, 512, "inference", "bfloat16")
    slopes = bench.per_step(case, {"torch": 1e-3 + 512 * 3e-6, "fastlstm": 512 * 2e-6})
    assert slopes["fastlstm"] == pytest.approx(2e-6)
    assert slopes["torch"] == pytest.approx(3e-6 + 1e-3 / 448)
    assert slopes["over_floor"] == pytest.approx(2e-6 / floor.cuda_step(case))


def test_engines_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("stepwise", "persistent:16x8x4"):
        assert bench_lstm.parse(["--device", "cpu", "--engine", name]).engine == name
    for name in ("cudnn", "persistent:16x8", "persistent:16x8x4x"):
        with pytest.raises(SystemExit):
            bench_lstm.parse(["--device", "cpu", "--engine", name])
        assert f"persistent:UNITSxROW_TILExROW_GROUPS, got {name}" in capsys.readouterr().err


@pytest.mark.skipif(not _build.extension_available(), reason="no extension")
def test_plans_of_a_case() -> None:
    case = Case(16, 512, 512, 512, "training", "bfloat16")
    plans = gpu.plans(case, "auto", 132, 90)
    assert list(plans) == ["forward", "backward"]
    assert plans["forward"]["engine"] == "persistent" and plans["forward"]["step_us"] < 2
    asked = gpu.plans(replace(case, mode="inference"), "persistent:16x8x1", 132, 90)
    assert (asked["forward"]["units"], asked["forward"]["row_groups"]) == (16, 1)
    assert gpu.plans(case, "stepwise", 132, 90)["backward"]["engine"] == "stepwise"
    with pytest.raises(ValueError, match='engine: expected "auto"'):
        gpu.plans(case, "cudnn", 132, 90)


@pytest.mark.skipif(not _build.extension_available(), reason="no extension")
def test_what_a_gpu_case_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with a stand-in for the profiler and an H100's sizes."""
    bench = bench_lstm.Bench(bench_lstm.parse(["--device", "cpu", "--group", "cell", "--quick"]))
    bench.sms, bench.capability = 132, 90
    bench.sm_clock = SimpleNamespace(median=lambda since: 1755.0)  # type: ignore[assignment]

    def kernels(step: Callable[[], torch.Tensor], steps: int) -> dict[str, float]:
        assert step().size(0) == steps == bench_lstm.SHORT_STEPS
        return {"gemm": 1.0}

    monkeypatch.setattr(gpu, "kernels", kernels)
    case = Case(3, 512, 4, 256, "training", "bfloat16")
    found = json.loads(json.dumps(bench.on_gpu(case, detailed=True, start=0.0)))
    assert (found["cudnn"], found["sm_mhz"]) == ("standard", 1755.0)
    assert found["plan"]["backward"]["engine"] == "persistent"
    assert found["kernels_a_step"] == {"torch": {"gemm": 1.0}, "fastlstm": {"gemm": 1.0}}
    assert "kernels_a_step" not in bench.on_gpu(case, detailed=False, start=0.0)

    def refuse(step: Callable[[], torch.Tensor], steps: int) -> dict[str, float]:
        raise RuntimeError("no profiler")

    monkeypatch.setattr(gpu, "kernels", refuse)
    assert bench.on_gpu(case, True, 0.0)["kernels_a_step"] == "RuntimeError: no profiler"


def test_kernels_are_counted_by_step() -> None:
    def event(name: str, device: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device)

    events = [event("gemm")] * 8 + [event("x" * 500)] * 4 + [event("aten::mm", DeviceType.CPU)] * 9
    assert gpu.count_kernels(events, 4) == {"gemm": 2.0, "x" * 160: 1.0}


def test_the_clock_is_sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "assert '--id=GPU-1' in sys.argv and '-lms=10' in sys.argv\n"
        "for mhz in ('[N/A]', 345, 1755, 1980):\n"
        "    print(mhz, flush=True)\n"
        "time.sleep(60)\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    clock = gpu.SmClock("GPU-1", milliseconds=10)
    deadline = time.monotonic() + 30
    while len(clock.samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    clock.close()
    assert clock.median(0.0) == 1755 and clock.median(time.monotonic()) is None
    smi.unlink()
    without = gpu.SmClock("GPU-1")
    assert without.median(0.0) is None
    without.close()


def test_peers_with_and_without_the_input_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    haste, flashrnn = ModuleType("haste_pytorch"), ModuleType("flashrnn")
    haste.LSTM = nn.LSTM  # type: ignore[attr-defined]
    flashrnn.flashrnn = lambda Wx, R, b, function, backend: (  # type: ignore[attr-defined]
        torch.stack([(Wx + b).sum(2) * R.sum()] * 2),
        None,
    )
    for module in (haste, flashrnn):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(peers, "installed", lambda: ["haste_pytorch", "flashrnn"])

    def measure() -> dict[str, Any]:
        def clock(step: Callable[[], object], calls: int) -> float:
            step()
            return 2.0

        return peers.measure(TINY, "cpu", clock, Effort(0.0))

    measured = measure()
    assert measured == {
        "projection": 2.0,
        "haste_pytorch": {"with_projection": 2.0, "without_projection": 0.0},
        "flashrnn": {"with_projection": 4.0, "without_projection": 2.0},
    }
    lines = report.peer_lines({"peers": measured, "seconds": {"fastlstm": 5.0}})
    assert "0.40 times fastlstm" in lines[0] and "0.80 times fastlstm" in lines[1]

    def refuse(*sizes: int) -> None:
        raise ValueError("not this shape")

    haste.LSTM = refuse  # type: ignore[attr-defined]
    assert measure()["haste_pytorch"] == "ValueError: not this shape"


def test_allocated_memory_is_the_peak() -> None:
    def step() -> torch.Tensor:
        first = torch.empty(2**20, dtype=torch.uint8)
        del first
        blocks = [torch.empty(2**20, dtype=torch.uint8) for _ in range(3)]
        return blocks[0][:1].clone()

    assert 3 * 2**20 <= memory.allocated(step) < 3 * 2**20 + 4096


def test_what_does_not_compile_in_time_says_so() -> None:
    assert compiled.ratios([TINY], "cpu", limit=0.05) == {TINY: "not compiled within 0.05 s"}


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    report.write_json(path, {"ratio": 1.0})
    with pytest.raises(ValueError):
        report.write_json(path, {"ratio": math.nan})
    assert json.loads(path.read_text()) == {"ratio": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--group training,typo", "--group: expected some of real, .* got typo"),
        ("--output run.txt", "--output: expected a name that ends in .json, got run.txt"),
        ("--seconds 0", "--seconds: expected a positive number, got 0"),
        ("--graphs", "--graphs: expected --device cuda, got --device cpu"),
    ],
)
def test_bad_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_lstm.parse(["--device", "cpu", *arguments.split()])
    assert re.search(message, capsys.readouterr().err)


def test_the_picture_of_real_workloads(tmp_path: Path) -> None:
    """Two files, a label and a bar for each workload, and the processor's name."""
    real_plot = pytest.importorskip("real_plot", reason="needs matplotlib")

    def result(case: Case, **found: object) -> dict[str, object]:
        return {"case": asdict(case)} | found

    ppo = replace(TINY, mode="training", resets=True, name="PPO")
    decoder = replace(TINY, steps=1, mode="inference", name="decoder")
    tagger = replace(TINY, mode="training", ragged=True, precision="bfloat16", name="tagger")
    results = [
        result(decoder, ratio=0.5),
        result(replace(decoder, batch=16), ratio=1.26),
        result(ppo, ratio=37.2),
        result(tagger, ratio=2.0),
        result(TINY, error="RuntimeError: no"),
    ]
    record = {
        "groups": [
            {"key": "training", "results": [result(TINY, ratio=9.0)]},
            {"key": "real", "results": results},
        ],
        "machine": {"cpu": "a CPU"},
        "threads": 2,
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-02T03:04:05+00:00",
    }
    bars = {
        "PPO: training with resets": 37.2,
        "tagger: training, packed, bfloat16": 2.0,
        "decoder: one step, batch 16": 1.26,
        "decoder: one step, batch 2": 0.5,
    }
    assert real_plot.workloads(record) == bars
    (axes,) = real_plot.draw(record, "dark").axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(bars)
    assert [bar.get_x() + bar.get_width() for bar in axes.patches] == pytest.approx(
        list(bars.values())
    )
    assert [text.get_text() for text in axes.texts] == ["37x", "2.0x", "1.3x", "0.5x"]
    assert "a CPU, 2 threads, torch 2.13.0, 2026-01-02" in axes.get_title()

    written = []
    for _ in range(2):
        real_plot.draw_themes(record, tmp_path / "img")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "img").iterdir()})
    assert written[0] == written[1]  # so a new commit holds new figures only
    assert set(written[0]) == {"real-light.svg", "real-dark.svg"}
    assert written[0]["real-light.svg"] != written[0]["real-dark.svg"]
    with pytest.raises(ValueError, match='group "real", got none'):
        real_plot.workloads(record | {"groups": record["groups"][:1]})


def test_never_slower(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import never_slower

    monkeypatch.setenv("FASTLSTM_TUNE", "off")  # put back afterwards
    monkeypatch.setattr(never_slower, "LARGEST", 1e6)
    ratios = iter([0.5, 1.0, 1.2, 1.0])
    monkeypatch.setattr(never_slower, "ratio", lambda *args: next(ratios))
    never_slower.main(["--cases", "2", "--seconds", "0.01", "--device", "cpu"])
    told = capsys.readouterr().out
    assert "before tune: 1 of 2 below 0.97; least 0.50\n" in told
    assert "after tune: 0 of 2 below 0.97; least 1.00\n" in told


def test_overhead(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each row has a time of the module, and what a row compares gives the same."""
    import overhead

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
