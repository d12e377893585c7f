"""Captioned pictures: COCO caption files, and batches of their captions."""

import itertools
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.console import short
from captioning.data.tokenizer import tokenize
from captioning.data.vocabulary import PAD, Vocabulary
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json

ON_ERROR = ("refuse", "skip")
PREPARE = "captioning prepare makes COCO captions files of other formats"


@dataclass(frozen=True)
class CaptionedImage:
    """A picture with its captions."""

    id: int
    path: Path
    captions: list[str]
    facts: dict[str, Any] | None = None  # of the embedded data set


@dataclass(frozen=True)
class CaptionDataset:
    """Captioned pictures of one split, in the order of their file."""

    images: list[CaptionedImage]
    # What was left out, by reason: {"caption without words": ["annotation 7"], ...}.
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def references(self) -> dict[int, list[str]]:
        """The captions of each picture, by its id."""
        return {image.id: image.captions for image in self.images}

    def report_skipped(self) -> list[str]:
        """One line per reason; none if nothing was skipped."""
        return [f"skipped {line}" for line in list_reasons(self.skipped)]


def load_coco(
    annotations: str | Path,
    image_folder: str | Path | None = None,
    on_error: str = "refuse",
    need_captions: bool = False,
) -> CaptionDataset:
    """Read a COCO captions file, whose info.image_folder stands for an `image_folder` of None.

    Captions without words, pictures without a file and, with `need_captions`, without captions are
    refused or, if `on_error` is "skip", counted in the result. A damaged file is refused.
    """
    data, annotations_of = _read_coco(annotations)
    folder = picture_folder(data, annotations, image_folder)
    images: list[CaptionedImage] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for image in data["images"]:
        path = folder / image["file_name"]
        if not os.path.isfile(path):  # also for a name that is too long
            skipped["missing picture"].append(str(path))
            continue
        captions = []
        for annotation in annotations_of[image["id"]]:
            caption = " ".join(annotation["caption"].split())
            if tokenize(caption):
                captions.append(caption)
            else:
                skipped["caption without words"].append(f"annotation {annotation['id']}")
        if need_captions and not captions:
            skipped["no caption"].append(str(path))
            continue
        images.append(CaptionedImage(image["id"], path, captions, image.get("facts")))
    dataset = CaptionDataset(images, skipped)
    if skipped and on_error == "refuse":
        lines = list_reasons(skipped)
        raise CaptioningError(f"{annotations}:", *lines, "(--on-error skip leaves them out)")
    if not images:
        raise CaptioningError(f"{annotations}: no picture is left")
    return dataset


def picture_folder(data: Any, annotations: str | Path, given: str | Path | None = None) -> Path:
    """The folder of the pictures of a COCO file: as given, or as the file says."""
    if given is not None:
        if not Path(given).is_dir():
            raise CaptioningError(f"images: {given} is not a folder")
        return Path(given)
    folder = data["info"].get("image_folder") if isinstance(data.get("info"), dict) else None
    if folder is None:
        raise CaptioningError(f"{annotations} does not say where its pictures are: give --images")
    if not isinstance(folder, str):
        raise CaptioningError(
            f"{annotations}: expected text as image_folder in 'info', got {short(folder)}"
        )
    return Path(annotations).parent / folder


def load_references(
    annotations: str | Path, image_folder: str | Path | None = None, need_folder: bool = False
) -> CaptionDataset:
    """Read the captions of a COCO file, unchanged, for scoring; pictures may be missing.

    With `need_folder` their paths are those of their files, see `load_coco`.
    """
    data, annotations_of = _read_coco(annotations)
    folder = picture_folder(data, annotations, image_folder) if need_folder else Path()
    captions = lambda image: [a["caption"] for a in annotations_of[image["id"]]]
    images = data["images"]
    return CaptionDataset(
        [CaptionedImage(i["id"], folder / i["file_name"], captions(i)) for i in images]
    )


def _read_coco(path: str | Path) -> tuple[Any, defaultdict[int, list[Any]]]:
    """What is in a COCO captions file, and the annotations of each picture by its id."""
    data = read_json(path, PREPARE)
    required = {"images": ("id", "file_name"), "annotations": ("id", "image_id", "caption")}
    for table, keys in required.items():
        if not isinstance(data, dict) or not isinstance(data.get(table), list):
            raise CaptioningError(
                f"{path}: expected a COCO captions file with a list {table!r}; {PREPARE}"
            )
        for row, key in itertools.product(data[table], keys):
            kind, told = (int, "an integer") if key.endswith("id") else (str, "text")
            if not isinstance(row, dict) or type(row.get(key)) is not kind:
                raise CaptioningError(
                    f"{path}: expected {told} as {key!r} in {table!r}, got {short(row)}"
                )
        counts = Counter(row["id"] for row in data[table])
        if twice := [i for i, n in counts.items() if n > 1]:
            raise CaptioningError(f"{path}: ids occur more than once in {table!r}: {twice[:5]}")
    known = {image["id"] for image in data["images"]}
    if lost := [a["id"] for a in data["annotations"] if a["image_id"] not in known]:
        raise CaptioningError(f"{path}: annotations of unknown pictures: {lost[:5]}")
    annotations_of: defaultdict[int, list[Any]] = defaultdict(list)
    for annotation in data["annotations"]:
        annotations_of[annotation["image_id"]].append(annotation)
    return data, annotations_of


@dataclass(frozen=True)
class Batch:
    """Captions to train on, longest first; all tensors are int64."""

    indices: Tensor  # [B], which captions of the set they are
    images: Tensor  # [M], rows of the feature table, each picture once
    rows: Tensor  # [B], which of `images` each caption describes
    captions: Tensor  # [B,T], <start>, the words, <end>, <pad>
    lengths: Tensor  # [B], tokens of each caption with <start> and <end>, decreasing


class EncodedCaptions:
    """The captions of pictures as one table of tokens; `cut` had more than `max_words` words."""

    def __init__(
        self, images: list[list[str]], vocabulary: Vocabulary, max_words: int = 50
    ) -> None:
        captions = [(row, caption) for row, group in enumerate(images) for caption in group]
        if not captions:
            raise CaptioningError("there is no caption to train on")
        self.cut = sum(len(tokenize(caption)) > max_words for _, caption in captions)
        self.image = torch.tensor([row for row, _ in captions])
        tokens = [torch.tensor(vocabulary.encode(caption, max_words)) for _, caption in captions]
        self.lengths = torch.tensor([len(row) for row in tokens])
        self.tokens = pad_sequence(tokens, batch_first=True, padding_value=PAD).int()

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Tensor) -> Batch:
        """The captions with these indices, the longest first."""
        indices = indices[self.lengths[indices].argsort(descending=True, stable=True)]
        lengths = self.lengths[indices]
        images, rows = self.image[indices].unique(return_inverse=True)
        captions = self.tokens[indices, : int(lengths[0])].long()
        return Batch(indices, images, rows, captions, lengths)

    def epoch(
        self, batch_size: int, seed: int, epoch: int, by_picture: bool = False
    ) -> list[Tensor]:
        """The caption indices of each batch, see `shuffled`.

        With `by_picture` all captions of a picture are in one batch, and batches differ in size.
        There are as many of them as without, but no more than pictures.
        """
        if not by_picture:
            return shuffled(len(self), batch_size, seed, epoch)
        counts = self.image.unique_consecutive(return_counts=True)[1]
        of_picture = torch.arange(len(self)).split(counts.tolist())
        per_batch = max(1.0, batch_size * len(counts) / len(self))
        pictures = shuffled(len(counts), per_batch, seed, epoch)
        return [torch.cat([of_picture[i] for i in part.tolist()]) for part in pictures]


def shuffled(count: int, batch_size: float, seed: int, epoch: int) -> list[Tensor]:
    """The indices below `count` in random batches, the same for the same arguments.

    The batches are of about equal size, so that none is too small for BatchNorm.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=generator)
    return list(order.tensor_split(max(1, round(count / batch_size))))
