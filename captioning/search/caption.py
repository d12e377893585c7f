"""Captions for pictures from disk."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """The captions of one file, best first, or the reason why there are none.

    `seconds` is its share of the time that the captioner took, without the CNN.
    """

    path: Path
    captions: list[Caption]
    error: str | None = None
    seconds: float = 0.0


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
        loaded: dict[Path, torch.Tensor] = {}
        errors: dict[Path, str] = {}
        chunk = paths[begin : begin + batch_size]
        for path in chunk:
            try:
                image = load_image(path, 2 * cnn.transform.resize_size)
                loaded[path] = cnn.transform(image)
            except ImageError as error:
                errors[path] = str(error)
        captions: dict[Path, list[Caption]] = {}
        seconds = 0.0
        if loaded:
            features = cnn(torch.stack(list(loaded.values())).to(device))
            written, rate = generate_captions(
                checkpoint.model, checkpoint.vocabulary, features, config, batch_size
            )
            captions, seconds = dict(zip(loaded, written, strict=True)), 1 / rate
        for path in chunk:
            if path in errors:
                yield CaptionedFile(path, [], errors[path])
            else:
                yield CaptionedFile(path, captions[path], None, seconds)


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
    readable = set(table.ids)
    rows = iter(torch.arange(len(table.ids)).split(batch_size))
    written: list[list[Caption]] = []
    seconds = 0.0
    for image in dataset.images:
        if image.id not in readable:
            yield CaptionedFile(
                image.path, [], f"{image.path}: broken, according to the feature cache"
            )
            continue
        if not written:
            features = table.read(next(rows))
            written, rate = generate_captions(
                checkpoint.model, checkpoint.vocabulary, features, config, batch_size
            )
            seconds = 1 / rate
        yield CaptionedFile(image.path, written.pop(0), None, seconds)
