"""The sizes of a captioner and the settings of training, with values that suit large sets of
pictures, small ones, and self-critical training."""

import math
import operator
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import torch

from captioning.console import short
from captioning.errors import CaptioningError, naming

Settings = TypeVar("Settings")
LIMIT = 2**31  # of sizes and counts
MAX_SIDE = 4096  # of the square that a CNN sees, in pixels
MAX_TOKENS = 1000  # of a caption: a search reserves as many for each
BATCHES_OF = ("captions", "pictures")
AUTOCAST = {"none": None, "bfloat16": torch.bfloat16}
# Bounds of a setting; an integer is also below LIMIT.
ANY_INTEGER, POSITIVE, FROM_0, FROM_1 = {">=": -LIMIT}, {">": 0}, {">=": 0}, {">=": 1}
SHARE = {">=": 0, "<": 1}
SIZE = {">=": 1, "<=": 2**20}  # so that torch can count the bytes of any matrix
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def autocast_dtype(name: str, device: str) -> torch.dtype | None:
    """The dtype of autocast; "auto" is bfloat16 on CPUs that multiply it faster than float32."""
    if name != "auto":
        return AUTOCAST[name]
    found: dict[str, bool] = {}
    if device == "cpu":
        found = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else None


def from_dict(kind: type[Settings], data: Any, what: str) -> Settings:
    """A dataclass from its fields by name; those that an older version lacked have defaults.

    Fields are numbers, text, and tuples of numbers, which may be given as lists. A CaptioningError
    says which field of `what` is missing, unknown, of another type or out of its bounds.
    """
    types = get_type_hints(kind)
    required = [f.name for f in fields(cast(Any, kind)) if f.default is MISSING]
    with naming(what):
        if not isinstance(data, dict):
            raise CaptioningError(f"expected settings by name, got {short(data)}")
        if unknown := [name for name in data if name not in types]:
            raise CaptioningError(f"expected {', '.join(types)}, got {short(unknown[0])}")
        if missing := [name for name in required if name not in data]:
            raise CaptioningError(f"expected {missing[0]}, got none")
        data = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        for name, value in data.items():
            if not _is_of(value, types[name]):
                expected = "numbers" if get_origin(types[name]) else types[name].__name__
                raise CaptioningError(f"expected {expected} as {name}, got {short(value)}")
        return kind(**data)


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind):
        return isinstance(value, tuple) and all(_is_of(v, get_args(kind)[0]) for v in value)
    return type(value) is kind or (kind is float and type(value) is int)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise CaptioningError(f"{name}: expected one of {tuple(choices)}, got {value!r}")


class Checked:
    """A dataclass that refuses fields out of their bounds or choices (`setting`); None is none."""

    def __post_init__(self) -> None:
        for entry in fields(cast(Any, self)):
            value = getattr(self, entry.name)
            if value is not None and "choices" in entry.metadata:
                check_choice(entry.name, value, entry.metadata["choices"])
            if type(value) in (int, float):
                upper = LIMIT if type(value) is int else math.inf
                for sign, bound in (*entry.metadata.get("bounds", {}).items(), ("<", upper)):
                    if not _COMPARE[sign](value, bound):
                        what = f"{entry.name}: expected {sign} {bound:,}"
                        raise CaptioningError(f"{what}, got {short(value)}")


def setting(help: str, default: Any = MISSING, **more: Any) -> Any:
    """A field of a dataclass that carries its help, from which commands make an option.

    `more` are the `bounds` of a number, such as {">=": 0, "<": 1}, its `choices`, the two values
    that `suited` chooses from, or anything else that `ArgumentParser.add_argument` takes.
    """
    return field(default=default, metadata={"help": help, **more})


def settings_of(kind: type) -> list[str]:
    """The names of the fields of a dataclass that carry their help."""
    return [entry.name for entry in fields(kind) if "help" in entry.metadata]


def suited(kind: type, pictures: int) -> dict[str, Any]:
    """Those settings that have a value for fewer than `SMALL_SET` pictures and one for more."""
    size = int(pictures >= SMALL_SET)
    return {f.name: f.metadata["suits"][size] for f in fields(kind) if "suits" in f.metadata}


def option(name: str) -> str:
    """The option that commands make of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The sizes of a captioner, whatever its decoder is, which may add settings of its own.

    Args:
        feature_size: size of a feature vector of the frozen CNN.
        vocab_size: number of words.
        decoder: a name in `captioning.model.DECODERS`.
        grid: side of the square of cells if the CNN pools to "grid", else 0.
    """

    feature_size: int = field(metadata={"bounds": SIZE})
    vocab_size: int = field(metadata={"bounds": SIZE})
    embed_size: int = setting("size of the vectors of words and pictures", 256, bounds=SIZE)
    hidden_size: int = setting("size of the LSTM's state", 512, bounds=SIZE)
    max_seq_length: int = setting(
        "maximum number of tokens of a caption, <end> included",
        20,
        bounds={">=": 1, "<=": MAX_TOKENS},
    )
    dropout: float = setting(
        "probability of dropping an element of the embeddings, between LSTM layers and of what the "
        "output layer reads",
        0.0,
        bounds=SHARE,
        suits=(0.4, 0.3),
    )
    decoder: str = "lstm"
    grid: int = field(default=0, metadata={"bounds": {">=": 0, "<=": MAX_SIDE}})


@dataclass(frozen=True)
class BeamConfig(Checked):
    """How beam search writes unless told otherwise; `train` chooses by what is best on --val."""

    beam_size: int = field(default=5, metadata={"bounds": FROM_1})
    length_penalty: float = field(default=0.7, metadata={"bounds": FROM_0})


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train."""

    epochs: int = setting(
        "passes over all captions; for fewer than 20,000 pictures 10 in batches of pictures, more "
        "for fewer than 6,000, 6 in self-critical training",
        20,
        bounds=FROM_1,
    )
    batch_size: int = setting("captions per step, in all processes together", 128, bounds=FROM_1)
    batches_of: str = setting(
        "captions: any captions are drawn; pictures: all captions of some pictures, so that each "
        "is encoded once; --self-critical has no use for it",
        "captions",
        choices=BATCHES_OF,
    )
    learning_rate: float = setting(
        "the peak, 2e-4 in self-critical training on a small set; it rises for --warmup steps, "
        "then falls along a cosine to 2 %",
        1e-3,
        bounds=POSITIVE,
    )
    warmup: int = setting("steps over which the learning rate rises", 50, bounds=FROM_0)
    clip_norm: float = setting("maximum norm of the gradient; 0 for no limit", 5.0, bounds=FROM_0)
    label_smoothing: float = setting(
        "share of the target spread over the vocabulary", 0.0, bounds=SHARE
    )
    consensus: float = setting(
        "share of a caption's weight that follows how well the picture's other captions agree with "
        "it (by CIDEr-D); 0: all weigh the same. --self-critical has no use for it",
        0.0,
        bounds=SHARE,
    )
    ema: float = setting(
        "validate and save a running average of the weights over about 1 / (1 - ema) steps (Polyak "
        "and Juditsky, 1992); 0 for the weights themselves",
        0.0,
        bounds=SHARE,
    )
    autocast: str = setting(
        "none, bfloat16, or auto: bfloat16 on a CPU with AVX512_BF16 or AMX",
        "none",
        choices=("auto", *AUTOCAST),
    )
    self_critical: int = setting(
        "0: train on cross-entropy; N >= 2: on the CIDEr-D of N captions sampled for each picture, "
        "and --batch-size counts pictures",
        0,
        bounds=FROM_0,
    )
    no_neighbors: bool = setting(
        "leave the features and captions of the training pictures, which help beam search, out of "
        "best.pt",
        False,
    )
    max_words: int = setting("longer captions are cut", 50, bounds=FROM_1)
    seed: int = setting("seed of the initial weights, the order and dropout", 0, bounds=ANY_INTEGER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_critical == 1:
            raise CaptioningError("self_critical: expected 0, or at least 2 captions, got 1")


LARGE = TrainConfig(autocast="auto")
SMALL = replace(LARGE, epochs=6, learning_rate=3e-3, label_smoothing=0.1, consensus=0.5, ema=0.99)
SELF_CRITICAL = replace(LARGE, epochs=10, learning_rate=3e-4, batch_size=64, self_critical=5)
EPOCHS_OF_PICTURES = 10  # of a small set, in batches of pictures
SMALL_SET = 20_000  # pictures; fewer are a small set
FEW_PICTURES = 50  # scores of fewer mean little


def recipe(
    pictures: int, self_critical: bool = False, batches_of: str = SMALL.batches_of
) -> TrainConfig:
    """The settings for training on this number of pictures, in such batches."""
    small = pictures < SMALL_SET
    if self_critical:
        config = replace(SELF_CRITICAL, epochs=6, learning_rate=2e-4) if small else SELF_CRITICAL
    elif small:
        epochs = SMALL.epochs if batches_of == "captions" else EPOCHS_OF_PICTURES
        # A few hundred pictures make a few steps an epoch.
        config = replace(SMALL, epochs=min(60, max(epochs, 6000 * epochs // max(1, pictures))))
    else:
        config = LARGE
    return replace(config, batches_of=batches_of)
