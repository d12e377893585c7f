"""`captioning caption`: see `captioning.caption`."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from captioning.attention_maps import attender, write_panels
from captioning.caption import caption_files, caption_table, find_pictures
from captioning.checkpoint import load_checkpoint
from captioning.cnn import FrozenCNN
from captioning.commands.arguments import add_device, add_lstm, at_least
from captioning.datasets import CaptionDataset, load_coco
from captioning.errors import CaptioningError
from captioning.features import FeatureCache, FeatureTable, cache_path, extract_features
from captioning.files import write_json
from captioning.generate import METHODS, DecodeConfig


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
    parser.add_argument("--all", action="store_true", help="print every caption of the beam")
    parser.add_argument(
        "--attention", type=Path, help="PNG to write: where it looked for each word (one picture)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), metavar="N", default=32, help="pictures at a time"
    )
    add_device(parser)
    add_lstm(parser)
    add_decoding(parser)


def run(args: argparse.Namespace) -> int:
    config = DecodeConfig(
        **{f.name: getattr(args, f.name) for f in dataclasses.fields(DecodeConfig)}
    )
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
            print(f"{path}: no such file", file=sys.stderr)
    else:
        paths = find_pictures(args.pictures)
        ids = list(range(1, len(paths) + 1))
    checkpoint = load_checkpoint(args.checkpoint, args.lstm, args.device)
    cnn = checkpoint.cnn.load().to(args.device)
    attend = None
    if args.attention:
        attend = attender(checkpoint, cnn)
        if attend is None or len(paths) != 1:
            raise CaptioningError(
                "--attention: expected one picture, and a captioner trained with --decoder "
                f"attention; got {len(paths)}, --decoder {checkpoint.model.config.decoder}"
            )
    if args.features:
        cache = cache_path(args.features, args.annotations)
        table = FeatureTable(dataset, cached_features(args, cnn, dataset, cache))
        found = caption_table(checkpoint, dataset, table, config, args.batch_size)
    else:
        found = caption_files(checkpoint, cnn, paths, config, args.batch_size)
    results, seconds, start = [], 0.0, time.perf_counter()
    for image_id, item in zip(ids, found, strict=True):
        if item.error:
            failed += 1
            print(item.error, file=sys.stderr)
            continue
        seconds += item.seconds
        entry = {"image_id": image_id, "caption": item.captions[0].text}
        results.append(entry if args.annotations else entry | {"file_name": str(item.path)})
        if not args.json or args.all:
            for caption in item.captions if args.all else item.captions[:1]:
                print(f"{item.path}: {caption.text}")
        if attend and (maps := attend(item.path, item.captions[0].text)):
            write_panels(args.attention, maps)
    if args.json:
        write_json(args.json, results, indent=0)
    total = time.perf_counter() - start
    line = f"{len(results)} pictures, {len(results) / max(seconds, 1e-9):,.0f} captions/s decoding"
    if not args.features:
        line += f", {len(results) / total:,.1f} captions/s CNN included"
    print(line + (f"; {failed} pictures failed" if failed else ""), file=sys.stderr)
    return 1 if failed else 0


def cached_features(
    args: argparse.Namespace, cnn: FrozenCNN, dataset: CaptionDataset, cache: Path
) -> FeatureCache:
    """The features of a data set, encoded unless they are there; of either dtype."""
    dtype = FeatureCache(cache).metadata.get("dtype", "float32") if cache.exists() else "float32"
    return extract_features(
        cnn, dataset.images, cache, args.batch_size, dtype, "skip", device=args.device
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="greedy",
        help="greedy: the best word each time; beam: keep several beginnings; sample: draw words",
    )
    group.add_argument("--beam-size", type=int, default=5, help="beam: beginnings that are kept")
    group.add_argument(
        "--length-penalty", type=float, default=1.0, help="beam: 0 prefers short captions"
    )
    group.add_argument(
        "--no-repeat-ngram", type=int, default=0, help="beam: never so many words twice; 0 allows"
    )
    group.add_argument(
        "--temperature", type=float, default=1.0, help="sample: below 1 prefers probable words"
    )
    group.add_argument(
        "--top-k", type=int, default=0, help="sample: only of the k best words; 0: of all"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, help="sample: only of the best words of so much share"
    )
    group.add_argument("--seed", type=int, default=0, help="sample: the same captions each time")
    group.add_argument(
        "--max-seq-length", type=int, help="the most tokens, with <end>; as trained if not given"
    )
