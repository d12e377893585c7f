"""Captioned pictures, from COCO caption files, which pycocotools reads."""

import contextlib
import io
import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from captioning.console import short
from captioning.data.words import tokenize
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json

ON_ERROR = ("refuse", "skip")
COLUMNS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "caption": str},
}


@dataclass(frozen=True)
class CaptionedImage:
    """A picture with its captions."""

    id: int
    path: Path
    captions: list[str]


@dataclass(frozen=True)
class CaptionDataset:
    """Captioned pictures of one split, in the order of their file."""

    images: list[CaptionedImage]
    # What was left out, by reason: {"caption without words": ["val/7.png"], ...}.
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
    images: list[CaptionedImage] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for image in load_references(annotations, image_folder, need_folder=True).images:
        if not os.path.isfile(image.path):  # also for a name that is too long
            skipped["missing picture"].append(str(image.path))
            continue
        captions = [" ".join(caption.split()) for caption in image.captions if tokenize(caption)]
        if len(captions) < len(image.captions):
            skipped["caption without words"].append(str(image.path))
        if need_captions and not captions:
            skipped["no caption"].append(str(image.path))
            continue
        images.append(replace(image, captions=captions))
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
    coco, data = COCO(), read_json(annotations)
    try:
        for table, columns in COLUMNS.items():
            for row in data[table]:
                if not all(isinstance(row[key], kind) for key, kind in columns.items()):
                    raise TypeError(short(row))
        coco.dataset = data
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            coco.createIndex()
        folder = _picture_folder(data, annotations, image_folder) if need_folder else Path()
    except (LookupError, TypeError, AttributeError) as error:
        raise CaptioningError(
            f"{annotations}: expected a COCO captions file, of images with an id and a file_name "
            f"and annotations with an id, an image_id and a caption; got {error!r} (captioning "
            "prepare makes one of other formats)"
        ) from error
    for table, index in (("images", coco.imgs), ("annotations", coco.anns)):
        if len(index) < len(data[table]):
            raise CaptioningError(f"{annotations}: ids occur more than once in {table!r}")
    if lost := [*(coco.imgToAnns.keys() - coco.imgs.keys())]:
        raise CaptioningError(f"{annotations}: annotations of unknown pictures: {lost[:5]}")
    captions = {i: [a["caption"] for a in coco.imgToAnns.get(i, [])] for i in coco.imgs}
    return CaptionDataset(
        [
            CaptionedImage(i, folder / image["file_name"], captions[i])
            for i, image in coco.imgs.items()
        ]
    )


def _picture_folder(data: Any, annotations: str | Path, given: str | Path | None) -> Path:
    """The folder of the pictures of a COCO file: as given, or as the file says."""
    if given is not None:
        if not Path(given).is_dir():
            raise CaptioningError(f"images: {given} is not a folder")
        return Path(given)
    folder = (data.get("info") or {}).get("image_folder")
    if not isinstance(folder, str):
        raise CaptioningError(
            f"{annotations} does not say where its pictures are: name their folder "
            "(--images; of train: --train-images, --val-images, --test-images)"
        )
    return Path(annotations).parent / folder
