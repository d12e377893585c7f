"""Prepares a run of training: its files, CNN, vocabulary, sizes and settings."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from captioning.cnn.features import FeatureTable, extract_features
from captioning.cnn.pretrained import CNNConfig, load_cnn
from captioning.console import say
from captioning.data.coco import CaptionDataset, load_coco
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError, list_reasons
from captioning.model.captioner import Captioner, decoder_class
from captioning.model.checkpoint import Checkpoint, load_checkpoint
from captioning.model.decoder import Decoder
from captioning.settings import ModelConfig, TrainConfig, preset
from captioning.training.request import MODEL_FIELDS, TRAIN_FIELDS, TrainingRequest, select

MAY_CHANGE = {"epochs", "no_neighbors"}  # settings that may change when a run resumes


@dataclass
class Setup:
    """All that a run needs to begin."""

    checkpoint: Checkpoint  # the captioner to train
    config: TrainConfig
    tables: dict[str, FeatureTable]  # by split: "train", and "val" and "test" if they were given
    resumes: bool = False  # whether the run continues an earlier one


def set_up(request: TrainingRequest, device: str = "cpu") -> Setup:
    """Reads the files of a request, encodes the pictures, and makes or reads the captioner."""
    last = request.output / "last.pt"
    resumes = request.resume and last.exists()
    path = last if resumes else request.start
    previous = load_checkpoint(path, request.lstm) if path else None
    # Loading the CNN may download weights, and encoding the pictures takes long. So what can
    # be checked without them is checked before `load_cnn`.
    decoder_config = ModelConfig(1, 1, grid=1, **select({"decoder"}, request.settings))
    decoder = decoder_class(previous.model.config if previous else decoder_config)
    decoder(decoder_config, request.lstm)  # refuses an LSTM that the decoder cannot use
    cnn_config = previous.cnn if previous else _new_cnn(request, decoder)
    if previous and path:
        _check_same(request, previous, resumes, path)
    data = {split: _load(request, split) for split in request.splits}
    captions = [caption for image in data["train"].images for caption in image.captions]
    digest = _digest(data["train"])
    if resumes and previous and previous.training.get("captions", digest) != digest:
        raise CaptioningError(f"train: expected the captions of {last}, got {request.train}")
    given = dict(request.settings)
    if resumes and previous:
        settings = previous.training["config"] | select(MAY_CHANGE, given)
    else:
        batches_of = given.get("batches_of", decoder.batches_of)
        self_critical = bool(given.get("self_critical"))
        settings = preset(len(data["train"].images), batches_of, self_critical) | given
    config = TrainConfig(**select(TRAIN_FIELDS, settings))
    vocabulary = previous.vocabulary if previous else Vocabulary.build(captions, config.min_count)

    cnn = load_cnn(cnn_config).to(device)
    old_dir = Path(previous.training.get("features", "nowhere") if previous else "nowhere")
    folder = request.features or (old_dir if old_dir.is_dir() else request.output / "features")
    workers = 4 * device.startswith("cuda") if request.workers is None else request.workers
    tables = {}
    for split, (annotations, _) in request.splits.items():
        images = data[split].images
        cache = extract_features(cnn, images, folder, annotations, request.on_error, workers)
        tables[split] = FeatureTable(data[split], cache)
    if previous:
        checkpoint = replace(previous, neighbors=None)  # they are of an earlier run
        checkpoint.training = previous.training if resumes else {}
    else:
        torch.manual_seed(config.seed)
        sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "grid": cnn.grid}
        model_config = ModelConfig(cnn.feature_shape[-1], **select(MODEL_FIELDS, settings), **sizes)
        model = Captioner(model_config, request.lstm)
        model.set_word_frequencies(map(vocabulary.encode, captions))
        checkpoint = Checkpoint([model], vocabulary, cnn.config)
    checkpoint.training |= {"features": os.path.abspath(folder), "captions": digest}
    checkpoint.training.setdefault("start", request.start and os.path.abspath(request.start))
    return Setup(checkpoint, config, tables, resumes)


def _load(request: TrainingRequest, split: str) -> CaptionDataset:
    """Reads the captions of a split, and prints what was skipped."""
    dataset = load_coco(*request.splits[split], request.on_error, need_captions=True)
    say(*(f"skipped {line}" for line in list_reasons(dataset.skipped)))
    return dataset


def _digest(dataset: CaptionDataset) -> str:
    """Returns a hash of the ids and captions. A run may resume only with captions of equal hash."""
    rows = [(image.id, image.captions) for image in dataset.images]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _new_cnn(request: TrainingRequest, decoder: type[Decoder]) -> CNNConfig:
    """Returns the CNN of a new captioner, with a pooling that its decoder can read."""
    pool = request.settings.get("pool", decoder.pools[0])
    if pool not in decoder.pools:
        expected = " or ".join(decoder.pools)
        raise CaptioningError(f"pool: expected {expected} with this decoder, got {pool}")
    weights = request.cnn_weights or "DEFAULT"
    if os.path.isfile(weights):  # an absolute path is valid in every working directory
        weights = os.path.abspath(weights)
    return CNNConfig(request.cnn or CNNConfig.name, weights, pool)


def _check_same(request: TrainingRequest, previous: Checkpoint, resumes: bool, path: Path) -> None:
    """Refuses options that contradict the captioner in `path`, which training continues with."""
    cnn = previous.cnn
    known = {"cnn": cnn.name, "cnn_weights": cnn.weights, "pool": cnn.pool}
    known |= asdict(previous.model.config)
    if resumes:
        known |= {k: v for k, v in previous.training["config"].items() if k not in MAY_CHANGE}
        known["start"] = previous.training.get("start") or "no captioner"
    start = request.start and os.path.abspath(request.start)
    given = {"cnn": request.cnn, "cnn_weights": request.cnn_weights, "start": start}
    given |= request.settings
    for name, value in given.items():
        if value is not None and name in known and value != known[name]:
            expected = f"expected {known[name]}, as in {path}"
            raise CaptioningError(f"{name}: {expected}, got {value}; leave it out")
