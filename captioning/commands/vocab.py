"""`captioning vocab`: see `captioning.vocabulary`."""

import argparse
from pathlib import Path

from captioning.console import say
from captioning.data import Vocabulary, load_references
from captioning.files import lock_files


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--min-count", type=int, default=4, help="rarer words become <unk>")


def run(args: argparse.Namespace) -> None:
    with lock_files(args.output):
        captions = load_references(args.annotations).captions
        vocabulary = Vocabulary.build(captions, args.min_count)
        vocabulary.save(args.output)
    say(f"{args.output}: {len(vocabulary):,} words of {len(captions):,} captions")
