"""The choice of the search: beams, length penalty and weight of similar pictures, by CIDEr-D on
validation pictures."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch

from captioning.cnn.features import FeatureTable
from captioning.console import progress
from captioning.data.vocabulary import Vocabulary
from captioning.model.checkpoint import Checkpoint
from captioning.model.cider import CiderD
from captioning.model.neighbors import Neighbors
from captioning.search.generate import decode_batch
from captioning.settings import DecodeConfig

# What is tried; the first of the best is taken.
BEAM_SIZES, LENGTH_PENALTIES = (5, 20), (0.7, 0.5, 0.9, 1.1)
NEIGHBOR_WEIGHTS = (0, 1, 2, 4, 6, 8, 12, 16)
MAX_TRIED = 2000  # pictures
BATCH = 64


class _Tried(NamedTuple):
    """A caption that was found: its score, its length, its agreement, and its CIDEr-D."""

    score: float
    length: int
    agreement: float
    cider: float


def choose_search(
    checkpoint: Checkpoint, val: FeatureTable, neighbors: Neighbors | None = None
) -> str:
    """Gives a captioner the beam search that has the best CIDEr-D on `val`; says what it has.

    If the captions of the training pictures in `neighbors` help to rank, it keeps them.
    """
    weights = NEIGHBOR_WEIGHTS if neighbors else (0,)
    total: defaultdict[tuple[int, float, float], float] = defaultdict(float)
    count = min(len(val.images), MAX_TRIED)
    with progress(None, "choose the search", total=len(BEAM_SIZES) * count, unit="img") as bar:
        for size in BEAM_SIZES:
            for group in _collect(checkpoint, val, neighbors, size):
                for penalty, weight in product(LENGTH_PENALTIES, weights):
                    total[size, penalty, weight] += _best(group, penalty, weight).cider
                bar.update()
    best = max(total, key=total.__getitem__)
    checkpoint.search = DecodeConfig("beam", *best)
    said = f"search chosen on --val: {best[0]} beams, length penalty {best[1]}"
    if neighbors and best[2]:
        checkpoint.neighbors = neighbors
        said += ", captions of similar training pictures"
    return f"{said}: CIDEr-D {total[best] / count:.3f}"


def _collect(
    checkpoint: Checkpoint, val: FeatureTable, neighbors: Neighbors | None, size: int
) -> Iterator[list[_Tried]]:
    """What a search of so many beams finds for each picture."""
    words = checkpoint.vocabulary
    # All words count, as they do in `score_captions`, also those that the captioner does not know.
    every = Vocabulary.build(caption for image in val.images for caption in image.captions)
    tokens = lambda caption: every.encode(caption)[1:-1]
    reward = CiderD([[*map(tokens, image.captions)] for image in val.images])
    device = next(checkpoint.model.parameters()).device
    config = DecodeConfig("beam", size, LENGTH_PENALTIES[0])
    for pictures in torch.arange(len(val.images))[:MAX_TRIED].split(BATCH):
        features = val.read(pictures)
        groups = decode_batch(checkpoint, features.to(device), config)
        found = [[h.tokens for h in group] for group in groups]
        none = [[0.0] * len(group) for group in groups]
        agreed = neighbors.agreement(features, found) if neighbors else none
        for picture, group, row in zip(pictures.tolist(), groups, agreed, strict=True):
            scores = reward.scores(picture, [tokens(words.decode(h.tokens)) for h in group])
            yield [
                _Tried(h.score, len(h.tokens), a, cider)
                for h, a, cider in zip(group, row, scores, strict=True)
            ]


def _best(group: list[_Tried], penalty: float, weight: float) -> _Tried:
    """The caption that a length penalty and a weight of the agreement put first."""
    more = penalty - LENGTH_PENALTIES[0]  # than the scores have
    return max(group, key=lambda one: one.score / one.length**more + weight * one.agreement)
