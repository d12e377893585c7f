"""Fixtures: a tiny embedded data set, its features, and captioners with random weights."""

from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import pytest
import torch

from captioning.cnn.features import FeatureTable, extract_features
from captioning.cnn.pretrained import CNNConfig, load_cnn
from captioning.data import scenes
from captioning.data.coco import load_coco
from captioning.data.vocabulary import Vocabulary
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.settings import ModelConfig


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory):
    splits = {"train": 96, "val": 12, "unseen": 12}
    return scenes.generate(tmp_path_factory.mktemp("scenes"), splits)


@pytest.fixture(scope="session")
def captions_of(scenes_root):
    return lambda split: scenes_root / "annotations" / f"captions_{split}.json"


@pytest.fixture(scope="session")
def data(scenes_root, captions_of, tmp_path_factory):
    folder, cnn = tmp_path_factory.mktemp("features"), load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
    tables = {}
    for split in ("train", "val"):
        dataset = load_coco(captions_of(split), scenes_root / split)
        cache = extract_features(cnn, dataset.images, folder, captions_of(split))
        tables[split] = FeatureTable(dataset, cache)
    vocabulary = Vocabulary.build(c for image in tables["train"].images for c in image.captions)
    return SimpleNamespace(**tables, vocabulary=vocabulary, cnn=cnn, cnn_config=cnn.config)


@pytest.fixture(scope="module")
def grid_cnn():
    """A frozen CNN that pools to a grid, which the attention decoder needs."""
    return load_cnn(CNNConfig("scenes_cnn", pool="grid"))


@pytest.fixture(scope="module")
def attention_checkpoint(data, grid_cnn):
    torch.manual_seed(0)
    features, words = grid_cnn.feature_shape[-1], len(data.vocabulary)
    sizes = ModelConfig(features, words, 16, 24, decoder="attention", grid=grid_cnn.grid)
    return Checkpoint([Captioner(sizes).eval()], data.vocabulary, grid_cnn.config)


@pytest.fixture
def interrupted(monkeypatch):
    """A function that calls `train` and interrupts it in step number `step`, like Ctrl-C."""

    def call(trainer, step, train):
        effects = [DEFAULT] * (step - 1) + [KeyboardInterrupt]
        train_step = Mock(wraps=trainer.train_step, side_effect=effects)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "train_step", lambda *args: train_step(*args))  # binds self
            pytest.raises(KeyboardInterrupt, train)

    return call


@pytest.fixture
def new_checkpoint(data):
    """A function that makes a checkpoint of one captioner. Equal sizes give equal weights."""

    def make(lstm="fastlstm", **sizes):
        torch.manual_seed(0)
        sizes = {"feature_size": 240, "embed_size": 16, "hidden_size": 24} | sizes
        config = ModelConfig(vocab_size=len(data.vocabulary), **sizes)
        return Checkpoint([Captioner(config, lstm).eval()], data.vocabulary, data.cnn_config)

    return make
