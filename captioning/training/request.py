"""A request for training: `captioning train` makes one of its options, Python code can too."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from captioning.data import ON_ERROR
from captioning.errors import CaptioningError
from captioning.model import LSTMS
from captioning.settings import ModelConfig, TrainConfig, check_choice

MODEL = {entry.name for entry in fields(ModelConfig)} - {"feature_size", "vocab_size", "grid"}
TRAINING = {entry.name for entry in fields(TrainConfig)}


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What to train, on what, and where to write it.

    Args:
        train, val, test: COCO captions files: to train on, to validate on, to score at the end.
        train_images, val_images, test_images: folders of their pictures, if the files do not say.
        output: folder for checkpoints.
        features: folder of feature caches (OUTPUT/features, or that of `start`).
        cnn: name of the frozen CNN, see `CNNConfig`; None for the default.
        cnn_weights: its weights, see `CNNConfig`.
        start: checkpoint whose weights to start from, with its words, model and CNN.
        resume: whether to continue from OUTPUT/last.pt, if it exists.
        members: captioners to train, of the seeds SEED, SEED + 1, ..., which write together.
        on_error: refuse or skip pictures that are broken or missing, and captions without words.
        device: "auto" is CUDA if there is any.
        workers: processes that load pictures, besides this one; None: 0 on a CPU, 4 on a GPU.
        lstm: "fastlstm", "torch" or "reference".
        settings: fields of `ModelConfig` and `TrainConfig`, and the CNN's "pool". The others are
            those of the captioner to continue with, or suit the number of pictures
            (`captioning.settings.preset`).
    """

    train: Path
    output: Path
    val: Path | None = None
    test: Path | None = None
    train_images: Path | None = None
    val_images: Path | None = None
    test_images: Path | None = None
    features: Path | None = None
    cnn: str | None = None
    cnn_weights: str | None = None
    start: Path | None = None
    resume: bool = False
    members: int = 1
    on_error: str = "refuse"
    device: str = "auto"
    workers: int | None = None
    lstm: str = "fastlstm"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = MODEL | TRAINING | {"pool"}
        if unknown := sorted(self.settings.keys() - known):
            raise CaptioningError(
                f"settings: expected {', '.join(sorted(known))}; got {unknown[0]}"
            )
        check_choice("lstm", self.lstm, LSTMS)
        check_choice("on_error", self.on_error, ON_ERROR)
        if self.members < 1:
            raise CaptioningError(f"members: expected 1 or more, got {self.members}")
        ModelConfig(1, 1, **self.of(MODEL))  # an error is found before the pictures are encoded
        TrainConfig(**self.of(TRAINING))

    def of(self, names: set[str]) -> dict[str, Any]:
        """The settings of these names that were given."""
        return {name: value for name, value in self.settings.items() if name in names}

    @property
    def splits(self) -> dict[str, tuple[Path, Path | None]]:
        """The captions files by split, each with the folder of its pictures."""
        names = ("train", "val", "test")
        found = {name: (getattr(self, name), getattr(self, f"{name}_images")) for name in names}
        return {split: pair for split, pair in found.items() if pair[0]}
