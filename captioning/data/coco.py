"""Reads COCO captions files, with pycocotools."""

import contextlib
import io
import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from captioning.console import abbreviate
from captioning.data.tokenizer import clean
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json

ON_ERROR = ("refuse", "skip")  # what to do with pictures and captions that cannot be used
# The fields that each entry of a captions file must have, and their types.
FIELDS: dict[str, dict[str, type]] = {
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
    """The captioned pictures of one captions file, in the order of the file."""

    images: list[CaptionedImage]
    # The pictures that were left out or lost captions, by reason: {"no caption": ["7.png"], ...}.
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def references(self) -> dict[int, list[str]]:
        return {image.id: image.captions for image in self.images}


def load_coco(
    annotations: str | Path,
    image_folder: str | Path | None = None,
    on_error: str = "refuse",
    need_captions: bool = False,
) -> CaptionDataset:
    """Reads the captions of a COCO captions file, and finds its pictures.

    The pictures are in `image_folder`, or else in the folder that info.image_folder names. Captions
    without words and pictures whose file is missing cannot be used. With `need_captions`, pictures
    without a caption cannot be used either. With `on_error` "refuse" an error lists what cannot be
    used; "skip" leaves it out, and the result's `skipped` lists the pictures.
    """
    images: list[CaptionedImage] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for image in load_coco_unchanged(annotations, image_folder, need_folder=True).images:
        if not os.path.isfile(image.path):  # also False if the name is too long
            skipped["missing picture"].append(str(image.path))
            continue
        captions = clean(image.captions)
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


def load_coco_unchanged(
    annotations: str | Path, image_folder: str | Path | None = None, need_folder: bool = False
) -> CaptionDataset:
    """Reads the captions of a COCO captions file unchanged, as they are needed for scoring.

    The picture files may be missing. With `need_folder` the paths of the pictures are complete;
    without, they are the names in the captions file.
    """
    coco, data = COCO(), read_json(annotations)
    try:
        for table, fields in FIELDS.items():
            for row in data[table]:
                if not all(isinstance(row[key], kind) for key, kind in fields.items()):
                    raise TypeError(abbreviate(row))
        coco.dataset = data
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            coco.createIndex()
        folder = _picture_folder(data, annotations, image_folder) if need_folder else Path()
    except (LookupError, TypeError, AttributeError) as error:
        expected = "expected a COCO captions file, of images with an id and a file_name and "
        expected += f"annotations with an id, an image_id and a caption; got {error!r}"
        hint = "(captioning prepare converts other formats)"
        raise CaptioningError(f"{annotations}: {expected} {hint}") from error
    for table, index in (("images", coco.imgs), ("annotations", coco.anns)):
        if len(index) < len(data[table]):
            raise CaptioningError(f"{annotations}: ids occur more than once in {table!r}")
    if unknown := [*(coco.imgToAnns.keys() - coco.imgs.keys())]:
        raise CaptioningError(f"{annotations}: annotations of unknown pictures: {unknown[:5]}")
    captions = {i: [a["caption"] for a in coco.imgToAnns.get(i, [])] for i in coco.imgs}
    paths = {i: folder / image["file_name"] for i, image in coco.imgs.items()}
    return CaptionDataset([CaptionedImage(i, path, captions[i]) for i, path in paths.items()])


def _picture_folder(data: Any, annotations: str | Path, given: str | Path | None) -> Path:
    """Returns the folder of the pictures: `given`, or else the one that the file names."""
    if given is not None:
        if not Path(given).is_dir():
            raise CaptioningError(f"images: {given} is not a folder")
        return Path(given)
    folder = (data.get("info") or {}).get("image_folder")
    if not isinstance(folder, str):
        hint = "name their folder: --images (of train: --train-images, --val-images, --test-images)"
        raise CaptioningError(f"{annotations} does not say where its pictures are; {hint}")
    return Path(annotations).parent / folder
