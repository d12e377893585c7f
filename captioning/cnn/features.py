"""The feature cache: each picture goes through the frozen CNN once, and training reads features.

A cache is one safetensors file: "features" [N, ...], "ids" [N] and "state" [N] (one byte per
picture: 0 to do, 1 done, 2 broken picture), with a key in its metadata. It is memory-mapped for
writing and for reading; after a killed run, the pictures whose state is 0 are still to do.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.cnn.frozen import FrozenCNN
from captioning.config import FROM_0, Checked, setting
from captioning.console import printable, progress, say, short
from captioning.data import (
    ON_ERROR,
    CaptionDataset,
    CaptionedImage,
    ImageError,
    Transform,
    Vocabulary,
)
from captioning.errors import CaptioningError
from captioning.files import lock_files, open_regular, write_atomically

_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8}
_NAMES = {"float16": "F16", "float32": "F32"}
TO_DO, DONE, BROKEN = range(3)


class FeatureCache:
    """An open cache file.

    Its arrays `features` [N,...], `ids` [N] and `state` [N] (TO_DO, DONE or BROKEN) are mapped,
    one row per picture; `metadata` is the key: which CNN, weights, transform and pictures.
    """

    def __init__(self, path: str | Path, mode: Literal["r", "r+"] = "r") -> None:
        self.path = Path(path)
        try:
            # safe_open checks the header and the size, and numpy maps what it may write.
            with open_regular(self.path) as file, safe_open(self.path, "np") as checked:
                self.metadata = checked.metadata() or {}
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            arrays = []
            for entry in (header["features"], header["ids"], header["state"]):
                dtype, begin = _DTYPES[entry["dtype"]], 8 + size + entry["data_offsets"][0]
                arrays.append(np.memmap(path, dtype, mode, begin, tuple(entry["shape"])))
            self.features, self.ids, self.state = arrays
            if not self.ids.shape == self.state.shape == self.features.shape[:1]:
                raise ValueError("its tables are not of the same pictures")
            if (self.state > BROKEN).any():
                raise ValueError("a picture is neither to do, nor done, nor broken")
            if self.features.dtype.name not in _NAMES:
                raise ValueError(f"its features are {self.features.dtype}")
        except (SafetensorError, ValueError, KeyError) as error:
            raise CaptioningError(f"{path} is not a feature cache (truncated?): {error}") from error

    @staticmethod
    def create(
        path: Path, ids: Sequence[int], shape: Sequence[int], dtype: str, key: dict[str, str]
    ) -> None:
        """Reserve the whole file at once, so that a full disk is noticed at the beginning."""
        header: dict[str, Any] = {"__metadata__": {**key, "dtype": dtype}}
        end = 0
        for name, kind, row in (
            ("ids", "I64", ()),
            ("features", _NAMES[dtype], shape),
            ("state", "U8", ()),
        ):
            full = [len(ids), *row]
            begin, end = end, end + math.prod(full) * np.dtype(_DTYPES[kind]).itemsize
            header[name] = {"dtype": kind, "shape": full, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # aligned, as in safetensors

        def reserve(file: Any) -> None:
            file.write(len(text).to_bytes(8, "little") + text + np.asarray(ids, "<i8").tobytes())
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
            else:
                file.truncate(8 + len(text) + end)

        try:
            write_atomically(path, reserve)
        except CaptioningError as error:
            raise CaptioningError(f"{error} ({end / 1e6:,.0f} MB needed)") from error

    def check(self, key: dict[str, str], ids: Sequence[int], shape: Sequence[int]) -> None:
        """Refuse it unless it has this key and these pictures."""
        changed = [
            f"its {name} is {short(self.metadata.get(name))}, expected {value!r}"
            for name, value in key.items()
            if self.metadata.get(name) != value
        ]
        if self.ids.tolist() != list(ids) or self.features.shape[1:] != tuple(shape):
            changed.append("its tables are of other pictures")
        if changed:
            told = f"{self.path} is stale: {changed[0]}. Delete it or name another file."
            raise CaptioningError(told)

    def rows(self, ids: Sequence[int]) -> Tensor:
        """The rows of these pictures; -1 for broken and missing ones."""
        where = {int(i): row for row, i in enumerate(self.ids) if self.state[row] == DONE}
        return torch.tensor([where.get(i, -1) for i in ids])

    def read(self, rows: Tensor) -> Tensor:
        """Features of the given rows, as they are stored: float16 or float32."""
        return torch.from_numpy(np.asarray(self.features[rows.numpy()]))


def cache_path(folder: str | Path, annotations: str | Path) -> Path:
    """The file, in a folder of caches, of the pictures of a captions file.

    A hash of the folder of `annotations` distinguishes a/captions.json from b/captions.json.
    """
    annotations = Path(annotations)
    parent = hashlib.sha256(os.fsencode(annotations.resolve().parent)).hexdigest()[:8]
    return Path(folder) / f"{annotations.stem}-{parent}.st"


def cache_key(cnn: FrozenCNN, images: Sequence[CaptionedImage]) -> dict[str, str]:
    """What a cache depends on: CNN, weights, pooling, transform, and the pictures.

    Pictures are compared by their ids, the names of their files without folders, and the sizes of
    these files, not by their contents, because reading all of them would take too long.
    """
    lines = [f"{i.id} {i.path.name} {i.path.stat().st_size}\n" for i in images]
    pictures = hashlib.sha256(os.fsencode("".join(lines)))
    return {
        "cnn": cnn.config.name,
        "weights": os.path.basename(cnn.config.weights),  # a file may move
        "pool": cnn.config.pool,
        "transform": json.dumps(asdict(cnn.transform)),
        "fingerprint": cnn.fingerprint(),
        "pictures": f"{len(images)} pictures, {pictures.hexdigest()[:16]}",
    }


class _Pictures(Dataset[tuple[int, Tensor | str]]):
    """By row, the input of the CNN or what is wrong with the picture."""

    def __init__(self, images: Sequence[CaptionedImage], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        return row, self.transform.load(self.images[row].path)


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
    path: str | Path,
    how: Extraction | None = None,
    batch_size: int = 32,
) -> FeatureCache:
    """Encode every picture into the cache `path`, or those that an unfinished cache lacks.

    A changed picture is noticed if its file has another size, see `cache_key`. With on_error
    "refuse" it stops at a broken picture, even at one that was skipped before; with "skip" it names
    and marks broken pictures. A CaptioningError says so if the cache belongs to another CNN,
    weights, transform or pictures, or if the disk is full.
    """
    path, how = Path(path), how or Extraction()
    ids, key = [image.id for image in images], cache_key(cnn, images)
    unfinished = (TO_DO, BROKEN) if how.on_error == "refuse" else (TO_DO,)

    def opened(mode: Literal["r", "r+"]) -> FeatureCache:
        cache = FeatureCache(path, mode)
        cache.check(key, ids, cnn.feature_shape)
        return cache

    if path.exists():  # a finished one is neither locked nor written
        cache = opened("r")
        if not np.isin(cache.state, unfinished).any():
            return cache
    with lock_files(path, wait=True):
        if not path.exists():
            dtype = "float16" if cnn.grid else "float32"
            FeatureCache.create(path, ids, cnn.feature_shape, dtype, key)
        cache = opened("r+")
        cache.state[np.isin(cache.state, unfinished)] = TO_DO
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
    rows = np.flatnonzero(cache.state == TO_DO).tolist()
    pictures = _Pictures(images, cnn.transform)
    loader = DataLoader(
        pictures, batch_size, sampler=rows, num_workers=how.workers, collate_fn=list
    )
    device = next(cnn.parameters()).device
    broken = []
    stem = cache.path.stem
    title = f"encode {printable(stem.rpartition('-')[0] or stem)}"  # without `cache_path`'s hash
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
                cache.features[[*found]] = cnn(torch.stack(pixels).to(device)).cpu().numpy()
                cache.state[[*found]] = DONE  # after the features: a killed run repeats them
            bar.update(len(items))
    cache.features.flush()
    cache.state.flush()
    if broken:
        say(f"skipped {len(broken)} broken pictures:", *(f"  {item}" for item in broken[:10]))


class FeatureTable:
    """Captioned pictures with features; broken pictures are left out."""

    def __init__(self, dataset: CaptionDataset, cache: FeatureCache) -> None:
        rows = cache.rows([image.id for image in dataset.images])
        self.images = [image for image, r in zip(dataset.images, rows, strict=True) if r >= 0]
        if not self.images:
            raise CaptioningError(f"{cache.path} holds no features of this data set")
        self.rows = rows[rows >= 0]
        self.ids = [image.id for image in self.images]
        self.references = {image.id: image.captions for image in self.images}
        self.cache = cache

    def tokens(self, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """The tokens of each picture's captions, without <start>."""
        return [[vocabulary.encode(c)[1:] for c in image.captions] for image in self.images]

    def read(self, images: Tensor | None = None) -> Tensor:
        """Features of pictures by position, as the cache stores them; of all if None."""
        return self.cache.read(self.rows if images is None else self.rows[images])
