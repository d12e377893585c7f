"""Writes captions for many pictures in batches, from their features or from their files."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from captioning import console
from captioning.cnn.features import DONE, FeatureCache
from captioning.cnn.pretrained import FrozenCNN
from captioning.data.images import EXTENSIONS
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError
from captioning.model.checkpoint import Checkpoint
from captioning.search.decoding import Hypothesis, beam_search, best_first, greedy_or_sample
from captioning.settings import DecodeConfig

BATCH = 64  # pictures that are captioned at once


@dataclass(frozen=True)
class Caption:
    """A caption that a captioner wrote.

    Attributes:
        text: the sentence.
        words: each word, including <end>, with its probability. After beam search with several
            captioners the probabilities come from only one of those that found the caption.
        score: the search ranks captions by this number.
    """

    text: str
    words: list[tuple[str, float]]
    score: float


@torch.no_grad()
def decode_batch(
    checkpoint: Checkpoint, features: Tensor, config: DecodeConfig, rng: Generator | None = None
) -> list[list[Hypothesis]]:
    """Returns the hypotheses of each of M pictures, best first, from their features [M,...].

    In beam search each captioner of an ensemble searches separately, then the hypotheses of all
    captioners are ranked together.
    """
    models, neighbors = checkpoint.models, checkpoint.neighbors
    if config.method != "beam":
        embedded = [model.encoder.embed(features) for model in models]
        return [[h] for h in greedy_or_sample([m.decoder for m in models], embedded, config, rng)]
    per_model = [beam_search(m.decoder, m.encoder.embed(features), config) for m in models]
    merged = [_merge(*groups) for groups in zip(*per_model, strict=True)]
    if not neighbors or not config.neighbors:
        return merged
    agreement = neighbors.agreement(features, [[h.tokens for h in group] for group in merged])
    return rerank(merged, agreement, config.neighbors)


def _merge(*groups: list[Hypothesis]) -> list[Hypothesis]:
    """Merges the hypotheses that several captioners found for one picture, best first.

    The score of a caption is the mean of the captioners' scores. A captioner that did not find the
    caption contributes the score of its own worst hypothesis. The log-probabilities are those of
    one captioner that found the caption.
    """
    all_scores = [{tuple(h.tokens): h.score for h in group} for group in groups]
    distinct = {tuple(h.tokens): h for group in groups for h in group}
    mean = lambda tokens: fmean(scores.get(tokens, min(scores.values())) for scores in all_scores)
    return best_first(h._replace(score=mean(tokens)) for tokens, h in distinct.items())


def rerank(
    hypotheses: list[list[Hypothesis]], agreement: list[list[float]], weight: float
) -> list[list[Hypothesis]]:
    """Adds weight * `Neighbors.agreement` to the scores of hypotheses; sorts by the new scores."""
    add = lambda h, agreed: h._replace(score=h.score + weight * agreed)
    return [best_first(map(add, *pair)) for pair in zip(hypotheses, agreement, strict=True)]


def generate_captions(
    checkpoint: Checkpoint,
    features: Tensor,
    config: DecodeConfig | None = None,
    batch_size: int = BATCH,
    progress: str | None = None,
    generator: Generator | None = None,
) -> list[list[Caption]]:
    """Writes captions for M pictures from their features; returns the list of each, best first.

    `features` [M,...] are on any device. Without `config` the search is the one that training
    chose. `progress` is the title of a progress bar. `generator` draws the random numbers of
    sampling; None makes one with the seed of `config`. The models are in eval mode afterwards.
    """
    config, vocabulary = config or checkpoint.search, checkpoint.vocabulary
    device = next(checkpoint.model.parameters()).device
    generator = generator or Generator(device).manual_seed(config.seed)
    for model in checkpoint.models:
        model.eval()
    captions: list[list[Caption]] = []
    with console.progress(None, progress, total=len(features), unit="img") as bar:
        for chunk in features.split(batch_size) if len(features) else ():
            decoded = decode_batch(checkpoint, chunk.to(device), config, generator)
            captions += [[_caption(h, vocabulary) for h in hypotheses] for hypotheses in decoded]
            bar.update(len(chunk))
    return captions


def best_captions(
    checkpoint: Checkpoint, features: Tensor, ids: Sequence[int], **options: Any
) -> dict[int, str]:
    """Returns the text of the best caption of each picture, by the picture's id.

    `ids` are in the order of `features`; `options` are passed to `generate_captions`.
    """
    captions = generate_captions(checkpoint, features, **options)
    return {i: ranked[0].text for i, ranked in zip(ids, captions, strict=True)}


def _caption(hypothesis: Hypothesis, vocabulary: Vocabulary) -> Caption:
    pairs = zip(hypothesis.tokens, torch.tensor(hypothesis.log_probs).exp().tolist(), strict=True)
    words = [(vocabulary.words[t], probability) for t, probability in pairs]
    return Caption(vocabulary.decode(hypothesis.tokens), words, hypothesis.score)


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """Expands files, folders (with all subfolders) and globs; lists each picture once."""
    pictures: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = [match for match in path.rglob("*") if match.suffix.lower() in EXTENSIONS]
        else:
            matches = [path] if path.exists() else [*map(Path, glob.glob(pattern, recursive=True))]
        files = sorted(match for match in matches if match.is_file())
        if not files:
            missing = not path.exists() and not glob.has_magic(pattern)
            why = "no such file or folder" if missing else "no picture found"
            raise CaptioningError(f"{pattern}: {why}")
        pictures |= dict.fromkeys(files)
    return list(pictures)


@dataclass(frozen=True)
class CaptionedFile:
    """The captions of one picture, best first, or the reason why it has no caption."""

    path: Path | Image.Image
    captions: list[Caption]
    error: str | None = None


def caption_files(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    paths: Sequence[Path | Image.Image],
    config: DecodeConfig | None = None,
    cache: FeatureCache | None = None,
    batch_size: int = 32,
) -> Iterator[CaptionedFile]:
    """Writes captions for picture files. A broken file does not stop the others.

    Args:
        checkpoint: the captioner or ensemble.
        cnn: its frozen CNN, from ``load_cnn(checkpoint.cnn)``.
        paths: the files, or PIL pictures.
        config: how to search; None for the search that training chose.
        cache: the features of exactly these files, if they have been encoded before; then the
            files are not read. None to read and encode the files.
        batch_size: the number of pictures that are encoded and captioned at once.

    Yields:
        A result for each path, in order.
    """
    device, config = next(cnn.parameters()).device, config or checkpoint.search
    generator = Generator(device).manual_seed(config.seed)
    for rows in torch.arange(len(paths)).split(batch_size):
        if cache:
            done = cache.state[rows] == DONE
            features = cache.features[rows[done]]
            errors = {row: f"{paths[row]}: broken" for row in rows[~done].tolist()}
        else:
            inputs = {row: cnn.transform.load(paths[row]) for row in rows.tolist()}
            errors = {row: item for row, item in inputs.items() if isinstance(item, str)}
            pixels = [item for item in inputs.values() if isinstance(item, Tensor)]
            features = cnn(torch.stack(pixels).to(device)) if pixels else torch.empty(0)
        captions = iter(generate_captions(checkpoint, features, config, generator=generator))
        for row in rows.tolist():
            error = errors.get(row)
            yield CaptionedFile(paths[row], [] if error else next(captions), error)
