"""Prepares a training as requested: its files, CNN, words, sizes and settings."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from captioning.cnn import FeatureTable, extract_features
from captioning.config import TrainConfig, from_dict, option, suited
from captioning.data import Vocabulary
from captioning.errors import CaptioningError
from captioning.model import (
    Captioner,
    Checkpoint,
    CNNIdentity,
    decoder_class,
    load_checkpoint,
    model_config,
)
from captioning.training.request import MIN_COUNT, Origin, TrainingRequest

# Settings that may differ from those of the run that is resumed.
MAY_CHANGE = {"epochs", "no_neighbors"}


def prepare_training(
    request: TrainingRequest,
) -> tuple[Checkpoint, TrainConfig, dict[str, FeatureTable]]:
    """The captioner before training, the settings, and the feature tables by split."""
    # Errors are found before weights are downloaded and pictures encoded.
    origin = origin_of(request)
    request.config(0, origin)
    if origin:
        check_same(request, origin)
    choice = replace(request.cnn, pool=None if origin else pool_of(request))
    data = {split: request.load(split) for split in request.splits}
    pictures = len(data["train"].images)
    captions = [caption for image in data["train"].images for caption in image.captions]
    config = request.config(pictures, origin)
    vocabulary = vocabulary_of(request, captions, origin)

    cnn = origin.checkpoint.cnn.load() if origin else choice.load()
    folder = features_folder(request, origin)
    tables = {}
    for split, dataset in data.items():
        annotations = request.splits[split]
        cache = extract_features(cnn, dataset.images, folder, annotations, request.extraction)
        tables[split] = FeatureTable(dataset, cache)
    training = {}
    with contextlib.suppress(ValueError):  # they are on another drive
        training["features"] = os.path.relpath(folder, request.output)  # for --resume
    if origin:
        checkpoint = origin.checkpoint
        checkpoint.model.neighbors = None  # they may be those of another training set
        checkpoint.training = checkpoint.training | training if origin.config else training
        return checkpoint, config, tables
    sizes = request.sizes(cnn.feature_shape[-1], len(vocabulary), cnn.grid)
    chosen = {k: v for k, v in suited(type(sizes), pictures).items() if k not in request.model}
    torch.manual_seed(config.seed)
    model = Captioner(replace(sizes, **chosen), request.lstm)
    model.set_word_frequencies(map(vocabulary.encode, captions))
    return Checkpoint(model, vocabulary, CNNIdentity.of(cnn), training), config, tables


def origin_of(request: TrainingRequest) -> Origin | None:
    """The run to resume, or the captioner to start from, if any."""
    last = request.output / "last.pt"
    if request.resume and last.exists():
        checkpoint = load_checkpoint(last, request.lstm)
        if lacking := {"trainer", "history"} - checkpoint.training.keys():
            raise CaptioningError(f"{last}: expected a run to resume, got none: no {lacking.pop()}")
        saved = from_dict(TrainConfig, checkpoint.training.get("config"), f"{last}: settings")
        return Origin(last, checkpoint, saved)
    if request.start:
        return Origin(request.start, load_checkpoint(request.start, request.lstm))
    return None


def check_same(request: TrainingRequest, origin: Origin) -> None:
    """Refuse what differs from the captioner that training continues with."""
    model, cnn = origin.checkpoint.model.config, origin.checkpoint.cnn
    known = asdict(model)
    model_config({**known, **request.model, "decoder": model.decoder})  # finds unknown names
    known |= {"cnn": cnn.config.name, "weights": cnn.config.weights, "pool": cnn.config.pool}
    if request.cnn.weights == "DEFAULT":  # which stands for a name
        del known["weights"]
    if origin.config:
        known |= {n: v for n, v in asdict(origin.config).items() if n not in MAY_CHANGE}
    given = asdict(request.cnn) | dict(request.model) | dict(request.settings)
    for name, value in known.items():
        if given.get(name) not in (None, value):
            raise CaptioningError(
                f"{option(name)}: expected {value}, as in {origin.path}, got {given[name]}; "
                "leave it out"
            )


def pool_of(request: TrainingRequest) -> str:
    """The pooling of a new captioner's CNN; also checks its decoder and sizes."""
    config = request.sizes()
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
    """The words of the captioner to continue with, or of the captions."""
    if origin and request.min_count is None:
        return origin.checkpoint.vocabulary
    count = MIN_COUNT if request.min_count is None else request.min_count
    vocabulary = Vocabulary.build(captions, count)
    if origin and vocabulary.words != (known := origin.checkpoint.vocabulary).words:
        raise CaptioningError(
            f"--min-count {count}: expected the {len(known)} words of {origin.path}, got "
            f"{len(vocabulary)} words that are not the same; leave it out"
        )
    return vocabulary


def features_folder(request: TrainingRequest, origin: Origin | None) -> Path:
    """Where features are kept: as given, as in the resumed run, or beside the captioner."""
    if request.features:
        return request.features
    if origin and origin.config and "features" in origin.checkpoint.training:
        return request.output / origin.checkpoint.training["features"]
    return (request.start.parent if request.start else request.output) / "features"
