"""`captioning caption`: see `captioning.search`."""

import argparse
import time
from pathlib import Path

from captioning.cnn import FrozenCNN
from captioning.commands.arguments import add_inference, add_settings, given, load_captioner
from captioning.config import option
from captioning.console import say
from captioning.data import CaptionDataset, CaptionedImage, load_coco
from captioning.errors import CaptioningError
from captioning.files import lock_files, write_json
from captioning.model import Attentive, Checkpoint
from captioning.results import MAX_SHEET, file_maps, write_panels, write_sheet
from captioning.search import (
    CaptionedFile,
    DecodeConfig,
    caption_dataset,
    caption_files,
    find_pictures,
)

OPTIONS = {  # by the method that they belong to
    "beam": ("neighbors", "beam_size", "length_penalty"),
    "sample": ("temperature", "seed"),
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="the captioner, such as runs/demo/best.pt")
    told = "files, folders, globs; first more captioners, *.pt, that write together with it"
    parser.add_argument("pictures", nargs="*", help=told)
    parser.add_argument("--annotations", type=Path, help="caption the pictures of a COCO file")
    parser.add_argument("--images", type=Path, help="folder of those pictures")
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of feature caches, as for train, so that pictures are encoded only once",
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="JSON to write: the captions in COCO's format; for files, with their names",
    )
    parser.add_argument(
        "--attention", type=Path, help="PNG to write: where it looked for each word (one picture)"
    )
    parser.add_argument("--sheet", type=Path, help="PNG to write: the pictures, captions below")
    add_inference(parser)
    add_settings(parser.add_argument_group("decoding"), DecodeConfig)


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    more = [name for name in args.pictures if name.endswith(".pt")]
    args.checkpoint = [args.checkpoint, *more]
    args.pictures = [name for name in args.pictures if name not in more]
    with lock_files(args.json, args.attention, args.sheet):
        dataset = pictures_of(args)
        checkpoint = load_captioner(args)
        check_captioner(args, config, checkpoint, len(dataset.images))
        cnn = checkpoint.cnn.load().to(args.device)
        start, captioned = time.perf_counter(), {}
        if args.features:
            found = caption_dataset(
                checkpoint, cnn, dataset, args.features, args.annotations, config
            )
        else:
            paths = [image.path for image in dataset.images]
            found = caption_files(checkpoint, cnn, paths, config)
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
    model = checkpoint.model
    if config.neighbors and not model.neighbors:
        raise CaptioningError(
            "--neighbors: expected a captioner that keeps its training pictures, got "
            f"{', '.join(args.checkpoint)}"
        )
    if args.attention and not (count == 1 and isinstance(model.decoder, Attentive)):
        raise CaptioningError(
            "--attention: expected one picture, and a captioner whose decoder attends (--decoder "
            f"attention); got {count}, --decoder {model.config.decoder}"
        )


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
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    captioned: dict[int, CaptionedFile],
) -> None:
    """Write the best captions to --json, --sheet and --attention."""
    best = {i: item.captions[0].text for i, item in captioned.items()}
    if args.json:
        name = lambda i: {} if args.annotations else {"file_name": str(captioned[i].path)}
        results = [{"image_id": i, "caption": text, **name(i)} for i, text in best.items()]
        write_json(args.json, results, indent=0)
    if args.sheet and captioned:
        write_sheet(args.sheet, {item.path: best[i] for i, item in captioned.items()})
    if args.attention:
        for i, item in captioned.items():  # one, by `check_captioner`
            if maps := file_maps(checkpoint, cnn, item.path, best[i]):
                write_panels(args.attention, maps)


def config_of(args: argparse.Namespace) -> DecodeConfig:
    """How to search; an option that belongs to another method is refused."""
    values = given(args, DecodeConfig)
    config = DecodeConfig(**values)
    for method, options in OPTIONS.items():
        wrong = [name for name in options if name in values]
        if wrong and config.method != method:
            raise CaptioningError(
                f"{option(wrong[0])}: expected --method {method} as well, got {config.method}"
            )
    return config
