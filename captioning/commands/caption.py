"""`captioning caption`: see `captioning.caption`."""

import argparse
import dataclasses
import time
from pathlib import Path

from captioning.attention_maps import attender, write_panels
from captioning.caption import caption_files, caption_table, find_pictures
from captioning.checkpoint import load_checkpoint
from captioning.cnn import FrozenCNN, keep_freed_blocks
from captioning.commands.arguments import add_device, add_lstm, at_least
from captioning.config import option
from captioning.console import say
from captioning.datasets import CaptionDataset, load_coco
from captioning.errors import CaptioningError
from captioning.features import (
    Extraction,
    FeatureCache,
    FeatureTable,
    cache_path,
    extract_features,
)
from captioning.files import write_json
from captioning.generate import METHODS, DecodeConfig
from captioning.locks import lock_files
from captioning.report import SHEET, write_sheet

OPTIONS = {  # by the method that they are of
    "beam": {
        "beam_size": "beginnings that are kept",
        "length_penalty": "0 prefers short captions",
        "no_repeat_ngram": "never so many words twice; 0 allows",
    },
    "sample": {
        "temperature": "below 1 prefers probable words",
        "top_k": "only of the k best words; 0: of all",
        "top_p": "only of the best words of so much share",
        "seed": "the same captions each time",
    },
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument("pictures", nargs="*", help="files, folders, globs")
    parser.add_argument("--annotations", type=Path, help="caption the pictures of a COCO file")
    parser.add_argument("--images", type=Path, help="folder of those pictures")
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of feature caches, as of train: those pictures are encoded once",
    )
    parser.add_argument(
        "--json", type=Path, help="write COCO results; with files, also their names"
    )
    parser.add_argument("--all", action="store_true", help="beam: print every caption kept")
    parser.add_argument(
        "--attention", type=Path, help="PNG to write: where it looked for each word (one picture)"
    )
    parser.add_argument("--sheet", type=Path, help="PNG to write: the pictures, captions below")
    parser.add_argument(
        "--batch-size", type=at_least(1), metavar="N", default=32, help="pictures at a time"
    )
    add_device(parser)
    add_lstm(parser)
    add_decoding(parser)


def run(args: argparse.Namespace) -> int:
    keep_freed_blocks()
    with lock_files(args.json, args.attention, args.sheet):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    config = config_of(args)
    if bool(args.pictures) == bool(args.annotations):
        raise CaptioningError("give either pictures or --annotations")
    if args.features and not args.annotations:
        raise CaptioningError("--features: expected --annotations beside it, got pictures")
    failed = 0
    if args.annotations:
        dataset = load_coco(args.annotations, args.images, "skip")
        paths = [image.path for image in dataset.images]
        ids = [image.id for image in dataset.images]
        for path in dataset.skipped.get("missing picture", ()):
            failed += 1
            say(f"{path}: no such file", error=True)
    else:
        paths = find_pictures(args.pictures)
        ids = list(range(1, len(paths) + 1))
    if args.sheet and len(paths) > SHEET:
        raise CaptioningError(f"--sheet: expected at most {SHEET} pictures, got {len(paths)}")
    checkpoint = load_checkpoint(args.checkpoint, args.lstm, args.device)
    cnn = checkpoint.cnn.load().to(args.device)
    attend = None
    if args.attention:
        attend = attender(checkpoint, cnn)
        if attend is None or len(paths) != 1:
            raise CaptioningError(
                "--attention: expected one picture, and a captioner whose decoder attends "
                f"(--decoder attention); got {len(paths)}, --decoder "
                f"{checkpoint.model.config.decoder}"
            )
    if args.features:
        cache = cache_path(args.features, args.annotations)
        table = FeatureTable(dataset, cached_features(args, cnn, dataset, cache))
        found = caption_table(checkpoint, dataset, table, config, args.batch_size)
    else:
        found = caption_files(checkpoint, cnn, paths, config, args.batch_size)
    results, seconds, start = [], 0.0, time.perf_counter()
    written = {}
    for image_id, item in zip(ids, found, strict=True):
        if item.error:
            failed += 1
            say(item.error, error=True)
            continue
        seconds += item.seconds
        written[item.path] = item.captions[0].text
        entry = {"image_id": image_id, "caption": item.captions[0].text}
        results.append(entry if args.annotations else entry | {"file_name": str(item.path)})
        if not args.json or args.all:
            for caption in item.captions if args.all else item.captions[:1]:
                say(f"{item.path}: {caption.text}")
        if attend and (maps := attend(item.path, item.captions[0].text)):
            write_panels(args.attention, maps)
    if args.json:
        write_json(args.json, results, indent=0)
    if args.sheet and written:
        write_sheet(args.sheet, written)
    total = time.perf_counter() - start
    line = f"{len(results)} pictures, {len(results) / max(seconds, 1e-9):,.0f} captions/s decoding"
    if not args.features:
        line += f", {len(results) / total:,.1f} captions/s CNN included"
    say(line + (f"; {failed} pictures failed" if failed else ""), error=True)
    return 1 if failed else 0


def cached_features(
    args: argparse.Namespace, cnn: FrozenCNN, dataset: CaptionDataset, cache: Path
) -> FeatureCache:
    """The features of a data set, encoded unless they are there; of either dtype."""
    dtype = FeatureCache(cache).metadata.get("dtype", "float32") if cache.exists() else "float32"
    extraction = Extraction(on_error="skip", device=args.device, dtype=dtype)
    return extract_features(cnn, dataset.images, cache, extraction, args.batch_size)


def config_of(args: argparse.Namespace) -> DecodeConfig:
    """How to search; an option of another method than the one that is asked for is refused."""
    asked = {f.name: getattr(args, f.name) for f in dataclasses.fields(DecodeConfig)}
    given = {name: value for name, value in asked.items() if value is not None}
    for method, options in OPTIONS.items():
        wrong = [name for name in options if name in given]
        if args.all and method == "beam":
            wrong.append("all")
        if wrong and args.method != method:
            raise CaptioningError(
                f"{option(wrong[0])}: expected --method {method} beside it, got {args.method}"
            )
    return DecodeConfig(**given)


def add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    standard = DecodeConfig()
    group.add_argument(
        "--method",
        choices=METHODS,
        default=standard.method,
        help="greedy: the best word each time; beam: keep several beginnings; sample: draw words",
    )
    for method, options in OPTIONS.items():
        for name, text in options.items():
            value = getattr(standard, name)
            # No default, so that what is given can be told from what is not.
            group.add_argument(option(name), type=type(value), help=f"{method}: {text} ({value})")
    group.add_argument(
        "--max-seq-length", type=int, help="the most tokens, with <end>; as trained if not given"
    )
