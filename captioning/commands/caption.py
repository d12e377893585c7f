"""`captioning caption` writes captions for pictures; see `captioning.search`."""

import argparse
import time
from pathlib import Path

from captioning.cnn.features import extract_features
from captioning.commands.arguments import (
    add_captioner,
    add_search,
    load_captioner,
    search_options,
)
from captioning.console import progress, say
from captioning.data.coco import CaptionDataset, CaptionedImage, load_coco
from captioning.data.images import EXTENSIONS
from captioning.errors import CaptioningError
from captioning.files import check_output, write_json
from captioning.image_captioner import ImageCaptioner
from captioning.results.attention_maps import attends, file_maps
from captioning.results.figures import MAX_SHEET, write_panels, write_sheet
from captioning.search.generate import find_pictures


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    option("pictures", nargs="*", help="files, folders, globs; further *.pt form an ensemble")
    option("--annotations", type=Path, help="caption the pictures of a COCO captions file")
    option("--images", type=Path, help="picture folder, if the captions file names no folder")
    option("--features", type=Path, help="folder of feature caches, as for train")
    text = "JSON to write: captions in COCO's results format; without --annotations also file names"
    option("--json", type=Path, help=text)
    option("--sheet", type=Path, help="PNG to write: the pictures with captions below")
    option("--attention", type=Path, help="PNG to write: where the decoder looked, for one picture")
    add_search(parser)
    add_captioner(parser)


def run(args: argparse.Namespace) -> int:
    search = search_options(args)
    pt_files = [p for p in args.pictures if p.endswith(".pt") and not Path(p).is_dir()]
    if args.checkpoint.suffix.lower() in EXTENSIONS or args.checkpoint.is_dir():
        raise CaptioningError(f"expected a captioner, then pictures; got {args.checkpoint} first")
    args.pictures = [name for name in args.pictures if name not in pt_files]
    check_output(args.json, args.attention, args.sheet)
    dataset = pictures_of(args)
    captioner = load_captioner(args, [args.checkpoint, *pt_files])
    check_attention(args, captioner, len(dataset.images))
    start, captioned, images, cache = time.perf_counter(), {}, dataset.images, None
    if args.features:
        cache = extract_features(captioner.cnn, images, args.features, args.annotations, "skip")
    results = captioner.stream([image.path for image in images], cache, **search)
    bar = progress(results, "caption" if args.json else None, total=len(images), unit="img")
    for image, result in zip(images, bar, strict=True):
        if result.error:
            say(result.error, error=True)
            continue
        captioned[image.id] = (image.path, result.captions[0].text)
        if not args.json:
            say(f"{image.path}: {result.captions[0].text}")
    count, seconds = len(captioned), time.perf_counter() - start
    write_results(args, captioner, captioned)
    failed = len(images) - count + len(dataset.skipped.get("missing picture", ()))
    line = f"{count} picture{'s' * (count != 1)}, {count / seconds:,.1f} a second"
    say(line + (f"; {failed} failed" if failed else ""), error=True)
    return 1 if failed else 0


def check_attention(args: argparse.Namespace, captioner: ImageCaptioner, count: int) -> None:
    """Refuses --attention if the captioner or the number of pictures, `count`, does not suit."""
    checkpoint = captioner.checkpoint
    if args.attention and not (count == 1 and attends(checkpoint)):
        expected = "expected one picture, and a captioner trained with --decoder attention"
        got = f"got {count}, --decoder {checkpoint.model.config.decoder}"
        raise CaptioningError(f"--attention: {expected}; {got}")


def pictures_of(args: argparse.Namespace) -> CaptionDataset:
    """Returns the pictures to caption, and prints the names of those that are missing."""
    if bool(args.pictures) == bool(args.annotations):
        got = "both" if args.pictures else "neither"
        raise CaptioningError(f"expected pictures to caption, or --annotations; got {got}")
    if args.features and not args.annotations:
        raise CaptioningError("--features: expected --annotations as well, got pictures")
    if args.annotations:
        dataset = load_coco(args.annotations, args.images, "skip")
    else:
        paths = find_pictures(args.pictures)
        dataset = CaptionDataset([CaptionedImage(i, p, []) for i, p in enumerate(paths, 1)])
    for path in dataset.skipped.get("missing picture", ()):
        say(f"{path}: no such file", error=True)
    if args.sheet and (count := len(dataset.images)) > MAX_SHEET:
        raise CaptioningError(f"--sheet: expected at most {MAX_SHEET} pictures, got {count}")
    return dataset


def write_results(
    args: argparse.Namespace, captioner: ImageCaptioner, best: dict[int, tuple[Path, str]]
) -> None:
    """Writes paths and captions, by the picture's id, to --json, --sheet and --attention."""
    if args.json:
        file_entry = lambda i: {} if args.annotations else {"file_name": str(best[i][0])}
        results = [
            {"image_id": i, "caption": text, **file_entry(i)} for i, (_, text) in best.items()
        ]
        write_json(args.json, results, indent=0)
    if args.sheet and best:
        write_sheet(args.sheet, dict(best.values()))
        say(f"sheet: {args.sheet}", error=True)
    if args.attention:
        for path, text in best.values():  # at most one, because of `check_attention`
            maps = file_maps(captioner.checkpoint, captioner.cnn, path, text)
            write_panels(args.attention, maps)
