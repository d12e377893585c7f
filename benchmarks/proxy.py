"""A stand-in for a small set of captioned photographs, to compare recipes of training on.

It is not a data set of photographs and says nothing about scores on one. What it shares with
Flickr8k: five captions a picture that agree only in part, words with a long tail, 1280 non-negative
features from which rare concepts are hard to read, and a model that over-fits. The noise is set so
that the tutorial's recipe reaches a CIDEr-D of about 0.4::

    python benchmarks/proxy.py runs/a dropout=0.3 schedule=constant label_smoothing=0 ema=0
    python benchmarks/proxy.py runs/b --start runs/a/best.pt learning_rate=0.0002
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from captioning.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
from captioning.cnn import CNNConfig
from captioning.config import DROPOUT, SELF_CRITICAL, SMALL
from captioning.datasets import CaptionDataset, CaptionedImage
from captioning.features import FeatureCache, FeatureTable
from captioning.generate import DecodeConfig, best_captions
from captioning.images import Transform
from captioning.metrics import score_captions
from captioning.model import Captioner, ModelConfig
from captioning.train import train
from captioning.vocabulary import Vocabulary

KINDS = {"subject": 160, "attribute": 120, "action": 200, "object": 300, "place": 150}
SYNONYMS = (0.6, 0.25, 0.1, 0.05)  # how often each word of a concept is taken
TOPICS, NUISANCE = 40, 300
DETAILS = 500  # words that no feature tells
TEMPLATES = (
    "a {attribute} {subject} {action} {place}",
    "a {subject} is {action} a {object} {place}",
    "{place} a {subject} {action} with a {object}",
    "two {subject} are {action} near a {attribute} {object}",
    "the {attribute} {subject} with a {object} is {action}",
    "a {subject} {action} a {object}",
    "a {attribute} {subject} and a {subject2} {action} {place}",
    "there is a {subject} that is {action} {place} by the {object}",
    "{subject} {place}",
)
OPENINGS = ("wearing a", "and", "while", "with some", "near")


def _zipf(count: int, power: float = 1.0) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1) ** power
    return weights / weights.sum()


class World:
    """Which concepts occur together, what they are called, and how the features show them."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.noise = noise
        # In each topic another part of the concepts is likely.
        self.topics = {
            kind: np.stack([_tilted(count, rng) for _ in range(TOPICS)])
            for kind, count in KINDS.items()
        }
        self.offset = dict(zip(KINDS, np.cumsum([0, *KINDS.values()]), strict=False))
        concepts = sum(KINDS.values())
        self.words = {
            kind: [
                [f"{kind[:2]}{c}{'abcd'[s]}" for s in range(1 + rng.integers(len(SYNONYMS)))]
                for c in range(count)
            ]
            for kind, count in KINDS.items()
        }
        self.details = _zipf(DETAILS)
        self.mix = rng.normal(size=(concepts + NUISANCE, 800)) / np.sqrt(8)
        self.project = rng.normal(size=(800, 1280)) / np.sqrt(800 / 2)

    def picture(self, rng: np.random.Generator) -> tuple[dict[str, int], np.ndarray]:
        """The concepts of a picture, and its features [1280]."""
        topic = rng.choice(TOPICS, p=_zipf(TOPICS, 0.7))
        facts = {
            kind: int(rng.choice(len(table[topic]), p=table[topic]))
            for kind, table in self.topics.items()
        }
        table = self.topics["subject"][topic]
        facts["subject2"] = int(rng.choice(len(table), p=table))
        latent = np.zeros(self.mix.shape[0])
        for kind, concept in facts.items():
            latent[self.offset[kind.rstrip("2")] + concept] += rng.uniform(0.4, 1.6)
        latent[-NUISANCE:] = rng.normal(size=NUISANCE) * self.noise * 0.1
        hidden = np.maximum(latent @ self.mix, 0)
        features = hidden @ self.project + rng.normal(size=1280) * self.noise * 0.5
        return facts, np.maximum(features, 0).astype(np.float32)

    def caption(self, facts: dict[str, int], rng: np.random.Generator) -> str:
        words = {}
        for kind, concept in facts.items():
            names = self.words[kind.rstrip("2")][concept]
            weights = np.array(SYNONYMS[: len(names)])
            words[kind] = names[rng.choice(len(names), p=weights / weights.sum())]
        words["place"] = rng.choice(["in the ", "on a ", "at the "]) + words["place"]
        caption = str(rng.choice(TEMPLATES)).format(**words)
        for opening in rng.choice(OPENINGS, rng.integers(3), replace=False):
            caption += f" {opening} de{rng.choice(DETAILS, p=self.details)}"
        return caption


def _tilted(count: int, rng: np.random.Generator) -> np.ndarray:
    weights = _zipf(count) * rng.gamma(0.3, size=count)
    return weights / weights.sum()


def make_tables(folder: Path, sizes: dict[str, int], noise: float = 0.7) -> dict[str, FeatureTable]:
    """Feature tables by split, written below `folder`."""
    world, tables = World(noise), {}
    for number, (split, count) in enumerate(sizes.items(), 1):
        rng = np.random.default_rng(number)
        path = folder / f"{split}.st"
        cache = FeatureCache.create(path, range(count), (1280,), "float32", {})
        images = []
        for i in range(count):
            facts, cache.features[i] = world.picture(rng)
            captions = [world.caption(facts, rng) for _ in range(5)]
            images.append(CaptionedImage(i, Path(f"{i}.jpg"), captions))
        cache.state[:] = 1
        tables[split] = FeatureTable(CaptionDataset(images), cache)
    return tables


def first_captioner(table: FeatureTable, **sizes: float) -> Checkpoint:
    captions = [c for i in table.images for c in i.captions]
    vocabulary = Vocabulary.build(captions, 4)
    torch.manual_seed(0)
    model = Captioner(ModelConfig(1280, len(vocabulary), **sizes))  # type: ignore[arg-type]
    model.set_word_frequencies(map(vocabulary.encode, captions))
    no_cnn = CNNIdentity(CNNConfig("proxy"), Transform(8, 8, (0.0,) * 3, (1.0,) * 3), "")
    return Checkpoint(model, vocabulary, no_cnn, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder")
    parser.add_argument("settings", nargs="*", help="of TrainConfig or ModelConfig: epochs=12")
    parser.add_argument("--start", type=Path, help="checkpoint to train on, self-critically")
    parser.add_argument("--pictures", type=int, default=2000)
    args = parser.parse_intermixed_args()
    given = dict(setting.split("=") for setting in args.settings)
    values = {k: v if v.isalpha() else json.loads(v) for k, v in given.items()}
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    sizes = {"dropout": DROPOUT["small"]} | {k: v for k, v in values.items() if k in names}
    tables = make_tables(args.output, {"train": args.pictures, "val": 500})
    if args.start:
        checkpoint, recipe = load_checkpoint(args.start), SELF_CRITICAL
    else:
        checkpoint, recipe = first_captioner(tables["train"], **sizes), SMALL
    config = dataclasses.replace(recipe, **{k: v for k, v in values.items() if k not in names})
    train(checkpoint, config, tables["train"], tables["val"], args.output)
    best = load_checkpoint(args.output / "best.pt")
    features, val = tables["val"].read(), tables["val"]
    for method in ("greedy", "beam"):
        written = best_captions(
            best.model, best.vocabulary, features, val.ids, config=DecodeConfig(method)
        )
        print(f"{method}: {score_captions(written, val.references)}")


if __name__ == "__main__":
    main()
