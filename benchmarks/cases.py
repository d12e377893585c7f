"""The cases that bench_lstm.py measures, in groups. Tests and other benchmarks use them as well.

The ratio of a case is the time of torch.nn (or of another peer) divided by the time of fastlstm: a
larger ratio is better.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    # On a GPU allow_tf32 is set, on a CPU torch.backends.mkldnn.rnn.fp32_precision = "tf32".
    "tf32": torch.float32,
    "products in bfloat16": torch.float32,  # torch.backends.mkldnn.rnn.fp32_precision = "bf16"
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MODES = ("inference", "training")


@dataclass(frozen=True)
class Case:
    """One workload: a module, the shape of its input, and what is computed.

    Attributes:
        batch, steps, input_size, hidden_size: the sizes B, T, I and H. If `ragged`, T is the
            longest length. For an LSTMCell, T is the number of calls.
        mode: "training" is forward and backward with the gradients of the input and of all weights,
            "inference" is forward without gradients.
        precision: a key of `DTYPES`.
        module: "LSTM" or "LSTMCell".
        ragged: True if the input is a PackedSequence whose rows have different lengths, in any
            order.
        lengths: True if the input is a padded batch whose rows have different lengths. fastlstm
            gets `lengths=`; for torch.nn every call packs the input and pads the output.
        num_layers, bidirectional, proj_size: as in nn.LSTM.
        saturated: True if a bias of -100 shuts every input gate, so that its sigmoid is nearly 0.
        resets: True if the state is reset to zero inside the rows, as at the end of an episode.
            fastlstm gets `reset=`; torch.nn runs a loop over single steps, as in CleanRL.
        name: the name of the project that runs this case, or "" if the case is from no project.
        prepacked: the dtype of fastlstm's prepacked weights, or "" if the layer is not prepacked.
        peer: the library that fastlstm is compared with: "torch.nn", "torch.ao" (dynamic
            quantization), "onnxruntime" or "onnxruntime int8".
    """

    batch: int
    steps: int
    input_size: int
    hidden_size: int
    mode: str = "training"
    precision: str = "float32"
    module: str = "LSTM"
    ragged: bool = False
    lengths: bool = False
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    saturated: bool = False
    resets: bool = False
    name: str = ""
    prepacked: str = ""
    peer: str = "torch.nn"

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
            self.module: self.module != "LSTM",
            "ragged": self.ragged,
            "lengths": self.lengths,
            f"{self.num_layers} layers": self.num_layers > 1,
            "bidirectional": self.bidirectional,
            f"proj_size {self.proj_size}": self.proj_size,
            "saturated": self.saturated,
            "resets": self.resets,
            f"prepacked {self.prepacked}": self.prepacked,
            f"against {self.peer}": self.peer != "torch.nn",
        }
        words = [shape, *(name for name, shown in traits.items() if shown), self.mode]
        return " ".join([f"{self.name}:", *words] if self.name else words)


@dataclass(frozen=True)
class Group:
    """Cases that are reported together, with one mean for inference and one for training."""

    key: str
    title: str
    cases: tuple[Case, ...]


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
LARGE: tuple[Shape, ...] = ((128, 20, 256, 512), (64, 100, 128, 256), (128, 20, 512, 1024))
BFLOAT16: tuple[Shape, ...] = ((128, 20, 256, 512), (64, 100, 128, 256), (16, 200, 512, 512))
ONE_STEP: tuple[Shape, ...] = tuple(
    (batch, 1, *sizes) for sizes, batch in product(((256, 512), (64, 64), (512, 1024)), (1, 5, 32))
)
# The first shape is the one of the captioner's attention decoder.
CELL_LOOPS: tuple[Shape, ...] = ((128, 8, 1536, 512), (32, 8, 256, 512), (8, 8, 64, 128))

# The LSTMs of these projects, with the shapes and options found in their source code.
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
REAL_GROUP = Group("real", "LSTMs of known projects, with their options", REAL)


def _group(
    key: str, title: str, shapes: Iterable[Shape], modes: Iterable[str] = MODES, **traits: Any
) -> Group:
    """Returns a group with one case for every mode and shape."""
    cases = (Case(*shape, mode, **traits) for mode, shape in product(modes, shapes))
    return Group(key, title, tuple(cases))


def _groups() -> tuple[Group, ...]:
    projection_shapes = ((32, 35, 200, 400),)
    cells = [Case(*shape, "inference", module="LSTMCell") for shape in ONE_STEP]
    cells += [Case(*shape, "training", module="LSTMCell") for shape in CELL_LOOPS]
    forward_only: dict[str, Any] = {"modes": ("inference",)}
    return (
        REAL_GROUP,
        _group("dense", "dense batches", DENSE),
        _group("packed", "packed sequences", RAGGED, ragged=True),
        _group(
            "two-layers", "two layers, bidirectional", ((16, 50, 128, 256), (32, 35, 200, 200)),
            num_layers=2, bidirectional=True,
        ),
        _group("step", "single steps, LSTM", ONE_STEP, MODES[:1]),
        Group("cell", "single steps, LSTMCell; in training 8 of them", tuple(cells)),
        _group("bfloat16", "bfloat16", BFLOAT16, precision="bfloat16"),
        _group("float16", "float16", ((32, 35, 200, 200),), precision="float16"),
        _group("double", "float64", ((32, 35, 200, 200), (8, 50, 64, 128)), precision="float64"),
        _group("tf32", 'float32, fp32_precision = "tf32"', LARGE, precision="tf32"),
        _group(
            "products-in-bfloat16", 'float32, fp32_precision = "bf16"',
            LARGE, precision="products in bfloat16",
        ),
        _group("projection", "projection", projection_shapes, proj_size=200),
        # These gates can be subnormal numbers, which would slow down plain arithmetic.
        _group("saturated", "saturated gates", ((16, 64, 64, 256),), saturated=True),
        *(
            _group(f"prepacked-{weights}", f"prepacked in {weights}", DENSE,
                   prepacked=weights, **forward_only)
            for weights in ("float32", "bfloat16", "int8")
        ),
        *(
            _group(f"prepacked-cell-{weights}", f"LSTMCell, prepacked in {weights}", ONE_STEP,
                   module="LSTMCell", prepacked=weights, **forward_only)
            for weights in ("float32", "bfloat16", "int8")
        ),
        _group("torch-ao", "prepacked in int8, compared with torch.ao", LARGE,
               prepacked="int8", peer="torch.ao", **forward_only),
        _group("onnxruntime", "prepacked in float32, compared with onnxruntime", DENSE,
               prepacked="float32", peer="onnxruntime", **forward_only),
        _group("onnxruntime-plain", "without prepack, compared with onnxruntime", DENSE,
               peer="onnxruntime", **forward_only),
        _group("onnxruntime-int8", "prepacked in int8, compared with onnxruntime's int8", DENSE,
               prepacked="int8", peer="onnxruntime int8", **forward_only),
    )  # fmt: skip


GROUPS = _groups()
