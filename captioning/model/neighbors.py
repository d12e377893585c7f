"""Consensus reranking: the captions of similar training pictures help to rank new captions.

People describe similar pictures in similar words. So a caption that beam search finds for a picture
is better if it agrees with the captions of similar training pictures (Mao et al., 2015, "Deep
Captioning with Multimodal Recurrent Neural Networks"; Devlin et al., 2015, "Exploring Nearest
Neighbor Approaches for Image Captioning").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captioning.cnn.features import FeatureTable
from captioning.data.vocabulary import Vocabulary
from captioning.model.cider import CiderD

NEAREST = 100  # the number of similar training pictures that are used for a new picture
TEMPERATURE = 0.15  # the weight of a similar picture is softmax(cosine / TEMPERATURE)
# There is one principal axis for every PICTURES_PER_AXIS training pictures, within these bounds.
PICTURES_PER_AXIS, LEAST_AXES, MOST_AXES = 20, 16, 256
# An axis with a standard deviation below this share of the largest is rounding error and ignored.
LEAST_DEVIATION = 0.003
OTHERS_WEIGHT = 0.02  # the factor of the agreement with the other captions that the search found


@dataclass(eq=False)
class Neighbors:
    """The features and captions of all N training pictures, from which the nearest are taken."""

    mean: Tensor  # [C], the mean of the features
    axes: Tensor  # float16 [C,A], A principal axes, each divided by its standard deviation
    directions: Tensor  # float16 [N,A], (features - mean) @ axes, with rows of length 1
    captions: Sequence[Sequence[Sequence[int]]]  # the tokens of each caption, without <start>

    @classmethod
    def from_table(cls, table: FeatureTable, vocabulary: Vocabulary) -> "Neighbors":
        chunks = torch.arange(len(table.images)).split(256)
        features = torch.cat([_vectors(table.read(rows)) for rows in chunks])
        mean = features.mean(0)
        features -= mean
        axes = _axes(features).half()
        directions = F.normalize(features @ axes.float(), dim=1).half()
        return cls(mean, axes, directions, table.tokens(vocabulary))

    @cached_property
    def cider(self) -> CiderD:
        """The scorer with the captions as references. For 30,000 captions it takes a second."""
        return CiderD(self.captions)

    def agreement(
        self, features: Tensor, captions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """Returns a number for each of the captions (tokens) that were found for M pictures.

        The agreement of a caption is the weighted mean of its CIDEr-D against the captions of the
        `NEAREST` most similar training pictures, plus `OTHERS_WEIGHT` times its CIDEr-D against the
        other captions that were found for its picture. `features` are [M,C] or [M,cells,C].
        """
        vectors = _vectors(features).cpu() - self.mean
        directions = F.normalize(vectors @ self.axes.float(), dim=1)
        nearest = min(NEAREST, len(self.directions))
        cosines, pictures = (directions @ self.directions.float().t()).topk(nearest)
        shares = (cosines / TEMPERATURE).softmax(1)
        agreements = []
        for group, near, share in zip(captions, pictures.tolist(), shares.tolist(), strict=True):
            agreed = self.cider.weighted_scores(group, dict(zip(near, share, strict=True)))
            mutual = self.cider.consensus(group)
            agreements.append([a + OTHERS_WEIGHT * b for a, b in zip(agreed, mutual, strict=True)])
        return agreements

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors that a checkpoint can hold."""
        flat = [caption for captions in self.captions for caption in captions]
        tensors = {"mean": self.mean, "axes": self.axes, "directions": self.directions}
        counts, lengths = (torch.tensor([*map(len, rows)]) for rows in (self.captions, flat))
        tokens = torch.tensor([t for caption in flat for t in caption], dtype=torch.int32)
        return tensors | {"captions": counts, "lengths": lengths, "tokens": tokens}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Neighbors":
        captions = iter(part.tolist() for part in state["tokens"].split(state["lengths"].tolist()))
        groups = [list(islice(captions, n)) for n in state["captions"].tolist()]
        return cls(state["mean"], state["axes"], state["directions"], groups)


def _vectors(features: Tensor) -> Tensor:
    """Returns one float32 vector for each picture: its features, or the mean of its cells."""
    features = features.float()
    return features.mean(1) if features.dim() == 3 else features


def _axes(features: Tensor) -> Tensor:
    """Returns the principal axes [C,A] of features [N,C], each divided by its standard deviation.

    The mean of the features must be 0. This is whitening (Jegou & Chum, 2012, "Negative Evidences
    and Co-occurrences in Image Retrieval"): without it, the few axes along which most pictures
    differ would dominate every cosine.
    """
    count = min(MOST_AXES, max(LEAST_AXES, len(features) // PICTURES_PER_AXIS), *features.shape)
    # The first `count` axes are precise only if more axes are computed, with several iterations.
    computed = min(3 * count // 2, *features.shape)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        _, deviations, axes = torch.svd_lowrank(features, computed, niter=6)
    deviations, axes = deviations[:count], axes[:, :count]
    axes = torch.where(deviations > LEAST_DEVIATION * deviations.max(), axes / deviations, 0.0)
    # Values up to 1 do not overflow in float16. The cosines do not depend on the factor.
    return axes / axes.abs().max().clamp_min(torch.finfo().tiny)
