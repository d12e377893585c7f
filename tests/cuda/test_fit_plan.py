"""Fitting the CUDA planner to measured steps, on steps that the planner itself made up."""

import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch

from fastlstm import _build, _choice

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cudnn_grid
import fit_plan
import sweep
from timing import cpu_clock

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")

H100 = (132, 90)
TRUTH = dict(
    trip_clocks=1400.0,
    cell_clocks=437.0,
    l2_bytes_per_clock=17.0,
    sm_bytes_per_clock=48.0,
    shared_bytes_per_clock=110.0,
    marking_share=0.25,
    repeated_polls=0.5,
    host_step_us=10.5,
)


def measured(disturb=lambda us: us):
    return [
        entry | {"step_us": disturb(sweep.plan(entry, *H100, TRUTH)["step_us"])}
        for entry in sweep.entries(*H100)
    ]


def test_constants_are_recovered():
    fit = fit_plan.Fit(measured(), *H100)
    assert fit.constants == pytest.approx(TRUTH, rel=1e-4)  # and no others: nothing tells of them
    assert fit.errors[0] > 0.05 and fit.errors[1] < 1e-6


def test_noise_and_a_few_disturbed_steps_do_little_harm():
    draw = random.Random(1)

    def disturb(us):
        return us * draw.lognormvariate(0, 0.03) * (3 if draw.random() < 0.03 else 1)

    fit = fit_plan.Fit(measured(disturb), *H100)
    assert fit.constants.keys() == fit.standard_errors.keys() == TRUTH.keys()
    for name, error in fit.standard_errors.items():
        assert abs(math.log(fit.constants[name] / TRUTH[name])) < 3 * error, name
        # Least is told of what marking costs: a small share of every step.
        assert 0.005 < error < (0.2 if name == "marking_share" else 0.1), name
    assert fit.errors[1] < 0.03


def test_a_record_is_read_and_the_constants_are_printed(tmp_path, capsys):
    path = tmp_path / "gpu-check.json"
    entries = [*measured(), {"error": "refused"}]
    machine = {"sms": 132, "gpu_capability": 90}
    path.write_text(json.dumps({"machine": machine, "sweep": entries}))
    fit_plan.main([str(path)])
    told = capsys.readouterr().out
    assert f"{len(entries) - 1} steps; median error" in told and "fitted 0.0%" in told
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line}
    assert lines["trip_clocks"] == ["875", "1.4e+03", "+-", "0%"]
    assert lines["gemm_share"] == ["0.6", "kept"] and "cudnn_step_us" not in lines
    path.write_text(json.dumps({"machine": machine, "groups": []}))
    with pytest.raises(SystemExit):
        fit_plan.main([str(path)])
    assert "expected the steps of a sweep" in capsys.readouterr().err


def test_a_sweep_is_of_divisions_that_fit():
    entries = list(sweep.entries(*H100))
    shapes = {(e["dtype"], e["allow_tf32"], e["hidden_size"], e["batch"]) for e in entries}
    assert shapes == set(sweep.SHAPES)
    assert len({json.dumps(entry) for entry in entries}) == len(entries)
    for entry in entries:
        found = sweep.plan(entry, *H100, {})
        assert found["engine"] == entry["engine"].split(":")[0] and found["blocks"] <= 132


def test_constants_of_a_whole_call(tmp_path, capsys):
    """cuDNN's from a grid that follows them, and ours from starts and calls of two steps."""
    gpu = _choice.Gpu(*H100)
    rows = [row | {"cudnn": cudnn_grid.kind(row, gpu)} for row in cudnn_grid.grid()]
    for row in rows:
        step = 5.0 if row["layers"] == 1 else 2 * 3.5
        slower = 40 if row["cudnn"] != "standard" else 1 if row["hidden_size"] < 2048 else 8
        row["us"] = (1 + row["training"]) * (12 + slower * step * row["steps"])
    starts = [entry | {"start_us": 999.0 if entry["engine"] == "stepwise" else 31.0}
              for entry in measured()]  # fmt: skip
    record = {"machine": {"sms": 132, "gpu_capability": 90, "gpu_ghz": 1.75}, "cudnn": rows}
    path = tmp_path / "gpu-check.json"
    path.write_text(json.dumps(record | {"sweep": starts, "host_us": [60.0] * 3 + [80.0]}))
    fit_plan.main([str(path)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert {name: lines[name].split()[1] for name in lines if name in fit_plan.starts(record)} == {
        "cudnn_call_us": "12",
        "cudnn_step_us": "5",
        "cudnn_stacked_step_us": "3.5",
    }
    assert lines["prologue_us"].split() == ["35", "31", "from", "31", "to", "31"]
    assert lines["host_walk_us"].split() == ["75", "65", "from", "60", "to", "80"]


def test_cudnn_is_timed_over_a_grid(tmp_path, monkeypatch, capsys):
    """On a CPU, whose clock stands in, without graphs."""
    rows = cudnn_grid.grid()
    assert len({json.dumps(row) for row in rows}) == len(rows) == 720
    small = [row | {"hidden_size": 8} for row in rows if row["steps"] == 4][:3]
    monkeypatch.setattr(cudnn_grid, "grid", lambda: small)
    monkeypatch.setattr(
        cudnn_grid, "build", lambda row, on_cpu=cudnn_grid.build: on_cpu(row, "cpu")
    )
    monkeypatch.setattr(cudnn_grid, "cuda_clock", cpu_clock)
    monkeypatch.setattr(cudnn_grid, "capture", lambda step: step)
    about = {"machine": {"sms": 132, "gpu_capability": 90}}
    monkeypatch.setattr(cudnn_grid.machine, "describe", lambda device: dict(about))
    cudnn_grid.main([str(tmp_path / "cudnn.json")])
    record = json.loads((tmp_path / "cudnn.json").read_text())
    assert record["complete"] and [row["steps"] for row in record["cudnn"]] == [4, 4, 4]
    assert all(row["us"] > 0 < row["graph_us"] and row["cudnn"] for row in record["cudnn"])
    assert capsys.readouterr().out.count("graph_us") == 3


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_is_the_slope_of_the_walk(backward, monkeypatch):
    before = torch.backends.cudnn.allow_tf32
    entry = dict(
        dtype="float32",
        allow_tf32=not before,
        hidden_size=8,
        batch=3,
        engine="stepwise",
        backward=backward,
    )
    step = sweep.build(entry, 5, device="cpu")
    assert [t.numel() for t in step()[:1]] == ([0] if backward else [5 * 3 * 8])
    assert cpu_clock(step, 1) > 0
    # 100 us and 3 us a step
    monkeypatch.setattr(sweep, "build", lambda entry, steps: steps)
    monkeypatch.setattr(sweep, "median_time", lambda steps, *_: 1e-4 + 3e-6 * steps)
    assert sweep.measure(entry) == pytest.approx({"step_us": 3.0, "start_us": 100.0})
    assert torch.backends.cudnn.allow_tf32 == before
