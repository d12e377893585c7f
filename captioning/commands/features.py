"""`captioning features`: see `captioning.features`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import (
    add_cnn,
    add_device,
    add_on_error,
    encode,
    load_cnn_of,
    load_data,
)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--output", type=Path, required=True, help="cache file to write or continue"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time")
    add_on_error(parser)
    add_device(parser)
    add_cnn(parser)


def run(args: argparse.Namespace) -> None:
    dataset = load_data(args, args.annotations, args.images)
    cnn = load_cnn_of(args)
    encode(args, cnn, dataset, args.output, args.batch_size)
    print(f"{args.output}: features of shape {cnn.feature_shape} by {cnn.config}")
