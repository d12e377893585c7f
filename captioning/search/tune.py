"""Chooses the beam search of a captioner by CIDEr-D on validation pictures.

The choice is the number of beams, the length penalty, and the weight of the agreement with the
captions of similar training pictures.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch

from captioning.cnn.features import FeatureTable
from captioning.console import progress
from captioning.data.vocabulary import Vocabulary
from captioning.model.checkpoint import Checkpoint
from captioning.model.cider import CiderD
from captioning.model.neighbors import Neighbors
from captioning.search.generate import BATCH, decode_batch
from captioning.settings import DecodeConfig

# The values that are tried. If several combinations are equally good, the first is chosen.
BEAM_SIZES, LENGTH_PENALTIES = (5, 20), (0.7, 0.5, 0.9, 1.1)
NEIGHBOR_WEIGHTS = (0, 1, 2, 4, 6, 8, 12, 16)
MAX_PICTURES = 2000  # validation pictures that are used


def choose_search(
    checkpoint: Checkpoint, val: FeatureTable, neighbors: Neighbors | None = None
) -> str:
    """Sets `checkpoint.search` to the beam search with the best CIDEr-D on `val`.

    If `neighbors` (the captions of similar training pictures) improve CIDEr-D, it also sets
    `checkpoint.neighbors`. Returns a line for the user about the choice.
    """
    weights = NEIGHBOR_WEIGHTS if neighbors else (0,)
    cider_sums: defaultdict[tuple[int, float, float], float] = defaultdict(float)
    count = min(len(val.images), MAX_PICTURES)
    with progress(None, "choose the search", total=len(BEAM_SIZES) * count, unit="img") as bar:
        for size in BEAM_SIZES:
            for scores, lengths, agreement, ciders in _candidates(checkpoint, val, neighbors, size):
                for penalty, weight in product(LENGTH_PENALTIES, weights):
                    # `scores` are already divided by length ** LENGTH_PENALTIES[0].
                    final = scores / lengths ** (penalty - LENGTH_PENALTIES[0]) + weight * agreement
                    cider_sums[size, penalty, weight] += ciders[final.argmax()]
                bar.update()
    best = beams, length_penalty, neighbor_weight = max(cider_sums, key=cider_sums.__getitem__)
    checkpoint.search = DecodeConfig("beam", *best)
    message = f"search chosen on --val: {beams} beams, length penalty {length_penalty}"
    if neighbors and neighbor_weight:
        checkpoint.neighbors = neighbors
        message += ", captions of similar training pictures"
    return f"{message}: CIDEr-D {cider_sums[best] / count:.3f}"


def _candidates(
    checkpoint: Checkpoint, val: FeatureTable, neighbors: Neighbors | None, size: int
) -> Iterator[list[np.ndarray]]:
    """Yields for each picture four arrays [captions] about the captions that `size` beams find.

    They are the scores with the length penalty LENGTH_PENALTIES[0], the numbers of tokens, the
    agreement with the captions of similar training pictures, and the CIDEr-D against the picture's
    own captions.
    """
    vocabulary = checkpoint.vocabulary
    # CIDEr-D must compare all words of the validation captions, as `score_captions` does. The
    # captioner's own vocabulary would turn unknown words into <unk>.
    all_words = Vocabulary.build(caption for image in val.images for caption in image.captions)
    encode = lambda caption: all_words.encode(caption)[1:-1]
    cider = CiderD([[*map(encode, image.captions)] for image in val.images])
    device = next(checkpoint.model.parameters()).device
    config = DecodeConfig("beam", size, LENGTH_PENALTIES[0])
    for pictures in torch.arange(len(val.images))[:MAX_PICTURES].split(BATCH):
        features = val.read(pictures)
        groups = decode_batch(checkpoint, features.to(device), config)
        captions = [[h.tokens for h in group] for group in groups]
        zeros = [np.zeros(len(group)) for group in groups]
        agreement = neighbors.agreement(features, captions) if neighbors else zeros
        for picture, group, agreed in zip(pictures.tolist(), groups, agreement, strict=True):
            ciders = cider.scores(picture, [encode(vocabulary.decode(h.tokens)) for h in group])
            scores, lengths = [h.score for h in group], [len(h.tokens) for h in group]
            yield [*map(np.array, (scores, lengths, agreed, ciders))]
