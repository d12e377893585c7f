"""The request for a training. `captioning train` makes one from its options."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from captioning.data.coco import ON_ERROR
from captioning.errors import CaptioningError
from captioning.model.layers import check_lstm
from captioning.settings import ModelConfig, TrainConfig, check_choice

# The names of the settings. The three sizes that are left out follow from the CNN and the captions.
MODEL_FIELDS = {entry.name for entry in fields(ModelConfig)}
MODEL_FIELDS -= {"feature_size", "vocab_size", "grid"}
TRAIN_FIELDS = {entry.name for entry in fields(TrainConfig)}


def select(names: set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that have one of these names."""
    return {name: value for name, value in settings.items() if name in names}


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """The options of `captioning train`.

    `train`, `val` and `test` are COCO captions files. `settings` has fields of `ModelConfig` and
    `TrainConfig`, and the CNN's "pool". `resume` takes all missing settings from the run that
    it continues, and `start` takes the missing sizes and pool from its checkpoint. Other missing
    settings depend on the number of pictures (`captioning.settings.preset`), or have defaults.
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
        known = MODEL_FIELDS | TRAIN_FIELDS | {"pool"}
        if unknown := sorted(self.settings.keys() - known):
            names = ", ".join(sorted(known))
            raise CaptioningError(f"settings: expected {names}; got {unknown[0]}")
        check_choice("on_error", self.on_error, ON_ERROR)
        if self.members < 1:
            raise CaptioningError(f"members: expected 1 or more, got {self.members}")
        # The constructors refuse wrong values here, before the pictures are encoded.
        sizes = ModelConfig(1, 1, **select(MODEL_FIELDS, self.settings))
        TrainConfig(**select(TRAIN_FIELDS, self.settings))
        check_lstm(self.lstm, sizes.num_layers)

    @property
    def splits(self) -> dict[str, tuple[Path, Path | None]]:
        """The captions file of each split that has one, and the folder of its pictures or None."""
        names = [name for name in ("train", "val", "test") if getattr(self, name)]
        return {name: (getattr(self, name), getattr(self, f"{name}_images")) for name in names}
