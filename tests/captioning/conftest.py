"""A tiny embedded data set, its features, and a captioner of random weights."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from captioning.cnn.features import FeatureTable, extract_features
from captioning.cnn.frozen import CNNConfig, load_cnn
from captioning.config import ModelConfig
from captioning.data.datasets import load_coco
from captioning.data.vocabulary import Vocabulary
from captioning.demo import scenes
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint, CNNIdentity


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also where pytest runs in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_files():
    """A disk that is full: no file can be made longer than so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": 96, "val": 12, "unseen": 12}
    return scenes.generate(tmp_path_factory.mktemp("scenes"), splits)


@pytest.fixture(scope="session")
def data(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Feature tables train and val, the vocabulary and the frozen CNN."""
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
        **tables, vocabulary=Vocabulary.build(captions), cnn=cnn, identity=CNNIdentity.of(cnn)
    )


@pytest.fixture(scope="module")
def grid_cnn():
    """The frozen CNN of a captioner that attends."""
    return load_cnn(CNNConfig("scenes_cnn", pool="grid"))


@pytest.fixture(scope="module")
def attentive(data, grid_cnn) -> Checkpoint:
    """A captioner that attends, of random weights."""
    torch.manual_seed(0)
    features, words = grid_cnn.feature_shape[-1], len(data.vocabulary)
    sizes = ModelConfig(features, words, 16, 24, decoder="attention", grid=grid_cnn.grid)
    return Checkpoint(Captioner(sizes).eval(), data.vocabulary, CNNIdentity.of(grid_cnn), {})


@pytest.fixture
def new_checkpoint(data: SimpleNamespace):
    """Makes captioners with the same initial weights."""

    def make(lstm: str = "fastlstm", **sizes) -> Checkpoint:
        torch.manual_seed(0)
        sizes = {"feature_size": 240, "embed_size": 16, "hidden_size": 24} | sizes
        config = ModelConfig(vocab_size=len(data.vocabulary), **sizes)
        return Checkpoint(Captioner(config, lstm).eval(), data.vocabulary, data.identity, {})

    return make
