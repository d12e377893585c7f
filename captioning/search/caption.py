"""Captions for pictures from disk."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from captioning.cnn import FeatureTable, FrozenCNN
from captioning.data import CaptionDataset, ImageError, image_files, load_image
from captioning.errors import CaptioningError
from captioning.model import Checkpoint
from captioning.search.generate import Caption, DecodeConfig, generate_captions


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """Expands files, folders (with everything below them) and globs; lists each picture once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = image_files(path)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True))
            matches = [p for p in matches if p.is_file()]
        if not matches:
            raise CaptioningError(f"{pattern}: no picture found")
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
    for chunk in _chunks(paths, batch_size):
        pixels, errors = [], {}
        for i, path in enumerate(chunk):
            try:
                pixels.append(cnn.transform(load_image(path, 2 * cnn.transform.resize_size)))
            except ImageError as error:
                errors[i] = str(error)
        features = cnn(torch.stack(pixels).to(device)) if pixels else None
        yield from _caption(checkpoint, chunk, features, errors, config)


def caption_table(
    checkpoint: Checkpoint,
    dataset: CaptionDataset,
    table: FeatureTable,
    config: DecodeConfig,
    batch_size: int = 32,
) -> Iterator[CaptionedFile]:
    """`caption_files` of a data set with features, so that nothing is encoded.

    Yields:
        One result for each picture of `dataset`, in order; broken ones are not in `table`.
    """
    row_of = {picture: row for row, picture in enumerate(table.ids)}
    for chunk in _chunks(dataset.images, batch_size):
        rows = [row_of[image.id] for image in chunk if image.id in row_of]
        errors = {
            i: f"{image.path}: broken, according to the feature cache"
            for i, image in enumerate(chunk)
            if image.id not in row_of
        }
        features = table.read(torch.tensor(rows)) if rows else None
        yield from _caption(checkpoint, [i.path for i in chunk], features, errors, config)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _caption(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    features: torch.Tensor | None,
    errors: dict[int, str],
    config: DecodeConfig,
) -> Iterator[CaptionedFile]:
    """The captions of pictures; `errors` has the positions of those that have no features."""
    captions: Iterator[list[Caption]] = iter(())
    if features is not None:
        model, words = checkpoint.model, checkpoint.vocabulary
        captions = iter(generate_captions(model, words, features, config))
    for i, path in enumerate(paths):
        if i in errors:
            yield CaptionedFile(path, [], errors[i])
        else:
            yield CaptionedFile(path, next(captions))
