"""Convert captioned pictures to COCO caption files: train, val and test."""

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
from captioning.data.words import tokenize
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json, read_text, write_json

SPLITS = ("train", "val", "test")
FORMATS = (
    "captions: a table with a header, the columns image and caption, separated by comma, tab, "
    "semicolon or bar, or a folder with one as captions.txt, .csv or .tsv; or "
    "dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json of Karpathy and Fei-Fei, "
    "with their own splits"
)


@dataclass
class Source:
    """Captions by file name, and the split and id of each picture if the source has them."""

    captions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    splits: dict[str, str] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)  # the places and contents of these


def read_source(path: str | Path) -> Source:
    """Read captions in one of the `FORMATS`, recognized by the name."""
    path = Path(path)
    if path.is_dir():
        names = ("captions.txt", "captions.csv", "captions.tsv")
        tables = [path / name for name in names if (path / name).is_file()]
        if not tables:
            raise CaptioningError(f"{path}: expected one of {', '.join(names)} in this folder")
        return _read_csv(tables[0])
    return _read_karpathy(path) if path.suffix == ".json" else _read_csv(path)


def _read_karpathy(path: Path) -> Source:
    data, source = read_json(path), Source()
    try:
        for image in data["images"]:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            # Karpathy's "restval" pictures of COCO are commonly trained on.
            source.splits[name] = {"restval": "train"}.get(image["split"], image["split"])
            if "cocoid" in image:
                source.ids[name] = int(image["cocoid"])
            source.captions[name] = [sentence["raw"].strip() for sentence in image["sentences"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaptioningError(
            f"{path}: expected Karpathy's format, images with filename, split and sentences "
            f"({error!r}); COCO caption files need no preparation"
        ) from error
    if strange := [split for split in source.splits.values() if split not in SPLITS][:5]:
        raise CaptioningError(f"{path}: unknown splits {strange}, expected {SPLITS}")
    return source


def _read_csv(path: Path) -> Source:
    source, (header, _, body) = Source(), read_text(path).partition("\n")
    separator = max(",\t;|", key=header.count)
    names = [column.strip().strip('"').lower() for column in header.split(separator)]
    image = next((c for c in ("image", "image_name", "file_name", "filename") if c in names), None)
    text = next((c for c in ("caption", "comment", "text") if c in names), None)
    if image is None or text is None:
        raise CaptioningError(
            f"{path}: expected a first line with the columns image and caption, got {header!r}"
        )
    try:
        rows = list(csv.reader(io.StringIO(f"{body}\nend"), delimiter=separator))
        if rows.pop() != ["end"]:  # it is in a quote
            raise csv.Error("the file ends in it")
    except csv.Error as error:
        raise CaptioningError(f"{path}: a quote that is not closed ({error})") from error
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) < len(names):
            source.bad_rows.append(f"{path}, row {number}: expected {len(names)} columns: {row}")
            continue
        # Unquoted commas: a caption in the last column takes all that is left.
        row[len(names) - 1 :] = [separator.join(row[len(names) - 1 :])]
        source.captions[row[names.index(image)].strip()].append(row[names.index(text)].strip())
    return source


def find_images(path: str | Path, source: Source) -> Path:
    """The folder of a source's pictures: its own, or one in that, such as Images."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = list(islice(source.captions, 100))
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if any(os.path.isfile(candidate / name) for name in names):
            return candidate
    return folder


@dataclass(frozen=True)
class Shares:
    """Shares of pictures to validate and to test on, drawn by a seed, where a source has no splits.

    From three pictures on, each share that is not 0 gets at least one.
    """

    val: float = 0.05
    test: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.val and 0 <= self.test and self.val + self.test < 1):  # nor NaN
            raise CaptioningError(
                "val, test: expected shares that leave pictures to train on, got "
                f"{self.val} and {self.test}"
            )

    def draw(self, names: Iterable[str]) -> dict[str, str]:
        """The split of each picture."""
        names = sorted(names)
        random.Random(self.seed).shuffle(names)
        least = len(names) >= 3  # of ten pictures, 5 % are none
        first = max(round(len(names) * self.val), least and self.val > 0)
        second = max(round(len(names) * (self.val + self.test)), first + (least and self.test > 0))
        split = lambda i: "val" if i < first else "test" if i < second else "train"
        return {name: split(i) for i, name in enumerate(names)}


def prepare(
    source: Source,
    images: Path,
    output: Path,
    shares: Shares = Shares(),
    on_error: str = "refuse",
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Check every picture and write `output`/captions_{train,val,test}.json.

    If a split is empty now, its file of an earlier run is removed: the pictures in it may be in
    another split. What cannot be used is refused or skipped, by `on_error`. Returns the number of
    pictures by split, and what was skipped by reason.
    """
    if not images.is_dir():
        raise CaptioningError(f"images: {images} is not a folder")
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    if source.bad_rows:
        skipped["bad row"] = source.bad_rows
    kept = _check_pictures(source, images, skipped)
    split_of = source.splits or shares.draw(kept)
    parts = {split: [name for name in kept if split_of.get(name) == split] for split in SPLITS}
    lines = list_reasons(skipped)
    if skipped and on_error == "refuse":
        raise CaptioningError(*lines, "(--on-error skip leaves them out)")
    if not parts["train"]:
        raise CaptioningError(*lines, "no picture is left to train on")
    folder = os.path.relpath(images, output)
    for split, names in parts.items():
        path = output / f"captions_{split}.json"
        if names:
            info = {"description": f"{split} split", "image_folder": folder}
            write_json(path, _coco(names, kept, source, info))
        elif path.exists():
            path.unlink()
            say(f"removed {path} of an earlier run: no picture is in this split now")
    return {split: len(names) for split, names in parts.items()}, skipped


def _check_pictures(
    source: Source, images: Path, skipped: defaultdict[str, list[str]]
) -> dict[str, list[str]]:
    """The captions of good pictures; reasons against others are added to `skipped`."""
    kept: dict[str, list[str]] = {}
    for name, captions in progress(source.captions.items(), "check pictures", unit="img"):
        try:
            load_image(images / name, 64)
        except ImageError as error:
            skipped["bad picture"].append(str(error))
            continue
        good = [" ".join(caption.split()) for caption in captions if tokenize(caption)]
        if len(good) < len(captions):
            skipped["caption without words"].append(name)
        if good:
            kept[name] = good
    return kept


def _coco(
    names: Sequence[str], kept: Mapping[str, list[str]], source: Source, info: dict[str, str]
) -> dict[str, object]:
    ids = {name: source.ids.get(name, i) for i, name in enumerate(source.captions, 1)}
    if twice := [i for i, n in Counter(ids[name] for name in names).items() if n > 1]:
        raise CaptioningError(f"several pictures have the same id: {twice[:5]}")
    images = [{"id": ids[name], "file_name": name} for name in names]
    captions = ({"image_id": ids[name], "caption": text} for name in names for text in kept[name])
    annotations = [{"id": i, **caption} for i, caption in enumerate(captions, 1)]
    return {"info": info, "images": images, "annotations": annotations}
