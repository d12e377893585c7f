"""`captioning features`: see `captioning.features`."""

import argparse
from pathlib import Path

from captioning.cnn import keep_freed_blocks
from captioning.commands.arguments import (
    add_cnn,
    add_device,
    add_on_error,
    at_least,
    encode,
    load_cnn_of,
    load_data,
)
from captioning.console import say
from captioning.features import cache_path


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--features",
        type=Path,
        required=True,
        help="folder of feature caches to write to, as train's --features",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="pictures at a time")
    add_on_error(parser)
    add_device(parser)
    add_cnn(parser)


def run(args: argparse.Namespace) -> None:
    keep_freed_blocks()
    # train encodes no picture without captions either
    dataset = load_data(args, args.annotations, args.images, need_captions=True)
    cnn = load_cnn_of(args)
    cache = cache_path(args.features, args.annotations)
    encode(args, cnn, dataset, cache, args.batch_size)
    say(f"{cache}: features of shape {cnn.feature_shape} by {cnn.config}")
