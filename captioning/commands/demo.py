"""`captioning demo`: see `captioning.demo`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import add_lstm, at_least
from captioning.demo import EPOCHS, demo


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    told = "passes over the captions ({lstm}; attention: {attention})".format(**EPOCHS)
    parser.add_argument("--epochs", type=at_least(1), metavar="N", help=told)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="train again even if OUTPUT was trained with these settings; with others, it always "
        "is",
    )
    parser.add_argument(
        "--decoder",
        choices=("lstm", "attention"),
        default="lstm",
        help="attention: slower, and the report shows where it looked for each word",
    )
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and order")
    add_lstm(parser)


def run(args: argparse.Namespace) -> None:
    demo(args.output, args.epochs, args.lstm, args.fresh, args.seed, args.decoder)
