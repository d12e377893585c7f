"""Convert captioned pictures in other formats to COCO caption files: train, val and test."""

import csv
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from captioning.config import setting
from captioning.console import progress, say, short
from captioning.data.images import EXTENSIONS, ImageError, image_files, load_image
from captioning.data.tokenizer import tokenize
from captioning.errors import CaptioningError, list_reasons
from captioning.files import read_json, read_text, write_json, writing

SPLITS = ("train", "val", "test")
FORMATS = {
    "karpathy": "dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json of Karpathy "
    "and Fei-Fei, with their own splits",
    "flickr": "Flickr8k.token.txt or results_20130124.token: name.jpg#0<TAB>caption",
    "csv": "a header with image (or image_name) and caption (or comment), separated by comma, tab, "
    "semicolon or bar: captions.txt of Flickr8k as it is commonly shared",
    "folder": "with a captions.txt (or .csv, .tsv) as above, or with pictures, each with its "
    "captions in a .txt of the same name, one per line",
}


@dataclass
class Source:
    """Captions by file name, and the split and id of each picture if the source has them."""

    captions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    splits: dict[str, str] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)  # the places and contents of these


def read_source(path: str | Path) -> Source:
    """Read captions of any of `FORMATS`, recognized by the content."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".json":
        return _read_karpathy(path)
    text = read_text(path)
    first = text.split("\n", 1)[0]
    if "#" in first.split("\t")[0] and "\t" in first:
        return _read_flickr(path, text)
    return _read_csv(path, text)


def _read_karpathy(path: Path) -> Source:
    data, source = read_json(path), Source()
    try:
        for image in data["images"]:
            name = "/".join(_text(p) for p in (image.get("filepath"), image["filename"]) if p)
            # Karpathy's "restval" pictures of COCO are commonly trained on.
            split = _text(image["split"])
            source.splits[name] = {"restval": "train"}.get(split, split)
            if "cocoid" in image:
                if type(image["cocoid"]) is not int:
                    raise TypeError(f"expected an integer, got {short(image['cocoid'])}")
                source.ids[name] = image["cocoid"]
            for sentence in image["sentences"]:
                source.captions[name].append(_text(sentence["raw"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise CaptioningError(
            f"{path}: expected Karpathy's format, images with filename, split and sentences; "
            f"problem: {type(error).__name__}, {error}. (COCO caption files need no preparation.)"
        ) from error
    if strange := sorted(set(source.splits.values()) - set(SPLITS)):
        raise CaptioningError(f"{path}: unknown splits {strange}, expected {SPLITS}")
    return source


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {short(value)}")
    return value


def _read_flickr(path: Path, text: str) -> Source:
    source = Source()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, separator, caption = line.partition("\t")
        if separator and "#" in name:
            source.captions[name.rsplit("#", 1)[0]].append(caption)
        else:
            source.bad_rows.append(f"{path}, line {number}: expected name#n<TAB>caption: {line!r}")
    return source


def _read_csv(path: Path, text: str) -> Source:
    lines, source = text.splitlines(), Source()
    header = lines[0] if lines else ""
    separator = max(",\t;|", key=header.count)
    names = [column.strip().strip('"').lower() for column in header.split(separator)]
    image = next((c for c in ("image", "image_name", "file_name", "filename") if c in names), None)
    text_ = next((c for c in ("caption", "comment", "text") if c in names), None)
    if image is None or text_ is None:
        raise CaptioningError(
            f"{path}: expected a first line with the columns image and caption, got {header!r}"
        )
    try:
        rows = list(csv.reader([*lines[1:], "end"], delimiter=separator))
    except csv.Error as error:
        raise CaptioningError(f"{path}: a quote that is not closed? ({error})") from error
    if rows.pop() != ["end"]:  # it is in a quote
        raise CaptioningError(f"{path}: a quote that is not closed")
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) < len(names):
            source.bad_rows.append(f"{path}, row {number}: expected {len(names)} columns: {row}")
            continue
        # Unquoted commas: a caption in the last column takes all that is left.
        row[len(names) - 1 :] = [separator.join(row[len(names) - 1 :])]
        source.captions[row[names.index(image)].strip()].append(row[names.index(text_)].strip())
    return source


def _read_folder(path: Path) -> Source:
    for name in ("captions.txt", "captions.csv", "captions.tsv"):
        if (path / name).is_file():
            return read_source(path / name)
    source = Source()
    for picture in image_files(path):
        text = picture.with_suffix(".txt")
        lines = read_text(text).splitlines() if text.is_file() else []
        if captions := [line for line in lines if line.strip()]:
            source.captions[picture.relative_to(path).as_posix()] = captions
    if not source.captions:
        raise CaptioningError(
            f"{path}: expected captions.txt with the columns image and caption, or a .txt for "
            "each picture"
        )
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


def read_split_lists(lists: Mapping[str, str | Path]) -> dict[str, str]:
    """Splits from files that list one picture per line, as Flickr_8k.trainImages.txt does."""
    splits: dict[str, str] = {}
    for split, path in lists.items():
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not names:
            raise CaptioningError(f"{path}: expected names of pictures, one per line, got none")
        for name in names:
            if splits.setdefault(name, split) != split:
                raise CaptioningError(f"{name} is in the lists of {splits[name]} and {split}")
    return splits


@dataclass(frozen=True)
class Splits:
    """How pictures are split if the source does not say.

    Either at random: from three pictures on, each share that is not 0 gets at least one. Or as
    `listed`, by file name with or without extension; pictures that are not listed are left out.
    """

    val: float = setting(
        "share of pictures to validate on; ignored if the source or lists have splits", 0.05
    )
    test: float = setting("share of pictures to test on; the same", 0.05)
    seed: int = setting("seed of the random splits", 0)
    listed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        val, test = self.val, self.test
        if not (0 <= val and 0 <= test and val + test < 1):  # NaN is no share either
            raise CaptioningError(
                f"val, test: expected shares that leave pictures to train on, got {val} and {test}"
            )

    def draw(self, names: Iterable[str]) -> dict[str, str]:
        """The split of each picture, drawn by `seed`."""
        names = sorted(names)
        random.Random(self.seed).shuffle(names)
        least = len(names) >= 3  # of ten pictures, 5 % are none
        first = max(round(len(names) * self.val), least and self.val > 0)
        second = max(round(len(names) * (self.val + self.test)), first + (least and self.test > 0))
        split = lambda i: "val" if i < first else "test" if i < second else "train"
        return {name: split(i) for i, name in enumerate(names)}


def prepare(
    source: Source,
    images: str | Path,
    output: str | Path,
    splits: Splits | None = None,
    on_error: str = "refuse",
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Check every picture and write `output`/captions_{train,val,test}.json.

    If a split is empty now, its file of an earlier run is removed: the pictures in it may be in
    another split. What cannot be used is refused or skipped, by `on_error`. Returns the number of
    pictures by split, and what was skipped by reason.
    """
    images, output, splits = Path(images), Path(output), splits or Splits()
    if not images.is_dir():
        raise CaptioningError(f"images: {images} is not a folder")
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    if source.bad_rows:
        skipped["bad row"] = source.bad_rows
    split_of: Mapping[str, str | None] = source.splits
    names = list(source.captions)
    if splits.listed:
        split_of, unknown = _match(splits.listed, source.captions)
        if unknown:
            skipped["listed name without captions"] = unknown
        if unlisted := [name for name in names if not split_of[name]]:
            say("left out " + list_reasons({"picture in no list": unlisted})[0])
        names = [name for name in names if split_of[name]]
    kept = _check_pictures(source, images, names, skipped)
    split_of = split_of or splits.draw(kept)
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
            with writing(path):
                path.unlink()
            say(f"removed {path} of an earlier run: no picture is in this split now")
    return {split: len(names) for split, names in parts.items()}, skipped


def _check_pictures(
    source: Source, images: Path, names: list[str], skipped: defaultdict[str, list[str]]
) -> dict[str, list[str]]:
    """The captions of good pictures; reasons against others are added to `skipped`."""
    kept: dict[str, list[str]] = {}
    for name in progress(names, "check pictures"):
        captions = source.captions[name]
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


def _match(
    splits: Mapping[str, str], names: Iterable[str]
) -> tuple[dict[str, str | None], list[str]]:
    """The split of each picture, and the names in `splits` that no picture has."""
    # Not x.jpg of x.jpg.1.
    is_picture = lambda name: os.path.splitext(name)[1].lower() in EXTENSIONS
    stems = {n: os.path.splitext(n)[0] if is_picture(n) else n for n in names}
    found = {name: splits.get(name, splits.get(stem)) for name, stem in stems.items()}
    known = {*stems, *stems.values()}
    return found, [name for name in splits if name not in known]


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
