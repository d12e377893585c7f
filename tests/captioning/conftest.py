"""Fixtures: a tiny embedded data set, its features, and captioners with random weights."""

from types import SimpleNamespace

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
def data(scenes_root, tmp_path_factory):
    """The feature tables `train` and `val`, the vocabulary, the frozen CNN and its config."""
    folder = tmp_path_factory.mktemp("features")
    cnn = load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
    tables = {}
    for split in ("train", "val"):
        annotations = scenes_root / "annotations" / f"captions_{split}.json"
        dataset = load_coco(annotations, scenes_root / split)
        cache = extract_features(cnn, dataset.images, folder, annotations)
        tables[split] = FeatureTable(dataset, cache)
    captions = [c for image in tables["train"].images for c in image.captions]
    return SimpleNamespace(
        **tables, vocabulary=Vocabulary.build(captions), cnn=cnn, identity=cnn.config
    )


@pytest.fixture(scope="module")
def grid_cnn():
    """A frozen CNN that pools to a grid, which the attention decoder needs."""
    return load_cnn(CNNConfig("scenes_cnn", pool="grid"))


@pytest.fixture(scope="module")
def attentive(data, grid_cnn):
    """A captioner with the attention decoder and random weights."""
    torch.manual_seed(0)
    features, words = grid_cnn.feature_shape[-1], len(data.vocabulary)
    sizes = ModelConfig(features, words, 16, 24, decoder="attention", grid=grid_cnn.grid)
    return Checkpoint([Captioner(sizes).eval()], data.vocabulary, grid_cnn.config)


@pytest.fixture
def new_checkpoint(data):
    """A function that makes captioners with the same initial weights for the same sizes."""

    def make(lstm="fastlstm", **sizes):
        torch.manual_seed(0)
        sizes = {"feature_size": 240, "embed_size": 16, "hidden_size": 24} | sizes
        config = ModelConfig(vocab_size=len(data.vocabulary), **sizes)
        return Checkpoint([Captioner(config, lstm).eval()], data.vocabulary, data.identity)

    return make
