"""`captioning caption`: see `captioning.caption`."""

import argparse
import time
from pathlib import Path

from captioning.cnn import (
    Extraction,
    FeatureCache,
    FeatureTable,
    FrozenCNN,
    cache_path,
    extract_features,
    keep_freed_blocks,
)
from captioning.commands.arguments import (
    add_inference,
    add_settings,
    at_least,
    given,
    load_captioner,
)
from captioning.config import option
from captioning.console import say
from captioning.data import CaptionDataset, CaptionedImage, load_coco
from captioning.errors import CaptioningError
from captioning.files import lock_files, write_json
from captioning.results import MAX_SHEET, file_maps, write_panels, write_sheet
from captioning.search import (
    CaptionedFile,
    DecodeConfig,
    caption_files,
    caption_table,
    find_pictures,
)

OPTIONS = {  # by the method that they belong to
    "beam": ("neighbors", "beam_size", "length_penalty", "no_repeat_ngram", "all"),
    "sample": ("temperature", "top_k", "top_p", "seed"),
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument("pictures", nargs="*", help="files, folders, globs")
    parser.add_argument("--annotations", type=Path, help="caption the pictures of a COCO file")
    parser.add_argument("--images", type=Path, help="folder of those pictures")
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of feature caches, as for train, so that pictures are encoded only once",
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="JSON to write: the captions in COCO's format; for files, with their names",
    )
    parser.add_argument("--all", action="store_true", help="beam: print all captions kept")
    parser.add_argument(
        "--attention", type=Path, help="PNG to write: where it looked for each word (one picture)"
    )
    parser.add_argument("--sheet", type=Path, help="PNG to write: the pictures, captions below")
    parser.add_argument(
        "--batch-size", type=at_least(1), metavar="N", default=32, help="pictures at a time"
    )
    add_inference(parser)
    add_settings(parser.add_argument_group("decoding"), DecodeConfig)


def run(args: argparse.Namespace) -> int:
    keep_freed_blocks()
    with lock_files(args.json, args.attention, args.sheet):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    config = config_of(args)
    if bool(args.pictures) == bool(args.annotations):
        raise CaptioningError("give either pictures or --annotations")
    if args.features and not args.annotations:
        raise CaptioningError("--features: expected --annotations as well, got pictures")
    dataset, missing = pictures_of(args)
    count = len(dataset.images)
    if args.sheet and count > MAX_SHEET:
        raise CaptioningError(f"--sheet: expected at most {MAX_SHEET} pictures, got {count}")
    checkpoint = load_captioner(args)
    if config.neighbors and not checkpoint.model.neighbors:
        raise CaptioningError(
            "--neighbors: expected a captioner that keeps its training pictures, got "
            f"{args.checkpoint}"
        )
    cnn = checkpoint.cnn.load().to(args.device)
    maps_for = file_maps(checkpoint, cnn) if args.attention else None
    if args.attention and (maps_for is None or count != 1):
        raise CaptioningError(
            "--attention: expected one picture, and a captioner whose decoder attends (--decoder "
            f"attention); got {count}, --decoder {checkpoint.model.config.decoder}"
        )
    if args.features:
        table = FeatureTable(dataset, cached_features(args, cnn, dataset))
        found = caption_table(checkpoint, dataset, table, config, args.batch_size)
    else:
        paths = [image.path for image in dataset.images]
        found = caption_files(checkpoint, cnn, paths, config, args.batch_size)
    start = time.perf_counter()
    captioned = {}
    for image, item in zip(dataset.images, found, strict=True):
        if item.error:
            say(item.error, error=True)
            continue
        captioned[image.id] = item
        if not args.json or args.all:
            for caption in item.captions if args.all else item.captions[:1]:
                say(f"{item.path}: {caption.text}")
        if maps_for and (maps := maps_for(item.path, item.captions[0].text)):
            write_panels(args.attention, maps)
    write_results(args, captioned)
    failed = missing + count - len(captioned)
    seconds = sum(item.seconds for item in captioned.values())
    pictures = "1 picture" if len(captioned) == 1 else f"{len(captioned)} pictures"
    line = f"{pictures}, {len(captioned) / max(seconds, 1e-9):,.0f} captions/s decoding"
    if not args.features:
        rate = len(captioned) / (time.perf_counter() - start)
        line += f", {rate:,.1f} captions/s CNN included"
    say(line + (f"; {failed} failed" if failed else ""), error=True)
    return 1 if failed else 0


def pictures_of(args: argparse.Namespace) -> tuple[CaptionDataset, int]:
    """The pictures to caption, and how many of the captions file are missing."""
    if not args.annotations:
        paths = find_pictures(args.pictures)
        return CaptionDataset([CaptionedImage(i, p, []) for i, p in enumerate(paths, 1)]), 0
    dataset = load_coco(args.annotations, args.images, "skip")
    missing = dataset.skipped.get("missing picture", ())
    for path in missing:
        say(f"{path}: no such file", error=True)
    return dataset, len(missing)


def write_results(args: argparse.Namespace, captioned: dict[int, CaptionedFile]) -> None:
    """Write the best captions to --json and --sheet."""
    if args.json:
        results = [
            {"image_id": i, "caption": item.captions[0].text}
            | ({} if args.annotations else {"file_name": str(item.path)})
            for i, item in captioned.items()
        ]
        write_json(args.json, results, indent=0)
    if args.sheet and captioned:
        write_sheet(args.sheet, {item.path: item.captions[0].text for item in captioned.values()})


def cached_features(
    args: argparse.Namespace, cnn: FrozenCNN, dataset: CaptionDataset
) -> FeatureCache:
    """The features of a data set; pictures that the cache lacks are encoded."""
    cache = cache_path(args.features, args.annotations)
    extraction = Extraction(on_error="skip", device=args.device)
    return extract_features(cnn, dataset.images, cache, extraction, args.batch_size)


def config_of(args: argparse.Namespace) -> DecodeConfig:
    """How to search; an option that belongs to another method is refused."""
    values = given(args, DecodeConfig)
    config = DecodeConfig(**values)
    for method, options in OPTIONS.items():
        wrong = [name for name in options if name in values or (name == "all" and args.all)]
        if wrong and config.method != method:
            raise CaptioningError(
                f"{option(wrong[0])}: expected --method {method} as well, got {config.method}"
            )
    return config
