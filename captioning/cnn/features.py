"""The feature cache: each picture goes through the frozen CNN once, and training reads features.

A cache is one file of torch.save: "features" [N,...] and "state" [N] (one byte per picture: 0 to
do, 1 done, 2 broken picture). Its name says which CNN and pictures it is of. It is memory-mapped
for writing and for reading; after a killed run, the pictures whose state is 0 are still to do.
"""

import hashlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.cnn.frozen import FrozenCNN
from captioning.config import FROM_0, Checked, setting
from captioning.console import printable, progress, say
from captioning.data import (
    ON_ERROR,
    CaptionDataset,
    CaptionedImage,
    ImageError,
    Transform,
    Vocabulary,
)
from captioning.errors import CaptioningError
from captioning.files import lock_files, open_regular, write_atomically, writing

TO_DO, DONE, BROKEN = range(3)


class FeatureCache:
    """An open cache file; it is a CaptioningError if its features have not the given shape [N,...].

    Its tensors `features` [N,...] and `state` [N] (TO_DO, DONE or BROKEN) are mapped, one row per
    picture.
    """

    def __init__(self, path: str | Path, shape: tuple[int, ...], writable: bool = False) -> None:
        self.path = Path(path)
        mapped = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        file = open_regular(self.path, "r+b" if writable else "rb")
        try:
            with file, torch.serialization.set_default_mmap_options(mapped):
                # By its number: PyTorch takes no name that is not UTF-8.
                data = torch.load(f"/dev/fd/{file.fileno()}", mmap=True, weights_only=True)
            self.features, self.state = data["features"], data["state"]
            if not (self.features.is_floating_point() and self.features.is_contiguous()):
                raise ValueError("its features are no table of numbers")
            shapes = tuple(self.features.shape), tuple(self.state.shape)
            if shapes != (shape, shape[:1]):
                raise ValueError(f"expected shapes {(shape, shape[:1])}, got {shapes}")
            if self.state.dtype != torch.uint8 or (self.state > BROKEN).any():
                raise ValueError("a picture is neither to do, nor done, nor broken")
        except Exception as error:  # a damaged zip or pickle raises anything
            told = f"{path} is not a feature cache (truncated?): {error}. Delete it."
            raise CaptioningError(told) from error

    @staticmethod
    def create(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Reserve the whole file at once, so that a full disk is noticed at the beginning."""
        features, state = torch.empty(shape, dtype=dtype), torch.empty(shape[0], dtype=torch.uint8)

        def reserve(file: Any) -> None:
            with torch.serialization.skip_data():  # which leaves zeros in the file
                torch.save({"features": features, "state": state}, file)
            with writing(path, f" ({features.nbytes / 1e6:,.0f} MB needed)"):
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, file.tell())

        write_atomically(path, reserve)


def cache_path(
    folder: str | Path, annotations: str | Path, cnn: FrozenCNN, images: Sequence[CaptionedImage]
) -> Path:
    """The cache, in a folder of caches, of a captions file's pictures: STEM-HASH.pt.

    The hash is of all that it depends on: the CNN, its weights, pooling and transform, the folder
    of `annotations`, and each picture's id, the name of its file without folders and the file's
    size. What is in these files is left out, because reading all of them would take too long.
    """
    annotations = Path(annotations)
    # The CNN's name too: some differ only in what has no weights.
    parts = [annotations.resolve().parent, cnn.config.name, cnn.fingerprint()]
    pictures = [f"{i.id} {i.path.name} {i.path.stat().st_size}" for i in images]
    digest = hashlib.sha256(os.fsencode("\n".join(map(str, parts + pictures))))
    return Path(folder) / f"{annotations.stem}-{digest.hexdigest()[:16]}.pt"


@dataclass(frozen=True)
class Extraction(Checked):
    """How pictures are encoded."""

    on_error: str = setting(
        "refuse or skip what is broken or missing: pictures, captions, rows of a list",
        "refuse",
        choices=ON_ERROR,
    )
    device: str = setting("cpu, cuda, cuda:1, ...", "cpu", metavar="DEVICE")
    workers: int = setting("processes that load pictures, besides this one", 0, bounds=FROM_0)


def extract_features(
    cnn: FrozenCNN,
    images: Sequence[CaptionedImage],
    folder: str | Path,
    annotations: str | Path,
    how: Extraction | None = None,
    batch_size: int = 32,
) -> FeatureCache:
    """Encode every picture of a captions file into its cache, or those that the cache lacks.

    Which file in `folder` that is says `cache_path`. With on_error "refuse" it stops at a broken
    picture, even at one that was skipped before; with "skip" it names and marks broken pictures. A
    CaptioningError says so if the cache is damaged, or if the disk is full.
    """
    path, how = cache_path(folder, annotations, cnn, images), how or Extraction()
    shape = (len(images), *cnn.feature_shape)
    unfinished = torch.tensor([TO_DO, BROKEN] if how.on_error == "refuse" else [TO_DO])
    if path.exists():  # a finished one is neither locked nor written
        cache = FeatureCache(path, shape)
        if not torch.isin(cache.state, unfinished).any():
            return cache
    with lock_files(path, wait=True):
        if not path.exists():
            FeatureCache.create(path, shape, torch.float16 if cnn.grid else torch.float32)
        cache = FeatureCache(path, shape, writable=True)
        cache.state[torch.isin(cache.state, unfinished)] = TO_DO
        _encode(cnn.to(how.device), images, cache, how, batch_size)
    return cache


def _encode(
    cnn: FrozenCNN,
    images: Sequence[CaptionedImage],
    cache: FeatureCache,
    how: Extraction,
    batch_size: int,
) -> None:
    """Fill the rows that are to do."""
    rows = (cache.state == TO_DO).nonzero().flatten().tolist()
    load = partial(_load, images, cnn.transform)
    loader = DataLoader(cast(Any, rows), batch_size, num_workers=how.workers, collate_fn=load)
    device = next(cnn.parameters()).device
    broken = []
    title = f"encode {printable(cache.path.stem.rpartition('-')[0])}"  # without its hash
    with progress(None, title, total=len(rows), unit="img") as bar:
        for items in loader:
            good = [(row, item) for row, item in items if isinstance(item, Tensor)]
            for row, item in items:
                if isinstance(item, str):
                    if how.on_error == "refuse":
                        raise ImageError(item, "(--on-error skip leaves broken pictures out)")
                    broken.append(item)
                    cache.state[row] = BROKEN
            if good:
                found, pixels = zip(*good, strict=True)
                features = cnn(torch.stack(pixels).to(device))
                cache.features[[*found]] = features.to("cpu", cache.features.dtype)
                cache.state[[*found]] = DONE  # after the features: a killed run repeats them
            bar.update(len(items))
    with cache.path.open("rb") as file:
        os.fsync(file)  # what was mapped too
    if broken:
        say(f"skipped {len(broken)} broken pictures:", *(f"  {item}" for item in broken[:10]))


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
