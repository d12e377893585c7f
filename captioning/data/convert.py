"""Converts captions of other formats to COCO captions files: train, val and test."""

import csv
import io
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from captioning.console import progress, say
from captioning.data.images import ImageError, load_image
from captioning.data.tokenizer import clean
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json, read_text, write_json

SPLITS = ("train", "val", "test")
SOURCE_HELP = (
    "captions: a table whose header names the columns image and caption, separated by comma, tab, "
    "semicolon or bar; a folder with this table in captions.txt, .csv or .tsv; dataset_coco.json, "
    "dataset_flickr8k.json or dataset_flickr30k.json of Karpathy and Fei-Fei, which have splits"
)


@dataclass
class Source:
    """The contents of a captions file of another format. All dictionaries are by file name."""

    captions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    splits: dict[str, str] = field(default_factory=dict)  # empty if the file has no splits
    ids: dict[str, int] = field(default_factory=dict)  # only of the pictures that have an id
    bad_rows: list[str] = field(default_factory=list)  # messages about rows with too few columns


def read_source(path: str | Path) -> Source:
    """Reads a JSON file in Karpathy's format, or a table in a file or folder; see `SOURCE_HELP`."""
    path = Path(path)
    if path.is_dir():
        names = ("captions.txt", "captions.csv", "captions.tsv")
        tables = [path / name for name in names if (path / name).is_file()]
        if not tables:
            raise CaptioningError(f"{path}: expected one of {', '.join(names)} in this folder")
        path = tables[0]
    return _read_karpathy(path) if path.suffix == ".json" else _read_csv(path)


def _read_karpathy(path: Path) -> Source:
    data, source = read_json(path), Source()
    try:
        for image in data["images"]:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            # It is common to train on the pictures of COCO that Karpathy calls "restval".
            source.splits[name] = {"restval": "train"}.get(image["split"], image["split"])
            if "cocoid" in image:
                source.ids[name] = int(image["cocoid"])
            source.captions[name] = [sentence["raw"].strip() for sentence in image["sentences"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = f"Karpathy's format, images with filename, split and sentences ({error!r})"
        hint = "COCO caption files need no preparation"
        raise CaptioningError(f"{path}: expected {expected}; {hint}") from error
    if unknown := [split for split in source.splits.values() if split not in SPLITS]:
        raise CaptioningError(f"{path}: unknown splits {unknown[:5]}, expected {SPLITS}")
    return source


def _read_csv(path: Path) -> Source:
    """Reads a table with a header. Adds rows with too few columns to `bad_rows`."""
    source, (header, _, body) = Source(), read_text(path).partition("\n")
    separator = max(",\t;|", key=header.count)
    names = [column.strip().strip('"').lower() for column in header.split(separator)]
    image_names = [c for c in ("image", "image_name", "file_name", "filename") if c in names]
    caption_names = [c for c in ("caption", "comment", "text") if c in names]
    if not image_names or not caption_names:
        expected = "expected a first line with the columns image and caption"
        raise CaptioningError(f"{path}: {expected}, got {header!r}")
    image_column, caption_column = names.index(image_names[0]), names.index(caption_names[0])
    try:
        # The row "end" is added. If it is not read back as a row of its own, a quote is still open.
        rows = list(csv.reader(io.StringIO(f"{body}\nend"), delimiter=separator))
        if rows.pop() != ["end"]:
            raise csv.Error("the file ends in it")
    except csv.Error as error:
        raise CaptioningError(f"{path}: a quote that is not closed ({error})") from error
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) < len(names):
            source.bad_rows.append(f"{path}, row {number}: expected {len(names)} columns: {row}")
            continue
        # A caption in the last column may contain separators without quotes.
        row[len(names) - 1 :] = [separator.join(row[len(names) - 1 :])]
        source.captions[row[image_column].strip()].append(row[caption_column].strip())
    return source


def find_images(path: str | Path, source: Source) -> Path:
    """Finds the folder of the pictures: the folder of `path`, or one inside it, such as Images."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = list(islice(source.captions, 100))
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if any(os.path.isfile(candidate / name) for name in names):
            return candidate
    return folder


@dataclass(frozen=True)
class Shares:
    """Divides pictures into splits at random, for a source that has no splits."""

    val: float = 0.05  # the share of pictures to validate on
    test: float = 0.05  # the share of pictures to test on
    seed: int = 0

    def __post_init__(self) -> None:
        # NaN is refused too, because every comparison with NaN is false.
        if not (0 <= self.val and 0 <= self.test and self.val + self.test < 1):
            expected = "expected shares that leave pictures to train on"
            raise CaptioningError(f"val, test: {expected}, got {self.val} and {self.test}")

    def draw(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the split of each picture, by its name."""
        names = sorted(names)
        random.Random(self.seed).shuffle(names)
        enough = len(names) >= 3  # then each share above 0 gets at least one picture
        val_end = max(round(len(names) * self.val), enough and self.val > 0)
        end = max(round(len(names) * (self.val + self.test)), val_end + (enough and self.test > 0))
        split = lambda i: "val" if i < val_end else "test" if i < end else "train"
        return {name: split(i) for i, name in enumerate(names)}


def prepare(
    source: Source, images: Path, output: Path, shares: Shares = Shares(), on_error: str = "refuse"
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Checks every picture and writes captions_train.json, captions_val.json, captions_test.json.

    If a split has no pictures, its file from an earlier run is removed, because the pictures in
    that file may be in another split now. `shares` divides the pictures, if the source has no
    splits. Bad pictures, captions and rows raise an error, or with `on_error` "skip" are left out.
    Returns the number of pictures of each split, and what was skipped, by reason.
    """
    if not images.is_dir():
        raise CaptioningError(f"images: {images} is not a folder")
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    if source.bad_rows:
        skipped["bad row"] = source.bad_rows
    kept = _check_pictures(source, images, skipped)
    split_of = source.splits or shares.draw(kept)
    names_of = {split: [name for name in kept if split_of.get(name) == split] for split in SPLITS}
    lines = list_reasons(skipped)
    if skipped and on_error == "refuse":
        raise CaptioningError(*lines, "(--on-error skip leaves them out)")
    if not names_of["train"]:
        raise CaptioningError(*lines, "no picture is left to train on")
    for split, names in names_of.items():
        path = output / f"captions_{split}.json"
        if names:
            folder = os.path.relpath(images, output)
            info = {"description": f"{split} split", "image_folder": folder}
            write_json(path, _coco_data(names, kept, source, info))
        elif path.exists():
            path.unlink()
            say(f"removed {path} of an earlier run: no picture is in this split now")
    return {split: len(names) for split, names in names_of.items()}, skipped


def _check_pictures(
    source: Source, images: Path, skipped: defaultdict[str, list[str]]
) -> dict[str, list[str]]:
    """Returns the captions of usable pictures; adds bad pictures and captions to `skipped`."""
    kept: dict[str, list[str]] = {}
    for name, captions in progress(source.captions.items(), "check pictures", unit="img"):
        try:
            load_image(images / name, 64)
        except ImageError as error:
            skipped["bad picture"].append(str(error))
            continue
        good = clean(captions)
        if len(good) < len(captions):
            skipped["caption without words"].append(name)
        if good:
            kept[name] = good
    return kept


def _coco_data(
    names: Sequence[str], kept: Mapping[str, list[str]], source: Source, info: dict[str, str]
) -> dict[str, object]:
    """Returns the data of a COCO file with the pictures `names`; `kept` has their captions."""
    ids = {name: source.ids.get(name, i) for i, name in enumerate(source.captions, 1)}
    if twice := [i for i, n in Counter(ids[name] for name in names).items() if n > 1]:
        raise CaptioningError(f"several pictures have the same id: {twice[:5]}")
    images = [{"id": ids[name], "file_name": name} for name in names]
    captions = ({"image_id": ids[name], "caption": text} for name in names for text in kept[name])
    annotations = [{"id": i, **caption} for i, caption in enumerate(captions, 1)]
    return {"info": info, "images": images, "annotations": annotations}
