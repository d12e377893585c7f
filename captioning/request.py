"""A request for training, and how its files, CNN, sizes and settings are prepared.

`captioning train` makes a `TrainingRequest` of its options; Python code can make one too.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captioning.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
from captioning.cnn import CNNChoice
from captioning.config import (
    DROPOUT,
    IMAGE_AT,
    SMALL_SET,
    ModelConfig,
    TrainConfig,
    check_at_least,
    from_dict,
    option,
    recipe,
    setting,
)
from captioning.console import say
from captioning.datasets import CaptionDataset, load_coco
from captioning.decoders import decoder_class
from captioning.errors import CaptioningError
from captioning.features import Extraction, FeatureTable, cache_path, extract_features
from captioning.generate import DecodeConfig, best_captions, decode_batch
from captioning.locks import lock_folder
from captioning.lstm import HELP, LSTMS, freeze
from captioning.metrics import score_captions
from captioning.model import Captioner
from captioning.neighbors import Neighbors, rank
from captioning.processes import distributed, first_process_first
from captioning.train import MAY_CHANGE, train
from captioning.vocabulary import Vocabulary

MIN_COUNT = 4
NEIGHBOR_WEIGHTS = (0, 1, 2, 3, 4, 6, 8)  # the first of the best is taken
LEGEND = {
    "loss": "loss: nats per word, given the words before it, on --train with dropout and on --val",
    "reward": "reward: mean CIDEr-D of captions drawn for pictures of --train",
}
SCORES = "CIDEr-D, BLEU-4: of the captions that greedy search writes for --val"
MODEL_SETTINGS = (
    *("decoder", "embed_size", "hidden_size", "num_layers"),
    *("max_seq_length", "dropout", "image_at"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What to train, on what, and where to write it.

    Args:
        cnn: the frozen CNN.
        extraction: how pictures are encoded, on which device everything runs, and what happens to
            broken pictures.
        model: those fields of `ModelConfig` that are in `MODEL_SETTINGS`; the others have their
            defaults, or the values of the captioner that training continues with.
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
    vocab: Path | None = setting("vocabulary file; built if not given", None)
    min_count: int | None = setting(
        f"a built vocabulary has the words that occur at least this often ({MIN_COUNT})", None
    )
    start: Path | None = setting(
        "checkpoint whose weights to start from, with its words, model and CNN", None
    )
    resume: bool = setting(
        "continue from OUTPUT/last.pt, if it exists; its words, model, CNN and settings need not "
        "be given again",
        False,
    )
    lstm: str = setting(HELP, "fastlstm", choices=LSTMS)
    cnn: CNNChoice = CNNChoice()
    extraction: Extraction = Extraction()
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least(self, min_count=1)
        if unknown := [name for name in self.model if name not in MODEL_SETTINGS]:
            raise CaptioningError(f"model: expected {', '.join(MODEL_SETTINGS)}, got {unknown[0]}")

    @property
    def splits(self) -> dict[str, Path]:
        """The captions files by split."""
        files = {"train": self.train, "val": self.val, "test": self.test}
        return {split: path for split, path in files.items() if path}

    def config(self, pictures: int, origin: "Origin | None") -> TrainConfig:
        """The given settings; the others are the resumed run's, or suit the number of pictures."""
        known = origin.config if origin else None
        if known is None:
            model = origin.checkpoint.model.config if origin else unsized(self.model)
            batches_of = self.settings.get("batches_of", decoder_class(model).batches_of)
            known = recipe(pictures, bool(self.settings.get("self_critical")), batches_of)
        return from_dict(TrainConfig, asdict(known) | dict(self.settings), "settings")

    def load(self, split: str) -> CaptionDataset:
        """The captions and pictures of a split; says which were skipped."""
        images = getattr(self, f"{split}_images")
        dataset = load_coco(self.splits[split], images, self.extraction.on_error, True)
        say(*dataset.report_skipped())
        return dataset


@dataclass(frozen=True)
class Origin:
    """The captioner that training continues with.

    Args:
        path: its file.
        checkpoint: what is in it.
        config: the settings of the run that is resumed; None if only its captioner is taken.
    """

    path: Path
    checkpoint: Checkpoint
    config: TrainConfig | None = None


def train_captioner(request: TrainingRequest) -> list[dict[str, float]]:
    """Train as requested: writes last.pt, best.pt and vocabulary.json to `request.output`.

    Under torchrun, every process calls this with the same request.

    Returns:
        What happened in each epoch: its loss or reward and, with `val`, the scores.

    Raises:
        CaptioningError: the request contradicts itself, its files, or the captioner that it
            continues with.
    """
    output, lstm = request.output, request.lstm
    with distributed(request.extraction.device) as process, contextlib.ExitStack() as stack:
        if process.is_first:
            stack.enter_context(lock_folder(output, "vocabulary.json"))
        if (output / "last.pt").exists() and not request.resume:
            raise CaptioningError(
                f"{output} holds a captioner already: --resume, or another --output"
            )
        with first_process_first(process):
            checkpoint, config, tables = prepare_training(request, process.is_first)
        table, val = tables["train"], tables.get("val")
        if process.is_first:
            say(introduction(checkpoint, config, len(table.images)))
            say(LEGEND["reward" if config.self_critical else "loss"], SCORES)
        history = train(checkpoint, config, table, val, output, request.resume, process)
        if process.is_first:
            best = output / "best.pt"
            say(summary(history, best))
            if best.exists() or "test" in tables:
                found = load_checkpoint(best, lstm, process.device)
                before = found.model.neighbors  # of the run that is resumed
                found.model.neighbors = None
                if val and len(table.images) < SMALL_SET and not config.no_neighbors:
                    say(add_neighbors(found, table, val))
                if before or found.model.neighbors:
                    found.save(best)
            if "test" in tables:
                freeze(found.model.decoder)
                say(test(found, tables["test"]))
            say(f"next: python -m captioning caption {best} PICTURE --method beam")
    return history


def introduction(checkpoint: Checkpoint, config: TrainConfig, pictures: int) -> str:
    """What is trained on what, in one line."""
    unit = "pictures" if config.self_critical else "captions"
    return (
        f"{pictures:,} pictures, {len(checkpoint.vocabulary):,} words; {config.epochs} epochs, "
        f"batches of {config.batch_size} {unit}, learning rate {config.learning_rate}"
    )


def summary(history: list[dict[str, float]], best: Path) -> str:
    """Which epoch is the best, and where it is."""
    validated = [entry for entry in history if "CIDEr-D" in entry]
    if not validated:
        return f"{best} holds epoch {len(history)}, the last (no --val to choose by)"
    entry = max(validated, key=lambda entry: entry["CIDEr-D"])
    return (
        f"best of {len(history)} epochs: {entry['epoch']:.0f}, CIDEr-D {entry['CIDEr-D']:.3f}, "
        f"BLEU-4 {entry['BLEU-4']:.3f} on --val: {best}"
    )


def add_neighbors(checkpoint: Checkpoint, table: FeatureTable, val: FeatureTable) -> str:
    """Gives a captioner its training pictures, if their captions help its beam search on `val`.

    They weigh what is best for CIDEr-D there.

    Returns:
        One line on what they are worth.
    """
    model, vocabulary = checkpoint.model, checkpoint.vocabulary
    neighbors = Neighbors.of(table, vocabulary)
    device = next(model.parameters()).device
    beams, agreement = [], []
    parts = torch.arange(len(val.images)).split(128)
    for rows in tqdm(parts, "compare with similar training pictures", unit="batch"):
        features = val.read(rows)
        found = decode_batch(model, features.to(device), DecodeConfig("beam", neighbors=0.0))
        beams += found
        agreement += neighbors.agreement(features, found)
    cider = {}
    for weight in NEIGHBOR_WEIGHTS:
        best = [vocabulary.decode(group[0].tokens) for group in rank(beams, agreement, weight)]
        scores = score_captions(dict(zip(val.ids, best, strict=True)), val.references)
        cider[weight] = scores.overall["CIDEr-D"]
    weight = max(cider, key=cider.__getitem__)
    line = f"beam search on --val: CIDEr-D {cider[0]:.3f}"
    if not weight:
        return f"{line}, not higher with the captions of similar training pictures"
    neighbors.weight, model.neighbors = weight, neighbors
    return f"{line}, {cider[weight]:.3f} with the captions of similar training pictures"


def test(checkpoint: Checkpoint, table: FeatureTable) -> str:
    """One line of scores on pictures that had no part in training or validation."""
    parts = []
    for method in ("greedy", "beam"):
        config = DecodeConfig(method)
        written = best_captions(
            checkpoint.model, checkpoint.vocabulary, table.read(), table.ids, config=config
        )
        scores = score_captions(written, table.references).overall
        name = f"beam of {config.beam_size}" if method == "beam" else method
        parts.append(f"{name} CIDEr-D {scores['CIDEr-D']:.3f}, BLEU-4 {scores['BLEU-4']:.3f}")
    return f"test, {len(table.images):,} pictures: {'; '.join(parts)}"


# Preparation ------------------------------------------------------------------------------------


def prepare_training(
    request: TrainingRequest, is_first: bool = True
) -> tuple[Checkpoint, TrainConfig, dict[str, FeatureTable]]:
    """The captioner before training, the settings, and the feature tables by split.

    Args:
        request: what to train.
        is_first: whether this process writes the vocabulary.
    """
    # Errors are found before weights are downloaded and pictures encoded.
    origin = origin_of(request)
    check_settings(request, origin)
    if origin:
        check_same(request, origin)
    choice = replace(request.cnn, pool=None if origin else pool_of(request))
    data = {split: request.load(split) for split in request.splits}
    pictures, captions = len(data["train"].images), data["train"].captions
    config = request.config(pictures, origin)
    vocabulary = vocabulary_of(request, captions, origin)

    cnn = origin.checkpoint.cnn.load() if origin else choice.load()
    folder = features_folder(request, origin)
    tables = {}
    for split, dataset in data.items():
        path = cache_path(folder, request.splits[split])
        cache = extract_features(cnn, dataset.images, path, request.extraction)
        tables[split] = FeatureTable(dataset, cache)
    training = {}
    with contextlib.suppress(ValueError):  # they are on another drive
        training["features"] = os.path.relpath(folder, request.output)  # for --resume
    if origin:
        checkpoint = origin.checkpoint
        checkpoint.model.neighbors = None  # they may be those of another training set
        checkpoint.training = checkpoint.training | training if origin.config else training
        return checkpoint, config, tables
    if is_first:
        vocabulary.save(request.output / "vocabulary.json")
    size = "small" if pictures < SMALL_SET else "large"
    sizes: dict[str, Any] = {"dropout": DROPOUT[size], "image_at": IMAGE_AT[size]}
    sizes |= {**request.model, "grid": cnn.grid}
    torch.manual_seed(config.seed)
    model = Captioner(ModelConfig(cnn.feature_shape[-1], len(vocabulary), **sizes), request.lstm)
    model.set_word_frequencies(map(vocabulary.encode, captions))
    return Checkpoint(model, vocabulary, CNNIdentity.of(cnn), training), config, tables


def origin_of(request: TrainingRequest) -> Origin | None:
    """The run to resume, or the captioner to start from, if any."""
    last = request.output / "last.pt"
    if request.resume and last.exists():
        checkpoint = load_checkpoint(last, request.lstm)
        settings = checkpoint.training.get("config")
        return Origin(last, checkpoint, from_dict(TrainConfig, settings, f"{last}: settings"))
    if request.start:
        return Origin(request.start, load_checkpoint(request.start, request.lstm))
    return None


def check_settings(request: TrainingRequest, origin: Origin | None) -> None:
    """Refuse settings that need a captioner or a validation set when there is none."""
    config = request.config(0, origin)
    if config.self_critical and not origin:
        raise CaptioningError(
            "--self-critical continues with a trained captioner: give --start CHECKPOINT"
        )
    if config.patience and not request.val:
        raise CaptioningError(f"--patience: expected 0 without --val, got {config.patience}")


def check_same(request: TrainingRequest, origin: Origin) -> None:
    """Refuse what differs from the captioner that training continues with."""
    model, cnn = origin.checkpoint.model.config, origin.checkpoint.cnn
    known = {name: getattr(model, name) for name in MODEL_SETTINGS}
    known |= {"cnn": cnn.config.name, "weights": cnn.config.weights, "pool": cnn.config.pool}
    known["view"] = "whole" if cnn.transform.squash else "crop"
    if request.cnn.weights == "DEFAULT":  # which stands for a name
        del known["weights"]
    if origin.config:
        known |= {n: v for n, v in asdict(origin.config).items() if n not in MAY_CHANGE}
    given = asdict(request.cnn) | dict(request.model) | dict(request.settings)
    for name, value in known.items():
        if given.get(name, None) not in (None, value):
            raise CaptioningError(
                f"{option(name)}: expected {value}, as in {origin.path}, got {given[name]}; "
                "leave it out"
            )


def unsized(model: Mapping[str, Any]) -> ModelConfig:
    """The given sizes; those that the data will decide are 1."""
    return ModelConfig(feature_size=1, vocab_size=1, grid=1, **model)


def pool_of(request: TrainingRequest) -> str:
    """The pooling of a new captioner's CNN; also checks its decoder and sizes."""
    config = unsized(request.model)
    pools = decoder_class(config).pools
    pool = request.cnn.pool or pools[0]
    if pool not in pools:
        raise CaptioningError(
            f"--pool: expected {' or '.join(pools)} with --decoder {config.decoder}, got {pool}"
        )
    return pool


def vocabulary_of(
    request: TrainingRequest, captions: Iterable[str], origin: Origin | None
) -> Vocabulary:
    """The words of the captioner to continue with, of a file, or of the captions."""
    known = origin.checkpoint.vocabulary if origin else None
    if known and not request.vocab and request.min_count is None:
        return known
    if request.vocab:
        source, vocabulary = "--vocab", Vocabulary.load(request.vocab)
    else:
        count = MIN_COUNT if request.min_count is None else request.min_count
        source, vocabulary = f"--min-count {count}", Vocabulary.build(captions, count)
    if origin and known and vocabulary.words != known.words:
        raise CaptioningError(
            f"{source}: expected the {len(known)} words of {origin.path}, got {len(vocabulary)} "
            "words that are not the same; leave it out"
        )
    return vocabulary


def features_folder(request: TrainingRequest, origin: Origin | None) -> Path:
    """Where features are kept: as given, as in the resumed run, or beside the captioner."""
    if request.features:
        return request.features
    if origin and origin.config and "features" in origin.checkpoint.training:
        return request.output / origin.checkpoint.training["features"]
    return (request.start.parent if request.start else request.output) / "features"
