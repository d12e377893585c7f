"""`captioning evaluate` scores a captioner, or captions; see `captioning.results`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import (
    add_captioner,
    add_search,
    load_captioner,
    search_options,
)
from captioning.console import say
from captioning.data.coco import load_coco_unchanged
from captioning.errors import CaptioningError
from captioning.files import check_output, read_json, write_json
from captioning.image_captioner import captions_file
from captioning.results.metrics import check_references, score_captions
from captioning.results.report import Section, write_report


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    text = "a captioner (several *.pt are an ensemble), or captions (JSON in COCO's results format)"
    option("inputs", type=Path, nargs="+", help=text)
    text = "folder that prepare wrote, for its test split or else val; or a COCO captions file"
    option("data", type=Path, help=text)
    option("--images", type=Path, help="picture folder, if the captions file names no folder")
    option("--meteor", action="store_true", help="compute METEOR too (needs Java)")
    option("--json", type=Path, help="JSON to write: scores, and of each picture also the caption")
    option("--report", type=Path, help="HTML page to write: scores and pictures")
    add_search(parser)
    add_captioner(parser)


def run(args: argparse.Namespace) -> None:
    search, file = search_options(args), captions_file(args.data)
    is_captions = args.inputs[0].suffix == ".json"
    if is_captions and args.inputs[1:]:
        got = ", ".join(map(str, args.inputs))
        raise CaptioningError(f"expected captioners, or one file of captions; got {got}")
    check_output(args.json, args.report)
    results = read_results(args.inputs[0]) if is_captions else {}
    need_folder = bool(args.report) or not is_captions
    dataset = load_coco_unchanged(file, args.images, need_folder)
    check_references(results or dataset.references, dataset.references)
    captioner = None if is_captions else load_captioner(args, args.inputs)
    if captioner:
        scores = captioner.evaluate(file, args.images, meteor=args.meteor, **search)
    else:
        say(f"{len(dataset.images):,} pictures of {file}")
        scores = score_captions(results, dataset.references, args.meteor)
    say(*str(scores).splitlines())
    if args.json:
        per_image = {i: {"caption": scores.captions[i], **s} for i, s in scores.per_image.items()}
        data = {"scores": scores.overall, "notes": scores.notes, "per_image": per_image}
        write_json(args.json, data, indent=1)
    if args.report:
        pictures = [image for image in dataset.images if image.id in scores.captions]
        text = f"Captions of {len(pictures)} pictures"
        sections = [Section(args.inputs[0].name, text, pictures, scores.captions, scores)]
        parts = (captioner.checkpoint, captioner.cnn) if captioner else (None, None)
        history = captioner.checkpoint.training.get("history", []) if captioner else []
        write_report(args.report, "Evaluation of captions", "", sections, history, *parts)
        say(f"report: {args.report}")


def read_results(path: Path) -> dict[int, str]:
    """Reads captions by the picture's id, from [{"image_id": 1, "caption": "..."}, ...]."""
    try:
        rows = [(row["image_id"], row["caption"].strip()) for row in read_json(path)]
        results = dict(rows)
    except (LookupError, TypeError, AttributeError) as error:
        expected = '[{"image_id": 1, "caption": "..."}, ...]'
        raise CaptioningError(f"{path}: expected {expected}, got {error!r}") from error
    if len(results) < len(rows):
        raise CaptioningError(f"{path}: a picture has two captions")
    return results
