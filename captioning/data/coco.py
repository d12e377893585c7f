"""Captioned pictures, from COCO caption files, which pycocotools reads."""

import contextlib
import io
import itertools
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from captioning.console import short
from captioning.data.words import tokenize
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json

ON_ERROR = ("refuse", "skip")
REQUIRED = {"images": ("id", "file_name"), "annotations": ("id", "image_id", "caption")}


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
    coco = _read(annotations)
    folder = picture_folder(coco.dataset, annotations, image_folder)
    images: list[CaptionedImage] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for image in coco.dataset["images"]:
        path = folder / image["file_name"]
        if not os.path.isfile(path):  # also for a name that is too long
            skipped["missing picture"].append(str(path))
            continue
        captions = []
        for annotation in coco.imgToAnns.get(image["id"], []):
            caption = " ".join(annotation["caption"].split())
            if tokenize(caption):
                captions.append(caption)
            else:
                skipped["caption without words"].append(f"annotation {annotation['id']}")
        if need_captions and not captions:
            skipped["no caption"].append(str(path))
            continue
        images.append(CaptionedImage(image["id"], path, captions, image.get("facts")))
    if skipped and on_error == "refuse":
        lines = list_reasons(skipped)
        raise CaptioningError(f"{annotations}:", *lines, "(--on-error skip leaves them out)")
    if not images:
        raise CaptioningError(f"{annotations}: no picture is left")
    return CaptionDataset(images, skipped)


def load_references(
    annotations: str | Path, image_folder: str | Path | None = None, need_folder: bool = False
) -> CaptionDataset:
    """Read the captions of a COCO file, unchanged, for scoring; pictures may be missing.

    With `need_folder` their paths are those of their files, see `load_coco`.
    """
    coco, images = _read(annotations), []
    folder = picture_folder(coco.dataset, annotations, image_folder) if need_folder else Path()
    for image in coco.dataset["images"]:
        captions = [annotation["caption"] for annotation in coco.imgToAnns.get(image["id"], [])]
        images.append(CaptionedImage(image["id"], folder / image["file_name"], captions))
    return CaptionDataset(images)


def picture_folder(data: Any, annotations: str | Path, given: str | Path | None = None) -> Path:
    """The folder of the pictures of a COCO file: as given, or as the file says."""
    if given is not None:
        if not Path(given).is_dir():
            raise CaptioningError(f"images: {given} is not a folder")
        return Path(given)
    info = data.get("info")
    folder = info.get("image_folder") if isinstance(info, dict) else None
    if not isinstance(folder, str):
        raise CaptioningError(
            f"{annotations} does not say where its pictures are: name their folder "
            "(--images; of train: --train-images, --val-images, --test-images)"
        )
    return Path(annotations).parent / folder


def _read(path: str | Path) -> COCO:
    """The index of a COCO captions file; a CaptioningError says what is wrong with the file."""
    data = read_json(path)
    for table, keys in REQUIRED.items():
        if not isinstance(data, dict) or not isinstance(data.get(table), list):
            raise CaptioningError(
                f"{path}: expected a COCO captions file with a list {table!r}; "
                "captioning prepare makes one of other formats"
            )
        for row, key in itertools.product(data[table], keys):
            kind, expected = (int, "an integer") if key.endswith("id") else (str, "text")
            if not isinstance(row, dict) or type(row.get(key)) is not kind:
                raise CaptioningError(
                    f"{path}: expected {expected} as {key!r} in {table!r}, got {short(row)}"
                )
        counts = Counter(row["id"] for row in data[table])
        if twice := [i for i, n in counts.items() if n > 1]:
            raise CaptioningError(f"{path}: ids occur more than once in {table!r}: {twice[:5]}")
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco.createIndex()
    if lost := [a["id"] for a in data["annotations"] if a["image_id"] not in coco.imgs]:
        raise CaptioningError(f"{path}: annotations of unknown pictures: {lost[:5]}")
    return coco
