"""`captioning caption` writes captions for pictures; see `captioning.search`."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioning.cnn.features import extract_features
from captioning.cnn.pretrained import FrozenCNN
from captioning.commands.arguments import add_device, load_captioner
from captioning.console import progress, say
from captioning.data.coco import CaptionDataset, CaptionedImage, load_coco
from captioning.data.images import EXTENSIONS
from captioning.errors import CaptioningError
from captioning.files import check_output, write_json
from captioning.model.checkpoint import Checkpoint
from captioning.model.layers import LSTM_WEIGHTS
from captioning.results.attention_maps import attends, file_maps
from captioning.results.figures import MAX_SHEET, write_panels, write_sheet
from captioning.search.generate import CaptionedFile, caption_files, find_pictures
from captioning.settings import DecodeConfig

# Options that only one search method uses, and that method.
METHOD_OF = {"neighbors": "beam", "beam_size": "beam", "temperature": "sample", "seed": "sample"}


def add(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    option("pictures", nargs="*", help="files, folders, globs; further *.pt form an ensemble")
    option("--annotations", type=Path, help="caption the pictures of a COCO captions file")
    option("--images", type=Path, help="picture folder, if the captions file names no folder")
    option("--features", type=Path, help="folder of feature caches, as for train")
    text = "JSON to write: captions in COCO's results format; without --annotations also file names"
    option("--json", type=Path, help=text)
    option("--sheet", type=Path, help="PNG to write: the pictures with captions below")
    option("--attention", type=Path, help="PNG to write: where the decoder looked, for one picture")
    option("--method", choices=("beam", "greedy", "sample"), default="beam", help="search (beam)")
    option("--beam-size", type=int, help="beam: captions that are kept (as training chose)")
    text = "beam: weight of captions of similar training pictures, 0 for none (as training chose)"
    option("--neighbors", type=float, help=text)
    option("--temperature", type=float, help="sample: below 1 prefers probable words (1)")
    option("--seed", type=int, help="sample: the same seed gives the same captions (0)")
    add_device(parser)
    text = "dtype of the LSTM's weights on a CPU; fewer bits are faster (float32)"
    option("--lstm-weights", choices=LSTM_WEIGHTS, default="float32", help=text)


def run(args: argparse.Namespace) -> int:
    search = search_options(args)
    pt_files = [p for p in args.pictures if p.endswith(".pt") and not Path(p).is_dir()]
    if args.checkpoint.suffix.lower() in EXTENSIONS or args.checkpoint.is_dir():
        raise CaptioningError(f"expected a captioner, then pictures; got {args.checkpoint} first")
    args.pictures = [name for name in args.pictures if name not in pt_files]
    check_output(args.json, args.attention, args.sheet)
    dataset = pictures_of(args)
    checkpoint, cnn = load_captioner([args.checkpoint, *pt_files], args.device, args.lstm_weights)
    check_captioner(args, checkpoint, len(dataset.images))
    config = replace(checkpoint.search, **search)
    start, captioned, images, cache = time.perf_counter(), {}, dataset.images, None
    if args.features:
        cache = extract_features(cnn, images, args.features, args.annotations, "skip")
    results = caption_files(checkpoint, cnn, [image.path for image in images], config, cache)
    bar = progress(results, "caption" if args.json else None, total=len(images), unit="img")
    for image, result in zip(images, bar, strict=True):
        if result.error:
            say(result.error, error=True)
            continue
        captioned[image.id] = result
        if not args.json:
            say(f"{result.path}: {result.captions[0].text}")
    count, seconds = len(captioned), time.perf_counter() - start
    write_results(args, checkpoint, cnn, captioned)
    failed = len(images) - count + len(dataset.skipped.get("missing picture", ()))
    line = f"{count} picture{'s' * (count != 1)}, {count / seconds:,.1f} a second"
    say(line + (f"; {failed} failed" if failed else ""), error=True)
    return 1 if failed else 0


def check_captioner(args: argparse.Namespace, checkpoint: Checkpoint, count: int) -> None:
    """Refuses options that do not suit the captioner or the number of pictures, `count`."""
    if args.neighbors and not checkpoint.neighbors:
        expected = "expected a captioner with captions of training pictures"
        raise CaptioningError(f"--neighbors: {expected}, got {args.checkpoint}")
    if args.attention and not (count == 1 and attends(checkpoint)):
        expected = "expected one picture, and a captioner trained with --decoder attention"
        got = f"got {count}, --decoder {checkpoint.model.config.decoder}"
        raise CaptioningError(f"--attention: {expected}; {got}")


def pictures_of(args: argparse.Namespace) -> CaptionDataset:
    """Returns the pictures to caption, and prints the names of those that are missing."""
    if bool(args.pictures) == bool(args.annotations):
        got = "both" if args.pictures else "neither"
        raise CaptioningError(f"expected pictures to caption, or --annotations; got {got}")
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
    """Writes the best captions, by the picture's id, to --json, --sheet and --attention."""
    texts = {i: item.captions[0].text for i, item in best.items()}
    if args.json:
        file_entry = lambda i: {} if args.annotations else {"file_name": str(best[i].path)}
        results = [{"image_id": i, "caption": text, **file_entry(i)} for i, text in texts.items()]
        write_json(args.json, results, indent=0)
    if args.sheet and best:
        write_sheet(args.sheet, {item.path: texts[i] for i, item in best.items()})
        say(f"sheet: {args.sheet}", error=True)
    if args.attention:
        for i, item in best.items():  # at most one, because of `check_captioner`
            write_panels(args.attention, file_maps(checkpoint, cnn, item.path, texts[i]))


def search_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the `DecodeConfig` fields given as options; refuses options of another method."""
    values = {name: getattr(args, name) for name in METHOD_OF if getattr(args, name) is not None}
    for name in values:
        if METHOD_OF[name] != args.method:
            option, expected = name.replace("_", "-"), METHOD_OF[name]
            raise CaptioningError(f"--{option}: expected --method {expected}, got {args.method}")
    DecodeConfig(**values)  # refuses a wrong value before a captioner is read
    return {"method": args.method, **values}
