"""A request for training: `captioning train` makes one of its options, Python code can too."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from captioning.data.coco import ON_ERROR
from captioning.errors import CaptioningError
from captioning.model.layers import LSTMS
from captioning.settings import ModelConfig, TrainConfig, check_choice

MODEL = {entry.name for entry in fields(ModelConfig)} - {"feature_size", "vocab_size", "grid"}
TRAINING = {entry.name for entry in fields(TrainConfig)}


def only(names: set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of these names."""
    return {name: value for name, value in settings.items() if name in names}


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What to train, on what, and where to write it: the options of `captioning train`.

    `train`, `val` and `test` are COCO captions files; `settings` are fields of `ModelConfig` and
    `TrainConfig`, and the CNN's "pool". Other settings are those of the captioner to continue
    with, or suit the number of pictures (`captioning.settings.preset`).
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
        # An error is found before the pictures are encoded.
        ModelConfig(1, 1, **only(MODEL, self.settings))
        TrainConfig(**only(TRAINING, self.settings))

    @property
    def splits(self) -> dict[str, tuple[Path, Path | None]]:
        """The captions files by split, each with the folder of its pictures."""
        names = ("train", "val", "test")
        found = {name: (getattr(self, name), getattr(self, f"{name}_images")) for name in names}
        return {split: pair for split, pair in found.items() if pair[0]}
