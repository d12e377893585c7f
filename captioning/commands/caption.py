"""`captioning caption`: see `captioning.search`."""

import argparse
import time
from pathlib import Path

from captioning.cnn import FrozenCNN, load_cnn
from captioning.commands.arguments import add_device, load_captioner
from captioning.console import say
from captioning.data import CaptionDataset, CaptionedImage, load_coco
from captioning.errors import CaptioningError
from captioning.files import check_output, write_json
from captioning.model import WEIGHTS, Checkpoint
from captioning.results import MAX_SHEET, attends, file_maps, write_panels, write_sheet
from captioning.search import (
    CaptionedFile,
    DecodeConfig,
    caption_dataset,
    caption_files,
    find_pictures,
)

OPTIONS = {"beam": ("neighbors", "beam_size"), "sample": ("temperature", "seed")}  # by method


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    text = "files, folders, globs; first more captioners, files *.pt, that write together with it"
    option("pictures", nargs="*", help=text)
    option("--annotations", type=Path, help="caption the pictures of a COCO file")
    option("--images", type=Path, help="folder of those pictures, if the file does not say")
    option("--features", type=Path, help="folder of feature caches, as for train")
    text = "JSON to write: the captions in COCO's format; for files, with their names"
    option("--json", type=Path, help=text)
    option("--sheet", type=Path, help="PNG to write: the pictures, captions below")
    option("--attention", type=Path, help="PNG to write: where it looked (one picture)")
    text = "how to search (beam, as training chose it)"
    option("--method", choices=("beam", "greedy", "sample"), default="beam", help=text)
    option("--beam-size", type=int, help="beam: captions kept (as training chose)")
    text = "beam: weight of similar training pictures' captions, 0: none (as training chose)"
    option("--neighbors", type=float, help=text)
    option("--temperature", type=float, help="sample: below 1 prefers probable words (1)")
    option("--seed", type=int, help="sample: the same seed gives the same captions (0)")
    add_device(parser)
    text = "dtype of the LSTM's weights on a CPU; fewer bits are faster (float32)"
    option("--lstm-weights", choices=WEIGHTS, default="float32", help=text)


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    more = [name for name in args.pictures if name.endswith(".pt") and not Path(name).is_dir()]
    paths = [args.checkpoint, *more]
    args.pictures = [name for name in args.pictures if name not in more]
    check_output(args.json, args.attention, args.sheet)
    dataset = pictures_of(args)
    checkpoint = load_captioner(paths, args.device, args.lstm_weights)
    check_captioner(args, config, checkpoint, len(dataset.images))
    cnn = load_cnn(checkpoint.cnn).to(next(checkpoint.model.parameters()).device)
    start, captioned = time.perf_counter(), {}
    if args.features:
        found = caption_dataset(checkpoint, cnn, dataset, args.features, args.annotations, config)
    else:
        found = caption_files(checkpoint, cnn, [image.path for image in dataset.images], config)
    for image, item in zip(dataset.images, found, strict=True):
        if item.error:
            say(item.error, error=True)
            continue
        captioned[image.id] = item
        if not args.json:
            say(f"{item.path}: {item.captions[0].text}")
    count, rate = len(captioned), len(captioned) / (time.perf_counter() - start)
    write_results(args, checkpoint, cnn, captioned)
    failed = len(dataset.images) - count + len(dataset.skipped.get("missing picture", ()))
    line = f"{count} picture{'s' * (count != 1)}, {rate:,.1f} a second"
    say(line + (f"; {failed} failed" if failed else ""), error=True)
    return 1 if failed else 0


def check_captioner(
    args: argparse.Namespace, config: DecodeConfig, checkpoint: Checkpoint, count: int
) -> None:
    """Refuse options that need another captioner, or another number of pictures."""
    if config.neighbors and not checkpoint.neighbors:
        expected = "expected a captioner that keeps its training pictures"
        raise CaptioningError(f"--neighbors: {expected}, got {args.checkpoint}")
    if args.attention and not (count == 1 and attends(checkpoint)):
        expected = "expected one picture, and a captioner trained with --decoder attention"
        got = f"got {count}, --decoder {checkpoint.model.config.decoder}"
        raise CaptioningError(f"--attention: {expected}; {got}")


def pictures_of(args: argparse.Namespace) -> CaptionDataset:
    """The pictures to caption; names those of the captions file that are missing."""
    if bool(args.pictures) == bool(args.annotations):
        raise CaptioningError("give either pictures or --annotations")
    if args.features and not args.annotations:
        raise CaptioningError("--features: expected --annotations as well, got pictures")
    if args.annotations:
        dataset = load_coco(args.annotations, args.images, "skip")
    else:
        paths = find_pictures(args.pictures)
        dataset = CaptionDataset([CaptionedImage(i, p, []) for i, p in enumerate(paths, 1)])
    for path in dataset.skipped.get("missing picture", ()):
        say(f"{path}: no such file", error=True)
    if args.sheet and (count := len(dataset.images)) > MAX_SHEET:
        raise CaptioningError(f"--sheet: expected at most {MAX_SHEET} pictures, got {count}")
    return dataset


def write_results(
    args: argparse.Namespace, checkpoint: Checkpoint, cnn: FrozenCNN, best: dict[int, CaptionedFile]
) -> None:
    """Write the best captions to --json, --sheet and --attention."""
    texts = {i: item.captions[0].text for i, item in best.items()}
    if args.json:
        name = lambda i: {} if args.annotations else {"file_name": str(best[i].path)}
        results = [{"image_id": i, "caption": text, **name(i)} for i, text in texts.items()]
        write_json(args.json, results, indent=0)
    if args.sheet and best:
        write_sheet(args.sheet, {item.path: texts[i] for i, item in best.items()})
    if args.attention:
        for i, item in best.items():  # one, by `check_captioner`
            write_panels(args.attention, file_maps(checkpoint, cnn, item.path, texts[i]))


def config_of(args: argparse.Namespace) -> DecodeConfig:
    """How to search; an option that belongs to another method is refused."""
    values = {name: getattr(args, name) for names in OPTIONS.values() for name in names}
    values = {name: value for name, value in values.items() if value is not None}
    for method, names in OPTIONS.items():
        wrong = [name for name in names if name in values and args.method != method]
        if wrong:
            option = f"--{wrong[0].replace('_', '-')}"
            raise CaptioningError(f"{option}: expected --method {method}, got {args.method}")
    return DecodeConfig(args.method, **values)
