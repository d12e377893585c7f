"""`captioning prepare` makes COCO captions files; see `captioning.data.convert`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import add_on_error
from captioning.console import say
from captioning.data import convert
from captioning.errors import list_reasons
from captioning.files import check_folder


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("source", type=Path, help=convert.SOURCE_HELP)
    option("--images", type=Path, help="picture folder (the source's folder, or one inside it)")
    option("--output", type=Path, required=True, help="folder to write to")
    text = "share of pictures to {}, if the source has no splits ({})"
    option("--val", type=float, help=text.format("validate on", convert.Shares.val))
    option("--test", type=float, help=text.format("test on", convert.Shares.test))
    option("--seed", type=int, default=0, help="seed of the random splits (0)")
    add_on_error(parser)


def run(args: argparse.Namespace) -> None:
    check_folder(args.output)
    source = convert.read_source(args.source)
    given = {k: v for k, v in vars(args).items() if k in ("val", "test") and v is not None}
    if given and source.splits:
        options = " and ".join(f"--{name}" for name in given)
        say(f"{options} ignored: the splits are from {args.source}", error=True)
    shares = convert.Shares(**given, seed=args.seed)
    images = args.images or convert.find_images(args.source, source)
    counts, skipped = convert.prepare(source, images, args.output, shares, args.on_error)
    say(*(f"skipped {line}" for line in list_reasons(skipped)))
    say(f"{args.output}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))
    say(f"next: captioning train {args.output} --output runs/mine")
