"""The training pictures most like a new one, whose captions help to rank what beam search finds.

People describe similar pictures in similar words. So of the captions that beam search finds for a
picture, those that agree with the captions of similar training pictures are better ("consensus
reranking": Mao et al., 2015, "Deep Captioning with Multimodal Recurrent Neural Networks";
Devlin et al., 2015, "Exploring Nearest Neighbor Approaches for Image Captioning").
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

NEAREST = 100  # training pictures that a new one is compared with
TEMPERATURE = 0.15  # of the softmax of their cosines, by which they count
# Principal axes of the features: one for so many pictures, but at least, and at most, so many.
PICTURES_OF_AN_AXIS, LEAST_AXES, MOST_AXES = 20, 16, 256
SMALLEST = 0.003  # deviation on an axis beside that on the first; less is rounding
OTHERS = 0.02  # how much the other hypotheses of a picture count beside them


@dataclass(eq=False)
class Neighbors:
    """Training pictures with their features and captions."""

    mean: Tensor  # [C], of the features of all of them
    axes: Tensor  # float16 [C,A]: (features - mean) @ axes are A numbers of equal variances
    directions: Tensor  # float16 [N,A], those of each, scaled to length 1
    captions: Sequence[Sequence[Sequence[int]]]  # tokens of each picture's, without <start>

    @classmethod
    def of(cls, table: FeatureTable, vocabulary: Vocabulary) -> "Neighbors":
        """Those of a table of training pictures."""
        parts = torch.arange(len(table.images)).split(256)
        features = torch.cat([_vectors(table.read(rows)) for rows in parts])
        mean = features.mean(0)
        features -= mean
        axes = _axes(features).half()
        directions = F.normalize(features @ axes.float(), dim=1).half()
        return cls(mean, axes, directions, table.tokens(vocabulary))

    @cached_property
    def cider(self) -> CiderD:
        """Counts the document frequencies, in a second for 30,000 captions."""
        return CiderD(self.captions)

    def agreement(
        self, features: Tensor, captions: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """CIDEr-D of new captions of each picture against the captions of similar pictures.

        For each, from features [M,C] or [M,cells,C] and the tokens of its captions, it is the mean
        over the `NEAREST` most similar training pictures, weighted by their similarity, and a
        little of that against its other new captions.
        """
        vectors = _vectors(features).cpu() - self.mean
        directions = F.normalize(vectors @ self.axes.float(), dim=1)
        nearest = min(NEAREST, len(self.directions))
        cosines, pictures = (directions @ self.directions.float().t()).topk(nearest)
        shares = (cosines / TEMPERATURE).softmax(1)
        found = []
        for group, near, share in zip(captions, pictures.tolist(), shares.tolist(), strict=True):
            agreed = self.cider.agreement(group, dict(zip(near, share, strict=True)))
            others = self.cider.consensus(group)
            found.append([a + OTHERS * other for a, other in zip(agreed, others, strict=True)])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        every = [caption for captions in self.captions for caption in captions]
        return {
            "mean": self.mean,
            "axes": self.axes,
            "directions": self.directions,
            "captions": torch.tensor([len(captions) for captions in self.captions]),
            "lengths": torch.tensor([len(caption) for caption in every]),
            "tokens": torch.tensor([t for caption in every for t in caption], dtype=torch.int32),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Neighbors":
        """From what `state_dict` gave."""
        captions = iter(part.tolist() for part in state["tokens"].split(state["lengths"].tolist()))
        groups = [list(islice(captions, n)) for n in state["captions"].tolist()]
        return cls(state["mean"], state["axes"], state["directions"], groups)


def _vectors(features: Tensor) -> Tensor:
    """One vector for each picture: the mean of its cells, if it has cells."""
    features = features.float()
    return features.mean(1) if features.dim() == 3 else features


def _axes(features: Tensor) -> Tensor:
    """The principal axes of features [N,C] without mean, each divided by its deviation.

    Pictures that differ in what most pictures differ in are no less similar for it (whitening:
    Jegou & Chum, 2012, "Negative Evidences and Co-occurrences in Image Retrieval").
    """
    count = min(MOST_AXES, max(LEAST_AXES, len(features) // PICTURES_OF_AN_AXIS), *features.shape)
    more = min(3 * count // 2, *features.shape)  # and 6 rounds, so that each is precise
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        _, deviations, axes = torch.svd_lowrank(features, more, niter=6)
    deviations, axes = deviations[:count], axes[:, :count]
    axes = torch.where(deviations > SMALLEST * deviations[0], axes / deviations, 0.0)
    return axes / axes.abs().max().clamp_min(1e-30)  # cosines do not see it, float16 does
