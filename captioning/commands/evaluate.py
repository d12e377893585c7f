"""`captioning evaluate`: see `captioning.evaluate`."""

import argparse
from pathlib import Path

from captioning.console import say
from captioning.data import load_references
from captioning.files import lock_files, write_json
from captioning.results import evaluate, read_results, with_pictures, write_evaluation


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help='[{"image_id": 1, "caption": "..."}, ...]')
    parser.add_argument("--references", type=Path, required=True, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures, for --report")
    parser.add_argument("--meteor", action="store_true", help="score METEOR too (needs Java)")
    parser.add_argument("--json", type=Path, help="JSON to write: scores, of each picture too")
    parser.add_argument("--report", type=Path, help="HTML page to write: scores and pictures")
    parser.add_argument(
        "--checkpoint", type=Path, help="captioner whose curves and attention maps the report shows"
    )


def run(args: argparse.Namespace) -> None:
    with lock_files(args.json, args.report):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    results = read_results(args.results)
    dataset = load_references(args.references)
    if args.report:
        dataset = with_pictures(dataset, args.references, args.images)
    scores = evaluate(results, dataset, args.meteor)
    say(*str(scores).splitlines())
    if args.json:
        data = {"scores": scores.overall, "notes": scores.notes, "per_image": scores.per_image}
        write_json(args.json, data, indent=1)
    if args.report:
        from captioning.model import load_checkpoint, training_history

        checkpoint, history = None, []
        if args.checkpoint:
            checkpoint = load_checkpoint(args.checkpoint)
            history = training_history(checkpoint, args.checkpoint)
        write_evaluation(
            args.report, results, dataset, scores, checkpoint, history, args.results.name
        )
        say(f"report: {args.report}")
