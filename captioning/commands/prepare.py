"""`captioning prepare`: see `captioning.prepare`."""

import argparse
from pathlib import Path

from captioning import prepare as module
from captioning.commands.arguments import add_on_error
from captioning.prepare import SPLITS, prepare, read_source, read_split_lists


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = module.__doc__
    parser.add_argument("source", help="captions: a file or folder of one of these formats")
    parser.add_argument(
        "--images", type=Path, help="folder of the pictures; the source's if absent"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--val", type=float, default=0.05, help="share of pictures to validate on")
    parser.add_argument("--test", type=float, default=0.05, help="share of pictures to test on")
    for split in SPLITS:
        parser.add_argument(f"--{split}-list", type=Path, help=f"file that lists {split} pictures")
    add_on_error(parser)
    parser.add_argument("--seed", type=int, default=0, help="of random splits")


def run(args: argparse.Namespace) -> None:
    given = {s: getattr(args, f"{s}_list") for s in SPLITS if getattr(args, f"{s}_list")}
    source = Path(args.source)
    images = args.images or (source if source.is_dir() else source.parent)
    counts, skipped = prepare(
        read_source(source),
        images,
        args.output,
        args.val,
        args.test,
        read_split_lists(given) or None,
        args.on_error,
        args.seed,
    )
    for reason, names in skipped.items():
        print(f"skipped {len(names)} x {reason}: {', '.join(names[:5])}")
    print(f"{args.output}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))
