"""Captions for many pictures: features through encoder and search, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioning import console
from captioning.data import Vocabulary
from captioning.model import Captioner, Neighbors
from captioning.search.decoding import DecodeConfig, Hypothesis, beam_search, greedy_search, sample


@dataclass(frozen=True)
class Caption:
    """A caption that was written.

    Attributes:
        text: the sentence.
        words: each word written, <end> too, and its probability.
        score: what the search ranked it by.
    """

    text: str
    words: list[tuple[str, float]]
    score: float


def decode_batch(
    model: Captioner,
    features: Tensor,
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Hypotheses of each picture, best first: [M,...] features in, M lists out."""
    with torch.no_grad():
        image = model.encoder.embed(features)
    if config.method == "greedy":
        return [[h] for h in greedy_search(model.decoder, image, config)]
    if config.method == "sample":
        return [[h] for h in sample(model.decoder, image, config, generator)]
    found, near = beam_search(model.decoder, image, config), model.neighbors
    if near is None or config.neighbors == 0:
        return found
    weight = near.weight if config.neighbors is None else config.neighbors
    return rank(found, agreement(near, features, found), weight)


def agreement(
    neighbors: Neighbors, features: Tensor, hypotheses: list[list[Hypothesis]]
) -> list[list[float]]:
    """How well each hypothesis agrees with the captions of similar training pictures."""
    return neighbors.agreement(features, [[h.tokens for h in group] for group in hypotheses])


def rank(
    hypotheses: list[list[Hypothesis]], agreement: list[list[float]], weight: float
) -> list[list[Hypothesis]]:
    """Adds the weighted agreement of each hypothesis to its score; the best come first."""
    scored = (
        [h._replace(score=h.score + weight * a) for h, a in zip(group, row, strict=True)]
        for group, row in zip(hypotheses, agreement, strict=True)
    )
    return [sorted(group, key=lambda h: h.score, reverse=True) for group in scored]


def generate_captions(
    model: Captioner,
    vocabulary: Vocabulary,
    features: Tensor,
    config: DecodeConfig | None = None,
    batch_size: int = 128,
    progress: str | None = None,
) -> list[list[Caption]]:
    """The captions of each picture, best first, from features [M,...] of the frozen CNN.

    The model is in eval mode meanwhile. The search is greedy if `config` is None. `progress` is the
    label of a progress bar, if one is wanted.
    """
    config = config or DecodeConfig()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    was_training = model.training
    model.eval()
    captions = []
    chunks = features.split(batch_size)
    for chunk in console.progress(chunks, progress, unit="batch"):
        decoded = decode_batch(model, chunk.to(device), config, generator)
        captions += [[_caption(h, vocabulary) for h in hypotheses] for hypotheses in decoded]
    model.train(was_training)
    return captions


def best_captions(
    model: Captioner, vocabulary: Vocabulary, features: Tensor, ids: Sequence[int], **options: Any
) -> dict[int, str]:
    """The best caption of each picture by id; options as in `generate_captions`."""
    captions = generate_captions(model, vocabulary, features, **options)
    return {i: found[0].text for i, found in zip(ids, captions, strict=True)}


def _caption(hypothesis: Hypothesis, vocabulary: Vocabulary) -> Caption:
    probabilities = torch.tensor(hypothesis.log_probs).exp().tolist()
    words = [vocabulary.words[t] for t in hypothesis.tokens]
    return Caption(
        vocabulary.decode(hypothesis.tokens),
        list(zip(words, probabilities, strict=True)),
        hypothesis.score,
    )
