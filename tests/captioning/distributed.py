"""Trains two epochs and writes the losses; run alone or by torchrun from test_train.py."""

import json
import sys
from pathlib import Path

import torch

from captioning.checkpoint import Checkpoint, CNNIdentity
from captioning.cnn import CNNConfig, load_cnn
from captioning.datasets import load_coco
from captioning.features import FeatureCache
from captioning.model import Captioner, ModelConfig
from captioning.train import FeatureTable, TrainConfig, train
from captioning.vocabulary import Vocabulary

root, cache, out = map(Path, sys.argv[1:])
dataset = load_coco(root / "annotations" / "captions_train.json", root / "train")
table = FeatureTable(dataset, FeatureCache(cache))
vocabulary = Vocabulary.build(dataset.captions)
torch.manual_seed(0)
model = Captioner(ModelConfig(240, len(vocabulary), 16, 24))
identity = CNNIdentity.of(load_cnn(CNNConfig("scenes_cnn", pool="2x2")))
checkpoint = Checkpoint(model, vocabulary, identity, {})
config = TrainConfig(epochs=2, batch_size=48, warmup=2, clip_norm=0.0)
history = train(checkpoint, config, table, None, out.parent / out.stem, progress=False)
if not out.exists():
    # Adam does not see the scale of a gradient, so it is compared on its own.
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    out.write_text(json.dumps({"losses": [e["loss"] for e in history], "gradient": gradient}))
