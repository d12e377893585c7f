"""`captioning prepare`: see `captioning.data`."""

import argparse
import shutil
import textwrap
from pathlib import Path

from captioning.cnn import Extraction
from captioning.commands.arguments import add_settings, given
from captioning.config import FEW_PICTURES
from captioning.console import say
from captioning.data import formats
from captioning.errors import list_reasons
from captioning.files import lock_folder


def add(parser: argparse.ArgumentParser) -> None:
    width = shutil.get_terminal_size().columns - 2  # as argparse has it
    table = [
        textwrap.fill(text, width, initial_indent=f"  {name:10}", subsequent_indent=" " * 12)
        for name, text in formats.FORMATS.items()
    ]
    parser.epilog = "\n".join(["formats, recognized by the content:", *table])
    parser.add_argument("source", help="captions: a file or folder of one of the formats below")
    parser.add_argument(
        "--images", type=Path, help="folder of the pictures (the source's, or one inside it)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    add_settings(parser, formats.Splits)
    for split in formats.SPLITS:
        parser.add_argument(
            f"--{split}-list",
            type=Path,
            help=f"file that lists {split} pictures, one per line, with or without extension",
        )
    add_settings(parser, Extraction, left_out=("device", "workers"))


def run(args: argparse.Namespace) -> None:
    lists = {s: getattr(args, f"{s}_list") for s in formats.SPLITS if getattr(args, f"{s}_list")}
    source, chosen = formats.read_source(args.source), given(args, formats.Splits)
    shares = [f"--{split}" for split in formats.SPLITS if split in chosen]
    if shares and (lists or source.splits):
        where = "the lists" if lists else args.source
        say(f"{' and '.join(shares)} ignored: the splits are from {where}", error=True)
    splits = formats.Splits(**chosen, listed=formats.read_split_lists(lists))
    images = args.images or formats.find_images(args.source, source)
    with lock_folder(args.output):
        on_error = given(args, Extraction)
        counts, skipped = formats.prepare(source, images, args.output, splits, **on_error)
    say(*(f"skipped {line}" for line in list_reasons(skipped)))
    say(f"{args.output}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))
    for split in ("val", "test"):
        if 0 < counts[split] < FEW_PICTURES:
            say(f"note: {split} is small: scores of under {FEW_PICTURES} pictures mean little")
