"""`python -m fastlstm plan`, without a GPU; the planner itself is tested in tests/simt."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies

from fastlstm import _build
from fastlstm.__main__ import devices, main

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")
SHAPE = ["plan", "--hidden", "512", "--batch", "64", "--dtype", "bf16"]


GPU_SHAPE = [*SHAPE, "--device", "cuda"]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_the_device_is_one_that_this_machine_has(capsys, monkeypatch, has_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    main(SHAPE)
    assert ("132 SMs" in capsys.readouterr().out) == has_gpu


def test_plan(capsys):
    main(GPU_SHAPE)
    told = capsys.readouterr().out
    assert "bfloat16, input_size 512, hidden_size 512, batch up to 64, steps up to 512" in told
    assert "sm_90 with 132 SMs\nauto: torch (" in told
    assert told.count("\n  row groups ") == 2 and "predictions" not in told
    main([*GPU_SHAPE, "--dtype", "fp64"])
    assert 'The engine "persistent" cannot serve it.' in capsys.readouterr().out


def test_plan_of_a_cpu(capsys):
    main([*SHAPE, "--device", "cpu"])
    assert "auto: tiled (measured ahead" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--threads", "1"], ["row groups              1\n", "\nforward\n", "\nbackward\n"]),
        (["--steps", "1"], ["dtype                   bfloat16", "one step                True"]),
        (
            ["--inference", "--dtype", "fp64", "--batch", "4"],
            ["product                 float64", "chunk steps  "],
        ),
    ],
)
def test_walks_of_a_cpu(capsys, options, expected):
    if "--steps" in options and not _build.library.build_info()["multiplies_bfloat16"]:
        expected = ["dtype                   float32", expected[1]]
    main([*SHAPE, "--device", "cpu", *options])
    told = capsys.readouterr().out
    assert all(text in told for text in expected), told
    assert ("backward" in told) == ("--inference" not in options)


@settings(deadline=None)
@given(
    dtype=strategies.sampled_from(["float32", "float64", "bfloat16", "float16"]),
    sizes=strategies.tuples(*[strategies.integers(1, 3000)] * 4),
    directions=strategies.integers(1, 2),
    training=strategies.booleans(),
    backward=strategies.booleans(),
    l2_cache_bytes=strategies.sampled_from([256 << 10, 512 << 10, 1 << 20, 2 << 20]),
)
def test_more_threads_are_never_predicted_slower(sizes, l2_cache_bytes, **task):
    names = ("input_size", "hidden_size", "batch", "steps")
    task |= {**dict(zip(names, sizes, strict=True)), "l2_cache_bytes": l2_cache_bytes}
    before = float("inf")
    for threads in (1, 2, 3, 4, 6, 8, 16, 31, 64, 128):
        plan = _build.library.plan_cpu(threads=threads, **task)
        assert plan["engine"] == "tiled" and plan["product"] in (plan["dtype"], "float32")
        assert plan["unit_groups"] * plan["row_groups"] * plan["directions"] <= threads
        assert plan["unit_groups"] <= task["hidden_size"] and plan["row_groups"] <= task["batch"]
        assert plan["directions"] in (1, task["directions"])
        assert 0 <= plan["steps_ahead"] <= task["steps"] >= plan["chunk_steps"] >= 1
        assert 0 < plan["step_us"] <= before
        before = plan["step_us"]


@pytest.mark.parametrize("name, value", [("threads", 0), ("batch", 0), ("directions", 3)])
def test_a_plan_of_nothing(name, value):
    task = {"input_size": 8, "hidden_size": 8, "batch": 1, "steps": 1, "directions": 1}
    task |= {"training": True, "backward": False, "threads": 1, "l2_cache_bytes": 1}
    with pytest.raises(ValueError, match="expected sizes of at least 1 and 1 or 2 directions"):
        _build.library.plan_cpu(dtype="float32", **{**task, name: value})


@pytest.mark.parametrize(
    "free, told",
    [
        ("8", "with 132 SMs, of which 8 are left free (FASTLSTM_FREE_SMS)"),
        ("132", "FASTLSTM_FREE_SMS=132 leaves none of 132 SMs"),
    ],
)
def test_free_multiprocessors(free, told):
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", *GPU_SHAPE],
        text=True,
        env={**os.environ, "FASTLSTM_FREE_SMS": free},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert told in done.stdout and "Traceback" not in done.stdout
    assert (done.returncode == 0) == (free == "8")


def test_info_shows_what_is_left_free(monkeypatch):
    gpu = type("Gpu", (), dict(name="H100", major=9, minor=0, multi_processor_count=132))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    monkeypatch.setattr(_build.library, "free_sms", lambda: 8)
    assert devices()[1][1] == ("H100, sm_90, 132 SMs, of which 8 are left free (FASTLSTM_FREE_SMS)")
