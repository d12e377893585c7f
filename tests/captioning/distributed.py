"""Trains both stages for two epochs each. test_train.py runs this program in two processes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from captioning.cnn.features import FeatureTable, extract_features
from captioning.cnn.pretrained import CNNConfig, load_cnn
from captioning.data.coco import load_coco
from captioning.data.vocabulary import Vocabulary
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.settings import ModelConfig, TrainConfig
from captioning.training.loop import train
from captioning.training.processes import SINGLE, distributed
from captioning.training.setup import Setup

CONFIG = TrainConfig(2, 48, warmup=2, clip_norm=0.0, consensus=0.5, autocast="none")


def train_by(metric, root, features, output, process=SINGLE):
    """Returns the metric, "loss" or "reward", of each epoch, and the norm of the last gradient."""
    annotations = root / "annotations" / "captions_train.json"
    cnn = load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
    dataset = load_coco(annotations, root / "train")
    table = FeatureTable(dataset, extract_features(cnn, dataset.images, features, annotations))
    vocabulary = Vocabulary.build(c for image in dataset.images for c in image.captions)
    torch.manual_seed(0)
    model = Captioner(ModelConfig(240, len(vocabulary), 16, 24))
    config = replace(CONFIG, self_critical=3 if metric == "reward" else 0)
    setup = Setup(Checkpoint([model], vocabulary, cnn.config), config, {"train": table})
    history = train(setup, output / metric, process)
    # Adam ignores the scale of a gradient, so the norm is compared separately.
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    return [entry[metric] for entry in history], gradient


if __name__ == "__main__":
    *paths, out = map(Path, sys.argv[1:])
    with distributed("cpu") as process:
        results = {metric: train_by(metric, *paths, process) for metric in ("loss", "reward")}
        if process.rank == 0:
            out.write_text(json.dumps(results))
