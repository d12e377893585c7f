"""Captions for many pictures: features through encoder and search, in batches."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from captioning import console
from captioning.config import LIMIT, check_at_least, check_choice, setting
from captioning.data import Vocabulary
from captioning.model import Captioner, Neighbors
from captioning.search.decoding import Hypothesis, beam_search, check_options, greedy_search, sample

METHODS = ("greedy", "beam", "sample")


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are written; see `captioning.search` for the arguments."""

    method: str = setting(
        "greedy: the best word each time; beam: keep several captions; sample: draw words",
        "greedy",
        choices=METHODS,
    )
    beam_size: int = setting("beam: number of beams", 5)
    length_penalty: float = setting(
        "beam: captions are ranked by log probability / length^X; 0 prefers short ones", 0.7
    )
    neighbors: float | None = setting(
        "beam: weight of a caption's agreement with those of similar training pictures, beside its "
        "log probability / length^X; 0: none (what was best on --val)",
        None,
    )
    no_repeat_ngram: int = setting(
        "beam: no sequence of this many words may occur twice; 0: no such rule", 0
    )
    temperature: float = setting("sample: below 1 prefers probable words", 1.0)
    top_k: int = setting("sample: draw from the k most probable words; 0: from all", 0)
    top_p: float = setting("sample: draw from the fewest words that have this probability", 1.0)
    seed: int = setting("sample: the same seed gives the same captions", 0)
    max_seq_length: int | None = setting(
        "maximum number of tokens, with <end>; as trained if not given", None
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_at_least(self, seed=-LIMIT, neighbors=0)
        others = ("method", "neighbors", "seed")
        check_options(**{k: v for k, v in asdict(self).items() if k not in others})


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
    limit = config.max_seq_length
    if config.method == "greedy":
        return [[h] for h in greedy_search(model.decoder, image, limit)]
    if config.method == "beam":
        beam = (config.beam_size, config.length_penalty, config.no_repeat_ngram)
        found = beam_search(model.decoder, image, *beam, limit)
        near, weight = model.neighbors, config.neighbors
        if near and weight is None:
            weight = near.weight
        return rank(found, agreement(near, features, found), weight) if near and weight else found
    filters = (config.temperature, config.top_k, config.top_p)
    return [[h] for h in sample(model.decoder, image, *filters, limit, generator)]


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
) -> tuple[list[list[Caption]], float]:
    """Write captions for features [M,...].

    Args:
        model: the captioner; it is in eval mode during the call.
        vocabulary: its words.
        features: as the frozen CNN or the cache gives them.
        config: how to search; greedy if None.
        batch_size: pictures at a time.
        progress: label of a progress bar; none if None.

    Returns:
        The captions of each picture, best first, and pictures per second.
    """
    config = config or DecodeConfig()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    was_training = model.training
    model.eval()
    captions = []
    start = time.perf_counter()
    chunks = features.split(batch_size)
    for chunk in console.progress(chunks, progress, progress is not None, unit="batch"):
        decoded = decode_batch(model, chunk.to(device), config, generator)
        captions += [[_caption(h, vocabulary) for h in hypotheses] for hypotheses in decoded]
    model.train(was_training)
    return captions, len(captions) / max(time.perf_counter() - start, 1e-9)


def best_captions(
    model: Captioner, vocabulary: Vocabulary, features: Tensor, ids: Sequence[int], **options: Any
) -> dict[int, str]:
    """The best caption of each picture by id; options as in `generate_captions`."""
    captions, _ = generate_captions(model, vocabulary, features, **options)
    return {i: found[0].text for i, found in zip(ids, captions, strict=True)}


def _caption(hypothesis: Hypothesis, vocabulary: Vocabulary) -> Caption:
    probabilities = torch.tensor(hypothesis.log_probs).exp().tolist()
    words = [vocabulary.words[t] for t in hypothesis.tokens]
    return Caption(
        vocabulary.decode(hypothesis.tokens),
        list(zip(words, probabilities, strict=True)),
        hypothesis.score,
    )
