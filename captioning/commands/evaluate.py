"""`captioning evaluate` scores captions or captioners; see `captioning.results`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import add_device, load_captioner
from captioning.console import progress, say
from captioning.data.coco import load_coco_unchanged
from captioning.errors import CaptioningError
from captioning.files import check_output, read_json, write_json
from captioning.results.metrics import check_references, score_captions
from captioning.results.report import Section, write_report
from captioning.search.generate import caption_files


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    text = "captions (JSON in COCO's results format) or captioners (*.pt; several are an ensemble)"
    text += "; with both, the captioners only add curves and attention maps to --report"
    option("inputs", type=Path, nargs="+", help=text)
    option("--references", type=Path, required=True, help="COCO captions file")
    option("--images", type=Path, help="picture folder, if the file names no folder")
    option("--meteor", action="store_true", help="compute METEOR too (needs Java)")
    option("--json", type=Path, help="JSON to write: scores, also of each picture")
    option("--report", type=Path, help="HTML page to write: scores and pictures")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    jsons = [path for path in args.inputs if path.suffix == ".json"]
    checkpoints = [path for path in args.inputs if path not in jsons]
    if len(jsons) > 1:
        raise CaptioningError(f"expected one file of captions, got {', '.join(map(str, jsons))}")
    check_output(args.json, args.report)
    results = read_results(jsons[0]) if jsons else {}
    need_pictures = bool(args.report) or not jsons
    dataset = load_coco_unchanged(args.references, args.images, need_pictures)
    check_references(results or dataset.references, dataset.references)
    checkpoint, cnn = load_captioner(checkpoints, args.device) if checkpoints else (None, None)
    if checkpoint and cnn and not jsons:
        captioned_files = caption_files(checkpoint, cnn, [image.path for image in dataset.images])
        bar = progress(captioned_files, "caption", total=len(dataset.images), unit="img")
        for image, captioned in zip(dataset.images, bar, strict=True):
            if captioned.error:
                say(captioned.error, error=True)
            else:
                results[image.id] = captioned.captions[0].text
    scores = score_captions(results, dataset.references, args.meteor)
    say(*str(scores).splitlines())
    if args.json:
        data = {"scores": scores.overall, "notes": scores.notes, "per_image": scores.per_image}
        write_json(args.json, data, indent=1)
    if args.report:
        pictures = [image for image in dataset.images if image.id in results]
        text = f"Captions of {len(pictures)} pictures"
        sections = [Section(args.inputs[0].name, text, pictures, results, scores)]
        history = checkpoint.training.get("history", []) if checkpoint else []
        write_report(args.report, "Evaluation of captions", "", sections, history, checkpoint, cnn)
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
