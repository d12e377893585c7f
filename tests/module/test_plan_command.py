"""`python -m fastlstm plan`: what it prints; what the CPU's planner says of random sizes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies

from fastlstm import _build
from fastlstm.__main__ import main

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")
SHAPE = ["plan", "--hidden", "512", "--batch", "64", "--dtype", "bf16"]


def test_plan_of_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SHAPE, "--device", "cpu"])
    told = capsys.readouterr().out
    assert "bfloat16, input_size 512, hidden_size 512, batch up to 64, steps up to 512" in told
    for line in ("auto: op\n", "torch       serves it, by name", "tiled       serves it, by name"):
        assert line in told
    assert "persistent  it runs on cuda, meta, and the input is on cpu" in told
    assert "\nforward\n" in told and "\nbackward\n" in told and "none was measured" in told
    main([*SHAPE, "--device", "cpu", "--inference"])
    assert "\nbackward\n" not in capsys.readouterr().out


def test_plan_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be asked for without one; the kernels that were built are those of this machine."""
    main([*SHAPE, "--device", "cuda"])
    assert "auto: torch\n" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "99999999999999999999", "many"])
def test_a_size_that_cannot_be(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--batch", "1", "--hidden", size])
    assert "argument --hidden: " in capsys.readouterr().err


@settings(deadline=None)
@given(
    dtype=strategies.sampled_from(["float32", "float64", "bfloat16", "float16"]),
    sizes=strategies.tuples(*[strategies.integers(1, 3000)] * 4),
    directions=strategies.integers(1, 2),
    training=strategies.booleans(),
    backward=strategies.booleans(),
    l2_cache_bytes=strategies.sampled_from([256 << 10, 512 << 10, 1 << 20, 2 << 20]),
)
def test_more_threads_are_never_predicted_slower(
    sizes: tuple[int, ...], l2_cache_bytes: int, **task: Any
) -> None:
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


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("batch", 0), ("directions", 3)])
def test_a_plan_of_nothing(name: str, value: int) -> None:
    task = {"input_size": 8, "hidden_size": 8, "batch": 1, "steps": 1, "directions": 1}
    task |= {"training": True, "backward": False, "threads": 1, "l2_cache_bytes": 1}
    with pytest.raises(ValueError, match="expected sizes of at least 1 and 1 or 2 directions"):
        _build.library.plan_cpu(dtype="float32", **{**task, name: value})
