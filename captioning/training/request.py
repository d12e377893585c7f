"""A request for training: `captioning train` makes one of its options, Python code can too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captioning import config
from captioning.cnn import CNNChoice, Extraction
from captioning.config import FROM_1, Checked, ModelConfig, TrainConfig, setting
from captioning.console import say
from captioning.data import CaptionDataset, load_coco
from captioning.model import HELP, LSTMS, Checkpoint, decoder_class, model_config

MIN_COUNT = 4


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(Checked):
    """What to train, on what, and where to write it.

    Args:
        cnn: the frozen CNN.
        extraction: how pictures are encoded, on which device everything runs, and what happens to
            broken pictures.
        model: "decoder", and settings of its `Settings`; the others have their defaults, or the
            values of the captioner that training continues with.
        settings: fields of `TrainConfig`; the others follow from the number of pictures
            (`captioning.config.recipe`), or are those of the run that is resumed.
    """

    train: Path = setting("COCO captions file")
    train_images: Path | None = setting("folder of its pictures", None)
    val: Path | None = setting("COCO captions file to validate on", None)
    val_images: Path | None = setting("folder of its pictures", None)
    test: Path | None = setting("COCO captions file to score the best epoch on", None)
    test_images: Path | None = setting("folder of its pictures", None)
    output: Path = setting("folder for checkpoints")
    features: Path | None = setting("folder of feature caches (OUTPUT/features, or START's)", None)
    min_count: int | None = setting(
        f"words that occur less often than this are not learned ({MIN_COUNT})", None, bounds=FROM_1
    )
    start: Path | None = setting(
        "checkpoint whose weights to start from, with its words, model and CNN", None
    )
    resume: bool = setting(
        "continue from OUTPUT/last.pt, if it exists; its words, model, CNN and settings need not "
        "be given again",
        False,
    )
    members: int = setting(
        "captioners to train, of the seeds SEED, SEED + 1, ..., which write together",
        1,
        bounds=FROM_1,
    )
    lstm: str = setting(HELP, "fastlstm", choices=LSTMS)
    cnn: CNNChoice = CNNChoice()
    extraction: Extraction = Extraction()
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Path]:
        """The captions files by split."""
        files = {"train": self.train, "val": self.val, "test": self.test}
        return {split: path for split, path in files.items() if path}

    def config(self, pictures: int, origin: "Origin | None") -> TrainConfig:
        """The given settings; the others are the resumed run's, or suit the number of pictures."""
        known = origin.config if origin else None
        if known is None:
            model = origin.checkpoint.model.config if origin else self.sizes()
            batches_of = self.settings.get("batches_of", decoder_class(model).batches_of)
            known = config.recipe(pictures, bool(self.settings.get("self_critical")), batches_of)
        return config.from_dict(TrainConfig, asdict(known) | dict(self.settings), "settings")

    def sizes(self, feature_size: int = 1, vocab_size: int = 1, grid: int = 1) -> ModelConfig:
        """The sizes of a new captioner; without those that the data will decide they are 1."""
        sizes = {"feature_size": feature_size, "vocab_size": vocab_size, "grid": grid}
        return model_config({**self.model, **sizes})

    def load(self, split: str) -> CaptionDataset:
        """The captions and pictures of a split; says which were skipped."""
        images = getattr(self, f"{split}_images")
        dataset = load_coco(self.splits[split], images, self.extraction.on_error, True)
        say(*dataset.report_skipped())
        return dataset


@dataclass(frozen=True)
class Origin:
    """The captioner that training continues with, and its file."""

    path: Path
    checkpoint: Checkpoint
    config: TrainConfig | None = None  # of the run that is resumed
