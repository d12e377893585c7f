"""The settings: sizes of a captioner, training, search, and the device."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from captioning.console import abbreviate
from captioning.errors import CaptioningError

SMALL_SET = 20_000  # a training set with fewer pictures is small
POOLS = ("avg", "2x2", "grid")
INT32_MAX = 2**31 - 1

# The values that a setting may have: a range that includes both ends, or one of several words.
ALLOWED: dict[str, Any] = {
    **dict.fromkeys(("feature_size", "vocab_size", "embed_size", "hidden_size"), (1, 2**20)),
    **dict.fromkeys(("num_layers", "beam_size", "max_seq_length", "max_words"), (1, 1000)),
    **dict.fromkeys(("epochs", "batch_size", "min_count"), (1, INT32_MAX)),
    **dict.fromkeys(("dropout", "label_smoothing", "consensus", "ema"), (0, 0.999999)),
    **dict.fromkeys(("warmup", "clip_norm", "self_critical"), (0, INT32_MAX)),
    **dict.fromkeys(("length_penalty", "neighbors"), (0, INT32_MAX)),
    **dict.fromkeys(("learning_rate", "temperature"), (1e-30, INT32_MAX)),
    "grid": (0, 4096),
    "seed": (-INT32_MAX, INT32_MAX),
    "image_at": ("first", "every"),
    "batches_of": ("captions", "pictures"),
    "autocast": ("auto", "none", "bfloat16"),
    "method": ("beam", "greedy", "sample"),
}


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the choices."""
    if value not in choices:
        raise CaptioningError(f"{name}: expected one of {choices}, got {abbreviate(value)}")


@dataclass(frozen=True)
class CheckedSettings:
    """A dataclass that checks those of its fields that are in `ALLOWED`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value, allowed = field.name, getattr(self, field.name), ALLOWED.get(field.name)
            if allowed and isinstance(allowed[0], str):
                check_choice(name, value, allowed)
            elif allowed:
                low, high = allowed
                is_int = field.type is int
                kind, types = ("an integer", {int}) if is_int else ("a number", {int, float})
                if type(value) not in types or not low <= value <= high:
                    expected = f"{kind} from {low} to {high}"
                    raise CaptioningError(f"{name}: expected {expected}, got {abbreviate(value)}")


@dataclass(frozen=True)
class ModelConfig(CheckedSettings):
    """The sizes of a captioner.

    Args:
        feature_size: size of a feature vector of the frozen CNN.
        vocab_size: number of words.
        embed_size: size of the vectors of words and pictures.
        hidden_size: size of the LSTM's state.
        num_layers: number of LSTM layers.
        max_seq_length: maximum number of tokens of a caption, <end> included.
        dropout: probability of dropout at the LSTM's inputs, between its layers and at its outputs.
        image_at: the steps at which the lstm decoder reads the image, "first" or "every".
        decoder: a name in `captioning.DECODERS`.
        grid: the number of cells along each side if the CNN pools to "grid", else 0.
    """

    feature_size: int
    vocab_size: int
    embed_size: int = 256
    hidden_size: int = 512
    num_layers: int = 1
    max_seq_length: int = 20
    dropout: float = 0.0
    image_at: str = "first"
    decoder: str = "lstm"
    grid: int = 0


@dataclass(frozen=True)
class DecodeConfig(CheckedSettings):
    """How to write captions. Training chooses the settings of beam search by the scores on --val.

    Args:
        method: "beam" for beam search; "greedy" for the most probable word in each step; "sample"
            to draw each word at random.
        beam_size: number of unfinished captions that beam search keeps.
        length_penalty: beam search ranks by log probability / length^length_penalty.
        neighbors: weight of the agreement with captions of similar training pictures, which beam
            search adds to the score.
        temperature: of sampling; below 1 probable words are drawn more often.
        seed: of sampling; the same seed gives the same captions.
    """

    method: str = "beam"
    beam_size: int = 5
    length_penalty: float = 0.7
    neighbors: float = 0.0
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig(CheckedSettings):
    """How to train.

    Args:
        epochs: passes over all captions.
        batch_size: captions in a batch (self-critical: pictures), divided among the processes.
        learning_rate: highest learning rate, after the warmup; then it falls to a fiftieth.
        seed: of initial weights, order of the captions and dropout.
        self_critical: 0 for cross-entropy; N >= 2 for the CIDEr-D of N captions of each picture.
        no_neighbors: True to leave the captions of training pictures out of best.pt.
        batches_of: batches of random "captions", or of random "pictures" with all their captions.
        min_count: words that occur less often are not learned.
        max_words: longer captions are cut.
        warmup: number of steps over which the learning rate rises.
        clip_norm: maximum norm of the gradient; 0 for no limit.
        label_smoothing: share of the target that is spread over the vocabulary.
        consensus: share of a caption's loss weight that depends on the picture's other captions.
        ema: decay of the running average of the weights, which is saved; 0 for no average.
        autocast: "none", "bfloat16", or "auto" for bfloat16 if the device computes it faster.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    self_critical: int = 0
    no_neighbors: bool = False
    batches_of: str = "captions"
    min_count: int = 4
    max_words: int = 50
    warmup: int = 50
    clip_norm: float = 5.0
    label_smoothing: float = 0.0
    consensus: float = 0.0
    ema: float = 0.0
    autocast: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_critical == 1:
            raise CaptioningError("self_critical: expected 0, or at least 2 captions, got 1")


def preset(
    picture_count: int, batches_of: str = "captions", self_critical: bool = False
) -> dict[str, Any]:
    """Returns settings that suit this number of pictures; other settings keep their defaults."""
    small = picture_count < SMALL_SET
    dropout, image_at = (0.4, "every") if small else (0.3, "first")
    chosen: dict[str, Any] = {"batches_of": batches_of, "dropout": dropout, "image_at": image_at}
    if self_critical:
        epochs, rate = (6, 2e-4) if small else (10, 3e-4)
        return chosen | {"epochs": epochs, "learning_rate": rate, "batch_size": 64}
    if small:
        epochs = 6 if batches_of == "captions" else 10
        # With few pictures an epoch has few steps, so there are more epochs.
        chosen["epochs"] = min(60, max(epochs, 6000 * epochs // max(1, picture_count)))
        chosen |= {"learning_rate": 3e-3, "label_smoothing": 0.1, "consensus": 0.5, "ema": 0.99}
    return chosen


# The settings without an option of their own, which `train --set NAME=VALUE` takes.
SET_OPTION_NAMES = "pool min_count max_seq_length max_words dropout image_at batches_of".split()
SET_OPTION_NAMES += "warmup clip_norm label_smoothing consensus ema autocast".split()
_FIELDS = {field.name: field for kind in (ModelConfig, TrainConfig) for field in fields(kind)}


def describe_setting(name: str) -> str:
    """Returns a setting's help: its defaults, a colon, and the first line of its docstring.

    If the defaults differ, there are three: for a small set, a large set, self-critical training.
    """
    if name == "pool":
        return "avg (or 2x2), and grid for --decoder attention: how to pool the feature map"
    text = f"{ModelConfig.__doc__}{TrainConfig.__doc__}".split(f"{name}: ")[1].partition("\n")[0]
    presets = preset(6000), preset(SMALL_SET), preset(6000, self_critical=True)
    values = [str(chosen.get(name, _FIELDS[name].default)) for chosen in presets]
    return f"{values[0] if len({*values}) == 1 else ' | '.join(values)}: {text}"


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads settings from texts NAME=VALUE, for the names in `SET_OPTION_NAMES`."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        # Hyphens before the = are replaced: label-smoothing=0.1 sets label_smoothing.
        name, _, text = pair.replace("-", "_", pair.partition("=")[0].count("-")).partition("=")
        if name not in SET_OPTION_NAMES or not text:
            names = ", ".join(SET_OPTION_NAMES)
            raise CaptioningError(f"--set: expected NAME=VALUE, NAME one of {names}; got {pair}")
        convert: Any = str if name == "pool" else _FIELDS[name].type
        try:
            settings[name] = convert(text)
        except ValueError as error:
            raise CaptioningError(f"--set {name}: expected a number, got {text}") from error
    return settings


def choose_device(name: str = "auto") -> str:
    """Checks the name of a device and returns it; "auto" becomes "cuda" if there is a GPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CaptioningError(f"--device: no device {name!r} here: {reason}") from error
    return name


def describe_device(device: str) -> str:
    """Returns a line for the user: the device and, if it is not CUDA, the reason."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        return f"device: {device}, {name} (captioning was never tested on CUDA)"
    why = "no CUDA: torch finds no GPU"
    if torch.cuda.is_available():
        why = f"--device cuda would use {torch.cuda.get_device_name()}"
    elif not torch.version.cuda:
        why = f"no CUDA: torch {torch.__version__} was built without CUDA"
    return f"device: {device}, {torch.get_num_threads()} threads of {os.cpu_count()} ({why})"
