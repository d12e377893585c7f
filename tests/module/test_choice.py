"""Who computes a plain call on a GPU: properties over every GPU of a table. None is needed."""

from __future__ import annotations

from itertools import product

import pytest

from fastlstm import _build, _choice
from fastlstm._choice import Gpu, Stack, cudnn_class, on_gpu

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")

GPUS = {
    "V100": Gpu(80, 70),
    "T4": Gpu(40, 75),
    "A100": Gpu(108, 80),
    "A30": Gpu(56, 80),
    "A10": Gpu(72, 86),
    "A40": Gpu(84, 86),
    "RTX 3090": Gpu(82, 86),
    "L4": Gpu(58, 89),
    "RTX 4090": Gpu(128, 89),
    "H100": Gpu(132, 90),
    "H100, 16 left free": Gpu(132, 90, True, 16),
    "B200": Gpu(148, 100),
    "RTX 5090": Gpu(170, 120),
}
every_gpu = pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)


def stacks() -> list[Stack]:
    shapes = product((1, 100, 128, 200, 512, 1024, 2048), (0, 1, 8, 33, 64, 256), (1, 20, 200))
    kinds = product(("float32", "bfloat16", "float16", "float64"), (False, True), (1, 2))
    grid = [
        Stack(dtype, H, H, B, T, num_layers=directions, directions=directions, training=training)
        for (H, B, T), (dtype, training, directions) in product(shapes, kinds)
    ]
    grid += [stack._replace(packed=True) for stack in grid[::7]]
    return grid + [stack._replace(proj_size=1) for stack in grid[::11] if stack.hidden_size > 1]


@every_gpu
@pytest.mark.parametrize("tf32", [True, False])
def test_no_plain_call_goes_step_by_step(gpu: Gpu, tf32: bool) -> None:
    gpu = gpu._replace(allow_tf32=tf32)
    chosen = {"auto": 0, "torch": 0}
    for stack in stacks():
        engine, why, _ = on_gpu(stack, gpu)
        chosen[engine] += 1
        if engine == "auto":
            walks = _choice.plans(stack, gpu)
            assert [w["engine"] for w in walks] == ["persistent"] * (1 + stack.training), stack
            assert cudnn_class(stack, gpu) == "standard" and not stack.proj_size
            assert stack.steps > 1, why
    assert chosen["torch"] and (chosen["auto"] > 0) == (gpu.capability >= 80), chosen


CALLS = [
    Stack(dtype, H, H, B, T, num_layers=layers, training=training)
    for dtype, H, B, T, layers, training in product(
        ("bfloat16", "float16", "float32"),
        (128, 256, 512, 1024, 2048),
        (1, 4, 8, 16, 64, 128, 256),
        (2, 5, 10, 50, 200),
        (1, 2, 4),
        (False, True),
    )
]


def cudnn_us(stack: Stack) -> float:
    """The least of a pass of cuDNN's, which overlaps layers."""
    step = 6.0 if stack.num_layers == 1 else 4.4 * stack.num_layers
    return 10 + step * stack.steps


@pytest.mark.parametrize("name", ["H100", "A100", "RTX 4090", "L4"])
def test_no_call_is_ours_though_predicted_slower(name: str) -> None:
    """4 x 3,150 calls at prices of 35 us and 75 us of the host before a layer's first step."""
    chosen = [stack for stack in CALLS if on_gpu(stack, GPUS[name]).engine == "auto"]
    assert 100 < len(chosen) < len(CALLS) == 3150
    for stack in chosen:
        walks = [walk["step_us"] for walk in _choice.plans(stack, GPUS[name])]
        ours = sum(max(75, 35 + step * stack.steps) for step in walks) * stack.num_layers
        assert ours <= 0.55 * cudnn_us(stack) * len(walks), stack
    assert min(stack.steps for stack in chosen) == 50, "shorter ones are not worth the start"


@every_gpu
def test_a_faster_gpu_serves_what_a_slower_one_does(gpu: Gpu) -> None:
    """More multiprocessors, fewer of them for others, a higher clock; and none left is no error."""
    base = gpu._replace(clock_ghz=1.4, free_sms=16)
    for better in (
        base._replace(sm_count=base.sm_count + 8),
        base._replace(free_sms=0),
        base._replace(clock_ghz=1.9),
    ):
        for stack in CALLS[::37]:
            before, after = (
                sum(walk["stack_us"] for walk in _choice.plans(stack, each))
                for each in (base, better)
            )
            assert after <= before, stack
    assert on_gpu(CALLS[0], base._replace(free_sms=gpu.sm_count)).engine == "torch"


PERSISTENT = Stack("float16", 256, 256, 64, 100)


@pytest.mark.parametrize(
    ("name", "has"),
    [("T4", False), ("A100", True), ("A30", False), ("A10", False), ("L4", False),
     ("RTX 4090", True), ("H100", True), ("B200", True), ("RTX 5090", True)],
)  # fmt: skip
def test_where_cudnn_is_persistent(name: str, has: bool) -> None:
    """ATen's rule: no sm_75, no sm_x6, 98 multiprocessors from sm_80 on."""
    gpu = GPUS[name]
    assert cudnn_class(PERSISTENT, gpu) == ("persist static" if has else "standard")
    if has:
        assert on_gpu(PERSISTENT, gpu).engine == "torch"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "persist static"),
        ({"dtype": "bfloat16"}, "standard"),
        ({"num_layers": 2}, "standard"),
        ({"directions": 2}, "standard"),
        ({"packed": True}, "standard"),
        ({"proj_size": 8}, "standard"),
        ({"input_size": 100}, "standard"),
        ({"batch": 60}, "standard"),
        ({"batch": 136}, "standard"),
        ({"hidden_size": 192}, "small H"),
        ({"hidden_size": 128, "training": True}, "small H"),
        ({"hidden_size": 192, "training": True}, "standard"),
        ({"hidden_size": 64, "dtype": "float64"}, "standard"),
    ],
)
def test_which_calls(change: dict[str, object], kind: str) -> None:
    assert cudnn_class(PERSISTENT._replace(**change), GPUS["H100"]) == kind  # type: ignore[arg-type]
