"""Captions for many pictures, from their features or their files, in batches."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from captioning import console
from captioning.cnn.features import DONE, FeatureCache
from captioning.cnn.pretrained import FrozenCNN
from captioning.data.images import image_files
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError
from captioning.model.checkpoint import Checkpoint
from captioning.search.decoding import Hypothesis, beam_search, write_captions
from captioning.settings import DecodeConfig


@dataclass(frozen=True)
class Caption:
    """A caption that was written.

    Attributes:
        text: the sentence.
        words: each word written, <end> too, and its probability; in beam search of several
            captioners, by one that found the caption.
        score: what the search ranked it by.
    """

    text: str
    words: list[tuple[str, float]]
    score: float


def decode_batch(
    checkpoint: Checkpoint,
    features: Tensor,
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Hypotheses of each picture, best first: [M,...] features in, M lists out.

    In beam search each of several captioners searches alone.
    """
    neighbors = checkpoint.neighbors
    with torch.no_grad():
        images = [model.encoder.embed(features) for model in checkpoint.models]
    decoders = [model.decoder for model in checkpoint.models]
    if config.method != "beam":
        return [[h] for h in write_captions(decoders, images, config, generator)]
    found = [beam_search(d, image, config) for d, image in zip(decoders, images, strict=True)]
    pooled = found[0] if len(found) == 1 else [_pool(groups) for groups in zip(*found, strict=True)]
    if not neighbors or not config.neighbors:
        return pooled
    agreed = neighbors.agreement(features, [[h.tokens for h in group] for group in pooled])
    return rank(pooled, agreed, config.neighbors)


def _pool(groups: Sequence[list[Hypothesis]]) -> list[Hypothesis]:
    """What several captioners found for one picture, by the mean of their scores; best first.

    Where one has not found a caption, the score of its worst counts. Log-probabilities are those of
    a captioner that found it.
    """
    scores = [{tuple(h.tokens): h.score for h in group} for group in groups]
    every = {tuple(h.tokens): h for group in groups for h in group}
    pooled = [
        h._replace(score=fmean(own.get(tokens, min(own.values())) for own in scores))
        for tokens, h in every.items()
    ]
    return sorted(pooled, key=lambda h: h.score, reverse=True)


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
    checkpoint: Checkpoint,
    features: Tensor,
    config: DecodeConfig | None = None,
    batch_size: int = 64,
    progress: str | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Caption]]:
    """The captions of each picture, best first, from features [M,...] of the frozen CNN.

    The models are in eval mode afterwards. `progress` is the title of a progress bar. Samples are
    drawn by `generator`, or a new one.
    """
    config, words = config or checkpoint.search, checkpoint.vocabulary
    device = next(checkpoint.model.parameters()).device
    generator = generator or torch.Generator(device).manual_seed(config.seed)
    for model in checkpoint.models:
        model.eval()
    found: list[list[Caption]] = []
    with console.progress(None, progress, total=len(features), unit="img") as bar:
        for chunk in features.split(batch_size) if len(features) else ():
            decoded = decode_batch(checkpoint, chunk.to(device), config, generator)
            found += [[_caption(h, words) for h in hypotheses] for hypotheses in decoded]
            bar.update(len(chunk))
    return found


def best_captions(
    checkpoint: Checkpoint, features: Tensor, ids: Sequence[int], **options: Any
) -> dict[int, str]:
    """The best caption of each picture by id; options as in `generate_captions`."""
    captions = generate_captions(checkpoint, features, **options)
    return {i: found[0].text for i, found in zip(ids, captions, strict=True)}


def _caption(hypothesis: Hypothesis, vocabulary: Vocabulary) -> Caption:
    pairs = zip(hypothesis.tokens, torch.tensor(hypothesis.log_probs).exp().tolist(), strict=True)
    words = [(vocabulary.words[t], probability) for t, probability in pairs]
    return Caption(vocabulary.decode(hypothesis.tokens), words, hypothesis.score)


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """Expands files, folders (with everything below them) and globs; lists each picture once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = image_files(path)
        else:
            names = [pattern] if path.exists() else glob.glob(pattern, recursive=True)
            matches = [match for match in sorted(map(Path, names)) if match.is_file()]
        if not matches:
            missing = not path.exists() and not glob.has_magic(pattern)
            why = "no such file or folder" if missing else "no picture found"
            raise CaptioningError(f"{pattern}: {why}")
        found |= dict.fromkeys(matches)
    return list(found)


@dataclass(frozen=True)
class CaptionedFile:
    """The captions of one file, best first, or the reason why there are none."""

    path: Path
    captions: list[Caption]
    error: str | None = None


def caption_files(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    paths: Sequence[Path],
    config: DecodeConfig | None = None,
    cache: FeatureCache | None = None,
    batch_size: int = 32,
) -> Iterator[CaptionedFile]:
    """Caption pictures; a broken one gives an error and does not stop the others.

    `cnn` is ``load_cnn(checkpoint.cnn)``; `cache` may have the features of the pictures. Without a
    `config` the search is the one that training chose. Yields a result for each path, in order.
    """
    device, config = next(cnn.parameters()).device, config or checkpoint.search
    generator = torch.Generator(device).manual_seed(config.seed)
    for rows in torch.arange(len(paths)).split(batch_size):
        chunk = [paths[row] for row in rows.tolist()]
        if cache:
            done = cache.state[rows] == DONE
            features = cache.features[rows[done]]
            errors = [None if ok else f"{p}: broken" for p, ok in zip(chunk, done, strict=True)]
        else:
            inputs = [cnn.transform.load(path) for path in chunk]
            errors = [item if isinstance(item, str) else None for item in inputs]
            pixels = [item for item in inputs if isinstance(item, Tensor)]
            features = cnn(torch.stack(pixels).to(device)) if pixels else torch.empty(0)
        captions = iter(generate_captions(checkpoint, features, config, generator=generator))
        for path, error in zip(chunk, errors, strict=True):
            yield CaptionedFile(path, [] if error else next(captions), error)
