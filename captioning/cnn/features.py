"""The feature cache: the frozen CNN encodes each picture once, and training reads the features.

A cache is two memory-mapped files of NumPy: NAME.npy has the features [N,...] of N pictures, and
NAME.state.npy has a byte for each picture, which says whether the picture was encoded. So if a run
is killed, the next one goes on where it stopped. NAME has a hash of the CNN and the pictures.
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
from captioning.data.batches import EncodedCaptions
from captioning.data.coco import CaptionDataset, CaptionedImage
from captioning.data.images import ImageError, Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError

TO_DO, DONE, BROKEN = range(3)  # the states of a picture


class FeatureCache:
    """An open cache: `features` [N,...], and `state`, uint8 [N] of TO_DO, DONE or BROKEN."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, state_path = path, path.with_suffix(".state.npy")
        if not state_path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            # On a full disk, writing to a mapped file would kill this process.
            if shutil.disk_usage(path.parent).free < size:
                raise CaptioningError(f"{path} needs {size / 1e6:,.0f} MB, and the disk has less")
            np.lib.format.open_memmap(path, "w+", dtype, shape)
            # The state is made last: if it exists, the file of features has its full size.
            np.lib.format.open_memmap(state_path, "w+", "uint8", shape[:1])
        try:
            arrays = [np.load(file, mmap_mode="c") for file in (path, state_path)]  # copy-on-write
        except (OSError, ValueError, EOFError) as error:
            raise CaptioningError(f"{path} is damaged ({error}): delete it") from error
        if (arrays[1] != DONE).any():  # the files of a complete cache may be read-only
            arrays = [np.load(file, mmap_mode="r+") for file in (path, state_path)]
        self.features, self.state = map(torch.from_numpy, arrays)


def cache_path(
    folder: str | Path, annotations: str | Path, cnn: FrozenCNN, images: Sequence[CaptionedImage]
) -> Path:
    """Returns the path of the cache for the pictures of a captions file: folder/STEM-HASH.npy.

    STEM is the name of the captions file. The hash is of the CNN's name, weights, pooling and
    transform, the folder of the captions file, and the id, file name and file size of each picture.
    The contents of pictures are not hashed, because it would take too long to read all files.
    """
    annotations = Path(annotations)
    folder_and_cnn = [annotations.resolve().parent, cnn.config.name, cnn.config.fingerprint]
    pictures = [f"{i.id} {i.path.name} {i.path.stat().st_size}" for i in images]
    digest = hashlib.sha256(os.fsencode("\n".join(map(str, folder_and_cnn + pictures))))
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
    """Encodes the pictures of a captions file that are not in its cache yet; returns the cache.

    `images` are all pictures of the captions file, in its order. With `on_error` "refuse" a broken
    picture is an error, even if an earlier call skipped it; "skip" prints the names of broken
    pictures and marks them in the cache. `workers` processes load pictures; 0 for this process.
    """
    path = cache_path(folder, annotations, cnn, images)
    dtype = "float16" if cnn.grid else "float32"
    cache = FeatureCache(path, (len(images), *cnn.feature_shape), dtype)
    if on_error == "refuse":
        cache.state[cache.state == BROKEN] = TO_DO
    rows = (cache.state == TO_DO).nonzero().flatten().tolist()
    # The loader makes batches of row numbers, and `load` reads the pictures of a batch.
    load = partial(_load, images, cnn.transform)
    broken: list[str] = []
    title = f"encode {printable(path.stem.rpartition('-')[0])}" if rows else None
    with progress(None, title, total=len(rows), unit="img") as bar:
        for loaded in DataLoader(cast(Any, rows), batch_size, num_workers=workers, collate_fn=load):
            good = {row: pixels for row, pixels in loaded if isinstance(pixels, Tensor)}
            errors = {row: error for row, error in loaded if isinstance(error, str)}
            broken += errors.values()
            if errors and on_error == "refuse":
                raise ImageError(broken[0], "(--on-error skip leaves broken pictures out)")
            cache.state[[*errors]] = BROKEN
            if good:
                features = cnn(torch.stack([*good.values()]).to(next(cnn.parameters()).device))
                cache.features[[*good]] = features.to("cpu", cache.features.dtype)
                # Written last, so that a killed run does not mark pictures without features.
                cache.state[[*good]] = DONE
            bar.update(len(loaded))
    if broken:
        say(f"skipped {len(broken)} broken pictures:", *(f"  {error}" for error in broken[:10]))
    return cache


def _load(
    images: Sequence[CaptionedImage], transform: Transform, rows: list[int]
) -> list[tuple[int, Tensor | str]]:
    return [(row, transform.load(images[row].path)) for row in rows]


class FeatureTable:
    """The pictures of a data set, with their captions and features, without broken pictures."""

    def __init__(self, dataset: CaptionDataset, cache: FeatureCache) -> None:
        self.cache, self.rows = cache, (cache.state == DONE).nonzero().flatten()
        self.images = [dataset.images[row] for row in self.rows.tolist()]
        if not self.images:
            raise CaptioningError(f"{cache.path} holds no features of this data set")
        self.ids = [image.id for image in self.images]
        self.references = {image.id: image.captions for image in self.images}

    def tokens(self, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """Returns the tokens of the captions of each picture, without <start>."""
        return [[vocabulary.encode(c)[1:] for c in image.captions] for image in self.images]

    def encode(self, vocabulary: Vocabulary, max_words: int) -> EncodedCaptions:
        return EncodedCaptions([image.captions for image in self.images], vocabulary, max_words)

    def read(self, positions: Tensor | None = None) -> Tensor:
        """Returns the features of the pictures at these positions in `images`, or of all."""
        return self.cache.features[self.rows if positions is None else self.rows[positions]]
