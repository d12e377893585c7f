"""Trains two epochs and writes the losses. test_train.py runs it in one or several processes."""

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
from captioning.training.processes import distributed
from captioning.training.setup import Setup

out, root, features = map(Path, sys.argv[1:4])
stage = sys.argv[4]
annotations = root / "annotations" / "captions_train.json"
dataset = load_coco(annotations, root / "train")
cnn = load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
table = FeatureTable(dataset, extract_features(cnn, dataset.images, features, annotations))
vocabulary = Vocabulary.build(c for image in dataset.images for c in image.captions)
torch.manual_seed(0)
model = Captioner(ModelConfig(240, len(vocabulary), 16, 24))
checkpoint = Checkpoint([model], vocabulary, cnn.config)
config = TrainConfig(
    epochs=2, batch_size=48, warmup=2, clip_norm=0.0, consensus=0.5, autocast="none"
)
if stage == "reward":
    config = replace(config, self_critical=3)
with distributed("cpu") as process:
    history = train(Setup(checkpoint, config, {"train": table}), out.parent / out.stem, process)
if not out.exists():
    # Adam ignores the scale of a gradient, so the gradient is compared separately.
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    out.write_text(json.dumps({stage: [e[stage] for e in history], "gradient": gradient}))
