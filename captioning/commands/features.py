"""`captioning features`: see `captioning.cnn`."""

import argparse
from pathlib import Path

from captioning.cnn import CNNChoice, Extraction, extract_features
from captioning.commands.arguments import add_encoding, given
from captioning.console import say
from captioning.data import load_coco


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--features",
        type=Path,
        required=True,
        help="folder for the feature cache, which train --features reads",
    )
    add_encoding(parser)


def run(args: argparse.Namespace) -> None:
    extraction = Extraction(**given(args, Extraction))
    # train encodes no picture without captions either
    dataset = load_coco(args.annotations, args.images, extraction.on_error, need_captions=True)
    say(*dataset.report_skipped())
    cnn = CNNChoice(**given(args, CNNChoice)).load()
    cache = extract_features(cnn, dataset.images, args.features, args.annotations, extraction)
    shape = " x ".join(map(str, cnn.feature_shape))
    told = f"{len(dataset.images):,} pictures, {shape} features each, by {cnn.config.name}"
    say(f"{cache.path}: {told}")
