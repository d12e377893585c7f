"""What is measured, and what it has to reach: the cases of each device, grouped, with thresholds.

A ratio is time of torch.nn / time of fastlstm, so larger is better. "training" is forward and
backward with the gradients of the input and of all weights, "inference" is forward without
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from fastlstm import _choice

H100 = _choice.Gpu(sm_count=132, capability=90)
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,  # float32 with torch.backends.cudnn.allow_tf32, or on a CPU as below
    "products in bfloat16": torch.float32,  # by torch.backends.mkldnn.rnn.fp32_precision
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        batch, steps, input_size, hidden_size: B, T, I and H; T is the longest length if ragged, and
            the calls of an LSTMCell.
        mode: "training" or "inference".
        precision: a key of `DTYPES`.
        module: "LSTM" or "LSTMCell".
        ragged: whether the input is a PackedSequence of different lengths, given in any order.
        num_layers, bidirectional, proj_size: as in nn.LSTM.
        saturated: whether every input gate is shut, far beyond what a sigmoid can tell from 0.
        resets: whether the state is zeroed in the middle of the rows, where an episode ends:
            `reset=` in fastlstm, a loop over single steps in torch.nn, as in CleanRL.
        name: the project that runs such a case, if it was found in one.
        gemm_fraction: share of the GEMM peak that has to be reached (CPU), if any.
        over_floor: largest time per step over the floor of `floor.cuda_step` (CUDA), if any.
    """

    batch: int
    steps: int
    input_size: int
    hidden_size: int
    mode: str = "training"
    precision: str = "float32"
    module: str = "LSTM"
    ragged: bool = False
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    saturated: bool = False
    resets: bool = False
    name: str = ""
    gemm_fraction: float | None = None
    over_floor: float | None = None

    @property
    def output_size(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def __str__(self) -> str:
        shape = f"({self.batch},{self.steps},{self.input_size},{self.hidden_size})"
        traits = {
            self.precision: self.precision != "float32",
            "ragged": self.ragged,
            f"{self.num_layers} layers": self.num_layers > 1,
            "bidirectional": self.bidirectional,
            f"proj_size {self.proj_size}": self.proj_size,
            "saturated": self.saturated,
            "resets": self.resets,
        }
        words = [shape, *(name for name, shown in traits.items() if shown), self.mode]
        return " ".join([f"{self.name}:", *words] if self.name else words)


@dataclass(frozen=True)
class Group:
    """Cases with the same thresholds: minimum geometric mean and minimum single ratio.

    `detailed` is false where only the ratio is needed, because there are many cases.
    """

    key: str
    title: str
    cases: tuple[Case, ...]
    geometric_mean: float | None = None
    worst: float | None = None
    detailed: bool = True


Shape = tuple[int, int, int, int]

DENSE: tuple[Shape, ...] = (
    (1, 32, 64, 64),
    (16, 32, 64, 128),
    (1, 100, 256, 256),
    (7, 13, 300, 300),
    (32, 35, 200, 200),
    (20, 35, 650, 650),
    (33, 50, 40, 100),
    (128, 20, 256, 512),
    (64, 100, 128, 256),
    (16, 200, 512, 512),
    (128, 20, 512, 1024),
)
RAGGED: tuple[Shape, ...] = (
    (128, 20, 256, 512),
    (32, 50, 256, 256),
    (32, 200, 128, 256),
    (8, 400, 80, 320),
)
NEAR_PEAK: tuple[Shape, ...] = ((128, 20, 256, 512), (64, 100, 128, 256), (128, 20, 512, 1024))
BFLOAT16: tuple[Shape, ...] = ((128, 20, 256, 512), (64, 100, 128, 256), (16, 200, 512, 512))
ONE_STEP: tuple[Shape, ...] = tuple(
    (batch, 1, *sizes) for sizes, batch in product(((256, 512), (64, 64), (512, 1024)), (1, 5, 32))
)

# What these projects run, read from their source.
BOTH_WAYS: dict[str, Any] = {"bidirectional": True}
REAL = (
    Case(2, 128, 512, 128, resets=True, name="CleanRL PPO"),
    Case(8, 16, 64, 256, resets=True, name="RecurrentPPO"),
    Case(8, 1, 64, 256, "inference", name="RecurrentPPO rollout"),
    Case(256, 365, 32, 128, name="NeuralHydrology"),
    Case(32, 293, 60, 128, "inference", num_layers=4, **BOTH_WAYS, name="pyannote segmentation"),
    Case(450, 318, 64, 32, "inference", **BOTH_WAYS, name="kraken layout"),
    Case(1, 1, 640, 640, "inference", name="NeMo transducer decoding"),
    Case(16, 1, 640, 640, "inference", name="NeMo transducer decoding"),
    Case(16, 64, 640, 640, name="NeMo transducer"),
    Case(100, 300, 384, 384, "inference", num_layers=2, **BOTH_WAYS, name="medaka consensus"),
    Case(
        100, 100, 384, 384, "inference", "bfloat16", num_layers=2, **BOTH_WAYS,
        name="medaka consensus",
    ),
    Case(16, 100, 512, 256, num_layers=3, **BOTH_WAYS, name="open-unmix"),
    Case(32, 40, 1024, 256, ragged=True, **BOTH_WAYS, name="flair tagger"),
    Case(100, 30, 400, 400, ragged=True, num_layers=2, **BOTH_WAYS, name="stanza tagger"),
    Case(16, 512, 1, 24, name="neural-amp-modeler"),
    Case(64, 32, 512, 128, "inference", num_layers=2, **BOTH_WAYS, name="docTR crnn"),
    Case(1, 120, 512, 256, "inference", ragged=True, **BOTH_WAYS, name="Kokoro text encoder"),
)  # fmt: skip
REAL_GROUP = Group("real", "real workloads", REAL, 1.7, 1.05, detailed=False)


def _cases(shapes: tuple[Shape, ...], mode: str, **traits: Any) -> tuple[Case, ...]:
    return tuple(Case(*shape, mode=mode, **traits) for shape in shapes)


CPU_GROUPS: tuple[Group, ...] = (
    REAL_GROUP,
    Group(
        "training",
        "training, dense float32",
        tuple(
            replace(case, gemm_fraction=0.85 if shape in NEAR_PEAK else None)
            for shape, case in zip(DENSE, _cases(DENSE, "training"), strict=True)
        ),
        1.4,
        1.05,
    ),
    Group("inference", "inference, dense float32", _cases(DENSE, "inference"), 1.4, 1.05),
    Group(
        "packed-training",
        "training, packed float32, ragged lengths",
        _cases(RAGGED, "training", ragged=True),
        4.0,
        2.0,
    ),
    Group(
        "packed-inference",
        "inference, packed float32, ragged lengths",
        _cases(RAGGED, "inference", ragged=True),
        2.5,
        1.5,
    ),
    Group(
        "bidirectional",
        "two layers, bidirectional, training",
        _cases(
            ((16, 50, 128, 256), (32, 35, 200, 200)), "training", num_layers=2, bidirectional=True
        ),
        1.4,
        1.2,
    ),
    Group(
        "bfloat16",
        "bfloat16, training and inference",
        tuple(
            case
            for mode in ("training", "inference")
            for case in _cases(BFLOAT16, mode, precision="bfloat16")
        ),
        1.2,
        1.0,
    ),
    Group(
        "products-in-bfloat16",
        "training, float32 with products in bfloat16 where the CPU has them",
        _cases(
            (*NEAR_PEAK, (16, 200, 512, 512), (32, 35, 200, 200)),
            "training",
            precision="products in bfloat16",
        ),
        3.0,
        2.0,
        detailed=False,
    ),
    Group(
        "tf32",
        "training and inference, float32 with fp32_precision = tf32, which AMX gains from",
        tuple(
            case
            for mode in ("training", "inference")
            for case in _cases(
                ((64, 100, 128, 256), (128, 20, 256, 512), (128, 20, 512, 1024)),
                mode,
                precision="tf32",
            )
        ),
        detailed=False,
    ),
    Group(  # no threshold for these two; --engine stepwise shows what they gain
        "float16",
        "float16, training and inference",
        tuple(
            case
            for mode in ("training", "inference")
            for case in _cases(((32, 35, 200, 200),), mode, precision="float16")
        ),
    ),
    Group(
        "projection",
        "projection of h, training and inference, float32",
        tuple(
            case
            for mode in ("training", "inference")
            for case in _cases(((32, 35, 200, 400),), mode, proj_size=200)
        ),
    ),
    Group(  # as fast as with other gates: nothing may be computed on subnormal numbers
        "saturated",
        "saturated gates, training and inference, float32",
        tuple(
            case
            for mode in ("training", "inference")
            for case in _cases(((16, 64, 64, 256),), mode, saturated=True)
        ),
    ),
    Group(
        "double",
        "double, training",
        _cases(((32, 35, 200, 200), (8, 50, 64, 128)), "training", precision="float64"),
        2.0,
        1.5,
    ),
    Group(
        "step",
        "one step, no gradient, LSTM with T = 1 and given state",
        _cases(ONE_STEP, "inference"),
        5.0,
        2.0,
    ),
    Group(
        "cell",
        "one step, no gradient, LSTMCell",
        _cases(ONE_STEP, "inference", module="LSTMCell"),
        1.7,
        1.2,
    ),
    Group(  # the first is that of the captioner's attention decoder
        "cell-training",
        "LSTMCell, training over 8 steps",
        _cases(
            ((128, 8, 1536, 512), (32, 8, 256, 512), (8, 8, 64, 128)),
            "training",
            module="LSTMCell",
        ),
        1.1,
        1.0,
    ),
)

# On a GPU T = 512 and input_size = hidden_size. The thresholds are those of each single ratio.
CUDA_STEPS = 512
CUDA_MODES = ("inference", "training")
GRID_LIMITS = {"standard": 0.95, "small H": 0.95, "persist static": 0.9}  # least ratios
OVER_FLOOR = {"inference": 1.5, "training": 2.0}


def cudnn_class(case: Case, gpu: _choice.Gpu = H100) -> str:
    """Which kernels cuDNN has for nn.LSTM: see `fastlstm._choice.cudnn_class`."""
    stack = _choice.Stack(
        str(case.dtype).removeprefix("torch."),
        case.input_size,
        case.hidden_size,
        case.batch,
        case.steps,
        case.proj_size,
        case.num_layers,
        1 + case.bidirectional,
        packed=case.ragged,
        training=case.mode == "training",
    )
    return _choice.cudnn_class(stack, gpu)


def _has_floor(precision: str, hidden_size: int, batch: int) -> bool:
    """Whether a persistent kernel holds the weights on chip, so that the floor binds."""
    largest = {
        ("bfloat16", 256): 128,
        ("bfloat16", 512): 128,
        ("bfloat16", 1024): 64,
        ("tf32", 256): 128,
        ("tf32", 512): 128,
        ("tf32", 1024): 16,
    }
    return batch <= largest.get((precision, hidden_size), 0)


def _cuda_case(mode: str, precision: str, hidden_size: int, batch: int, ragged: bool) -> Case:
    bound = not ragged and _has_floor(precision, hidden_size, batch)
    return Case(
        batch,
        CUDA_STEPS,
        hidden_size,
        hidden_size,
        mode,
        precision,
        ragged=ragged,
        over_floor=OVER_FLOOR[mode] if bound else None,
    )


def _cuda_groups() -> tuple[Group, ...]:
    named = (
        # key, title, precisions, hidden sizes, batches, ragged, least ratio per mode
        (
            "bf16",
            "bf16, H 256 and 512",
            ("bfloat16",),
            (256, 512),
            (1, 16, 64, 128),
            False,
            (2.5, 2.0),
        ),
        ("bf16-1024", "bf16, H 1024", ("bfloat16",), (1024,), (1, 16), False, (2.0, 1.5)),
        ("tf32", "TF32, H 256 and 512", ("tf32",), (256, 512), (1, 16), False, (2.5, 2.0)),
        (
            "packed",
            "packed, ragged lengths",
            ("float32", "tf32", "bfloat16", "float16"),
            (256, 512),
            (32, 128),
            True,
            (4.0, 4.0),
        ),
        (  # the stepwise engine
            "packed-float64",
            "packed, ragged lengths, double",
            ("float64",),
            (256, 512),
            (32, 128),
            True,
            (None, None),
        ),
        (
            "fp16",
            "fp16, cuDNN's persistent shapes",
            ("float16",),
            (512, 768, 1024),
            (16,),
            False,
            (0.9, 0.9),
        ),
    )
    groups = [
        Group(
            f"{key}-{mode}",
            f"{title}, {mode}",
            tuple(
                _cuda_case(mode, *traits, ragged) for traits in product(precisions, sizes, batches)
            ),
            worst=least,
        )
        for key, title, precisions, sizes, batches, ragged, limits in named
        for mode, least in zip(CUDA_MODES, limits, strict=True)
    ]
    for mode, least in zip(CUDA_MODES, (2.0, 1.7), strict=True):
        case = Case(32, CUDA_STEPS, 512, 512, mode, "bfloat16", num_layers=2, bidirectional=True)
        title = f"two layers, bidirectional, bf16, H 512, B 32, {mode}"
        groups.append(Group(f"bidirectional-{mode}", title, (case,), worst=least))
    measured = {case for group in groups for case in group.cases}
    for mode, (kind, worst) in product(CUDA_MODES, GRID_LIMITS.items()):
        grid = (
            _cuda_case(mode, *traits)
            for traits in product(
                ("bfloat16", "float16", "tf32", "float32"),
                (128, 256, 512, 768, 1024),
                (1, 16, 64, 128),
                (False, True),
            )
        )
        cases = tuple(c for c in grid if c not in measured and cudnn_class(c) == kind)
        key = f"grid-{kind.replace(' ', '-').lower()}-{mode}"
        title = f"the rest of the grid, where cuDNN's class is {kind}, {mode}"
        groups.append(Group(key, title, cases, worst=worst, detailed=False))
    return tuple(groups)


_GPU_GROUPS = _cuda_groups()
CUDA_GROUPS = (*_GPU_GROUPS[:2], REAL_GROUP, *_GPU_GROUPS[2:])  # what it is written for comes first
