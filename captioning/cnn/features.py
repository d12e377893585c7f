"""The feature cache: each picture goes through the frozen CNN once, and training reads features.

A cache is two files of numpy, memory-mapped: NAME.npy has the features [N,...], NAME.state.npy one
byte for each picture. Its name says which CNN and pictures it is of. After a killed run, the
pictures that are still to do are encoded.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.cnn.pretrained import FrozenCNN
from captioning.console import printable, progress, say
from captioning.data.coco import CaptionDataset, CaptionedImage
from captioning.data.images import ImageError, Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError

TO_DO, DONE, BROKEN = range(3)


class FeatureCache:
    """An open cache: `features` [N,...] and `state` [N] (TO_DO, DONE or BROKEN), both mapped."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, state = path, path.with_suffix(".state.npy")
        if not state.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            # Writing to a mapped file on a full disk would end this process.
            if shutil.disk_usage(path.parent).free < size:
                raise CaptioningError(f"{path} needs {size / 1e6:,.0f} MB, and the disk has less")
            np.lib.format.open_memmap(path, "w+", dtype, shape)
            np.lib.format.open_memmap(state, "w+", "uint8", shape[:1])  # last: then it is complete
        try:
            found = [np.load(file, mmap_mode="c") for file in (path, state)]
        except (OSError, ValueError, EOFError) as error:
            raise CaptioningError(f"{path} is damaged ({error}): delete it") from error
        if (found[1] != DONE).any():  # a finished one is only read
            found = [np.load(file, mmap_mode="r+") for file in (path, state)]
        self.features, self.state = map(torch.from_numpy, found)


def cache_path(
    folder: str | Path, annotations: str | Path, cnn: FrozenCNN, images: Sequence[CaptionedImage]
) -> Path:
    """The cache, in a folder of caches, of a captions file's pictures: STEM-HASH.npy.

    The hash is of all that it depends on: the CNN, its weights, pooling and transform, the folder
    of `annotations`, and each picture's id, the name of its file without folders and the file's
    size. What is in these files is left out, because reading all of them would take too long.
    """
    annotations = Path(annotations)
    # The CNN's name too: some differ only in what has no weights.
    parts = [annotations.resolve().parent, cnn.config.name, cnn.config.fingerprint]
    pictures = [f"{i.id} {i.path.name} {i.path.stat().st_size}" for i in images]
    digest = hashlib.sha256(os.fsencode("\n".join(map(str, parts + pictures))))
    return Path(folder) / f"{annotations.stem}-{digest.hexdigest()[:16]}.npy"


def extract_features(
    cnn: FrozenCNN,
    images: Sequence[CaptionedImage],
    folder: str | Path,
    annotations: str | Path,
    on_error: str = "refuse",
    workers: int = 0,
    batch_size: int = 32,
) -> FeatureCache:
    """Encode every picture of a captions file into its cache, or those that the cache lacks.

    Which file in `folder` that is says `cache_path`; the CNN is on the device that encodes. With
    on_error "refuse" it stops at a broken picture, even at one that was skipped before; with "skip"
    it names and marks broken pictures.
    """
    path = cache_path(folder, annotations, cnn, images)
    dtype = "float16" if cnn.grid else "float32"
    cache = FeatureCache(path, (len(images), *cnn.feature_shape), dtype)
    if on_error == "refuse":
        cache.state[cache.state == BROKEN] = TO_DO
    rows = (cache.state == TO_DO).nonzero().flatten().tolist()
    load = partial(_load, images, cnn.transform)
    loader = DataLoader(cast(Any, rows), batch_size, num_workers=workers, collate_fn=load)
    broken: list[str] = []
    title = f"encode {printable(path.stem.rpartition('-')[0])}" if rows else None
    with progress(None, title, total=len(rows), unit="img") as bar:
        for items in loader:
            good = [(row, item) for row, item in items if isinstance(item, Tensor)]
            wrong = {row: item for row, item in items if isinstance(item, str)}
            if wrong and on_error == "refuse":
                first = next(iter(wrong.values()))
                raise ImageError(first, "(--on-error skip leaves broken pictures out)")
            broken += wrong.values()
            cache.state[[*wrong]] = BROKEN
            if good:
                found, pixels = zip(*good, strict=True)
                features = cnn(torch.stack(pixels).to(next(cnn.parameters()).device))
                cache.features[[*found]] = features.to("cpu", cache.features.dtype)
                cache.state[[*found]] = DONE  # after the features: a killed run repeats them
            bar.update(len(items))
    if broken:
        say(f"skipped {len(broken)} broken pictures:", *(f"  {item}" for item in broken[:10]))
    return cache


def _load(
    images: Sequence[CaptionedImage], transform: Transform, rows: list[int]
) -> list[tuple[int, Tensor | str]]:
    """By row, the input of the CNN or what is wrong with the picture."""
    return [(row, transform.load(images[row].path)) for row in rows]


class FeatureTable:
    """The pictures of a data set with the features in its cache; broken ones are left out."""

    def __init__(self, dataset: CaptionDataset, cache: FeatureCache) -> None:
        self.cache, self.rows = cache, (cache.state == DONE).nonzero().flatten()
        self.images = [dataset.images[row] for row in self.rows.tolist()]
        if not self.images:
            raise CaptioningError(f"{cache.path} holds no features of this data set")
        self.ids = [image.id for image in self.images]
        self.references = {image.id: image.captions for image in self.images}

    def tokens(self, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """The tokens of each picture's captions, without <start>."""
        return [[vocabulary.encode(c)[1:] for c in image.captions] for image in self.images]

    def read(self, images: Tensor | None = None) -> Tensor:
        """Features of pictures by position, in the cache's dtype; of all if None."""
        return self.cache.features[self.rows if images is None else self.rows[images]]
