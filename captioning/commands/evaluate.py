"""`captioning evaluate`: see `captioning.results`."""

import argparse
from pathlib import Path

from captioning.console import say
from captioning.data import load_references
from captioning.files import lock_files, write_json
from captioning.results import evaluate, read_results, write_evaluation


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help='[{"image_id": 1, "caption": "..."}, ...]')
    parser.add_argument("--references", type=Path, required=True, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures, for --report")
    parser.add_argument("--meteor", action="store_true", help="score METEOR too (needs Java)")
    parser.add_argument("--json", type=Path, help="JSON to write: scores, of each picture too")
    parser.add_argument("--report", type=Path, help="HTML page to write: scores and pictures")
    told = (
        "captioner whose curves and attention maps the report shows; again for one more beside it"
    )
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help=told)


def run(args: argparse.Namespace) -> None:
    with lock_files(args.json, args.report):
        results = read_results(args.results)
        dataset = load_references(args.references, args.images, need_folder=bool(args.report))
        scores = evaluate(results, dataset, args.meteor)
        say(*str(scores).splitlines())
        if args.json:
            data = {"scores": scores.overall, "notes": scores.notes, "per_image": scores.per_image}
            write_json(args.json, data, indent=1)
        if args.report:
            name = args.results.name
            write_evaluation(args.report, results, dataset, scores, args.checkpoint, name)
            say(f"report: {args.report}")
