"""`captioning vocab`: see `captioning.vocabulary`."""

import argparse
from pathlib import Path

from captioning.errors import CaptioningError
from captioning.files import read_json
from captioning.vocabulary import Vocabulary


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--min-count", type=int, default=4, help="rarer words become <unk>")


def run(args: argparse.Namespace) -> None:
    data = read_json(args.annotations)
    try:
        captions = [row["caption"] for row in data["annotations"]]
    except (KeyError, TypeError) as error:
        raise CaptioningError(f"{args.annotations}: expected a COCO captions file") from error
    vocabulary = Vocabulary.build(captions, args.min_count)
    vocabulary.save(args.output)
    print(f"{args.output}: {len(vocabulary):,} words of {len(captions):,} captions")
