"""Captions for many pictures, from their features or their files, in batches."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from captioning import console
from captioning.cnn import Extraction, FeatureTable, FrozenCNN, extract_features
from captioning.data import CaptionDataset, Vocabulary, image_files
from captioning.errors import CaptioningError
from captioning.model import Captioner, Checkpoint, Ensemble
from captioning.search.decoding import DecodeConfig, Hypothesis, beam_search, write_captions


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
    model: Captioner,
    features: Tensor,
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Hypotheses of each picture, best first: [M,...] features in, M lists out."""
    with torch.no_grad():
        image = model.encoder.embed(features)
    if config.method != "beam":
        return [[h] for h in write_captions(model.decoder, image, config, generator)]
    found, near = _beams(model, image, config), model.neighbors
    weight = near.weight if near and config.neighbors is None else config.neighbors
    if not near or not weight:
        return found
    agreed = near.agreement(features, [[h.tokens for h in group] for group in found])
    return rank(found, agreed, weight)


def _beams(model: Captioner, image: Tensor, config: DecodeConfig) -> list[list[Hypothesis]]:
    """What beam search finds; of several captioners what each finds alone."""
    if not isinstance(model, Ensemble):
        return beam_search(model.decoder, image, config, model.beam)
    config = replace(config, max_seq_length=config.max_seq_length or model.max_seq_length)
    found = [
        beam_search(member.decoder, part, config, model.beam) for member, part in model.parts(image)
    ]
    return [_pool(groups) for groups in zip(*found, strict=True)]


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
    decoded = []
    for chunk in console.progress(features.split(batch_size), progress, unit="batch"):
        decoded += decode_batch(model, chunk.to(device), config, generator)
    model.train(was_training)
    return [[_caption(h, vocabulary) for h in hypotheses] for hypotheses in decoded]


def best_captions(
    model: Captioner, vocabulary: Vocabulary, features: Tensor, ids: Sequence[int], **options: Any
) -> dict[int, str]:
    """The best caption of each picture by id; options as in `generate_captions`."""
    captions = generate_captions(model, vocabulary, features, **options)
    return {i: found[0].text for i, found in zip(ids, captions, strict=True)}


def _caption(hypothesis: Hypothesis, vocabulary: Vocabulary) -> Caption:
    probabilities = torch.tensor(hypothesis.log_probs).exp().tolist()
    words = [vocabulary.words[t] for t in hypothesis.tokens]
    pairs = list(zip(words, probabilities, strict=True))
    return Caption(vocabulary.decode(hypothesis.tokens), pairs, hypothesis.score)


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
    config: DecodeConfig,
    batch_size: int = 32,
) -> Iterator[CaptionedFile]:
    """Caption pictures; a broken one gives an error and does not stop the others.

    Args:
        checkpoint: the captioner.
        cnn: its CNN, ``checkpoint.cnn.load()``.
        paths: the pictures.
        config: how to search.
        batch_size: pictures at a time.

    Yields:
        One result for each path, in order.
    """
    device = next(cnn.parameters()).device
    for begin in range(0, len(paths), batch_size):
        chunk = paths[begin : begin + batch_size]
        inputs = [cnn.transform.load(path) for path in chunk]
        pixels = [item for item in inputs if isinstance(item, Tensor)]
        captions: Iterator[list[Caption]] = iter(())
        if pixels:
            features = cnn(torch.stack(pixels).to(device))
            model, words = checkpoint.model, checkpoint.vocabulary
            captions = iter(generate_captions(model, words, features, config))
        for path, item in zip(chunk, inputs, strict=True):
            if isinstance(item, str):
                yield CaptionedFile(path, [], item)
            else:
                yield CaptionedFile(path, next(captions))


def caption_dataset(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    dataset: CaptionDataset,
    folder: Path,
    annotations: Path,
    config: DecodeConfig,
) -> Iterator[CaptionedFile]:
    """`caption_files` of a data set, by features in a cache in `folder`, see `extract_features`."""
    device, model = next(cnn.parameters()).device, checkpoint.model
    how = Extraction(on_error="skip", device=str(device))
    table = FeatureTable(dataset, extract_features(cnn, dataset.images, folder, annotations, how))
    captions: dict[int, list[Caption]] = {}
    # So many that a grid of features fits into memory.
    for some in console.progress(torch.arange(len(table.ids)).split(1024), "caption", unit="batch"):
        found = generate_captions(model, checkpoint.vocabulary, table.read(some), config)
        captions |= zip((table.ids[i] for i in some), found, strict=True)
    for image in dataset.images:
        broken = f"{image.path}: broken, according to the feature cache"
        error = None if image.id in captions else broken
        yield CaptionedFile(image.path, captions.get(image.id, []), error)
