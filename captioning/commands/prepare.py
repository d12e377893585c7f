"""`captioning prepare`: see `captioning.prepare`."""

import argparse
from pathlib import Path

from captioning import prepare as module
from captioning.console import say
from captioning.datasets import ON_ERROR
from captioning.errors import list_reasons
from captioning.locks import lock_folder
from captioning.prepare import SPLITS, Splits, find_images, prepare, read_source, read_split_lists


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = module.__doc__
    parser.add_argument("source", help="captions: a file or folder of one of these formats")
    parser.add_argument(
        "--images", type=Path, help="folder of the pictures; the source's, or one in it, if absent"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    for split, use in (("val", "validate"), ("test", "test")):
        parser.add_argument(
            f"--{split}",
            type=float,
            help=f"share of pictures to {use} on (0.05); ignored where the source or lists have "
            "splits",
        )
    for split in SPLITS:
        parser.add_argument(
            f"--{split}-list",
            type=Path,
            help=f"file that lists {split} pictures, one a line, with or without extension",
        )
    parser.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="refuse",
        help="what to do about broken or missing pictures, captions without words, bad rows",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random splits")


def run(args: argparse.Namespace) -> None:
    given = {s: getattr(args, f"{s}_list") for s in SPLITS if getattr(args, f"{s}_list")}
    source = read_source(args.source)
    shares = {s: getattr(args, s) for s in ("val", "test") if getattr(args, s) is not None}
    if shares and (given or source.splits):
        options = " and ".join(f"--{split}" for split in shares)
        source_of_splits = "the lists" if given else args.source
        say(f"{options} ignored: the splits are from {source_of_splits}", error=True)
    splits = Splits(seed=args.seed, listed=read_split_lists(given), **shares)
    with lock_folder(args.output, *(f"captions_{split}.json" for split in SPLITS)):
        counts, skipped = prepare(
            source,
            args.images or find_images(args.source, source),
            args.output,
            splits,
            args.on_error,
        )
    say(*(f"skipped {line}" for line in list_reasons(skipped)))
    say(f"{args.output}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))
