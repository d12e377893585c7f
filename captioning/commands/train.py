"""`captioning train` trains a captioner; see `captioning.training`."""

import argparse
from pathlib import Path
from typing import Any

from captioning.cnn.pretrained import DEFAULT_CNN
from captioning.commands.arguments import add_new_captioner, add_on_error
from captioning.errors import CaptioningError
from captioning.settings import SET_OPTION_NAMES, SMALL_SET, describe_setting, parse_settings
from captioning.training.pipeline import train_captioner
from captioning.training.request import MODEL_FIELDS, TRAIN_FIELDS, TrainingRequest

SAMPLES = 5  # N of --self-critical without a number


def add(parser: argparse.ArgumentParser) -> None:
    rows = [f"  {name:16} {describe_setting(name)}" for name in SET_OPTION_NAMES]
    text = f"Defaults a | b | c are for fewer than {SMALL_SET:,} pictures, for more, and for\n"
    text += "--self-critical. Fewer than 6,000 pictures get more epochs, up to 60."
    parser.description = f"train a captioner; each picture is encoded only once\n\n{text}"
    curves = "curves: tensorboard --logdir OUTPUT (install it before: pip install tensorboard)"
    parser.epilog = "\n".join(["settings of --set NAME=VALUE:", *rows, "", curves])
    option = parser.add_argument
    option("data", type=Path, nargs="?", help="output of prepare, for --train, --val and --test")
    option("--train", type=Path, help="COCO captions file to train on")
    option("--val", type=Path, help="COCO captions file to validate on")
    option("--test", type=Path, help="COCO captions file to score the best epoch on")
    for split in ("train", "val", "test"):
        option(f"--{split}-images", type=Path, help="picture folder, if the file names no folder")
    option("--output", type=Path, required=True, help="folder for checkpoints")
    option("--features", type=Path, help="feature folder (that of --start, or OUTPUT/features)")
    text = "frozen CNN: resnet152 or another of torchvision, timm:NAME, efficientnet_lite0, 1, 2, "
    option("--cnn", help=f"{text}scenes_cnn, or several joined by + ({DEFAULT_CNN})")
    option("--cnn-weights", help="name of torchvision's or timm's weights, or a file for timm")
    add_new_captioner(parser)
    for name in ("embed_size", "hidden_size", "num_layers", "epochs", "batch_size"):
        option(f"--{name.replace('_', '-')}", type=int, help=describe_setting(name))
    option("--learning-rate", type=float, help=describe_setting("learning_rate"))
    text = f"add a stage that rewards the CIDEr-D of N captions of each picture ({SAMPLES})"
    option("--self-critical", type=int, nargs="?", const=SAMPLES, metavar="N", help=text)
    option("--members", type=int, default=1, help="captioners to train, for an ensemble (1)")
    option("--start", type=Path, help="checkpoint to take weights, words, sizes and CNN from")
    option("--resume", action="store_true", help="continue from OUTPUT/last.pt, if it exists")
    text = "do not put captions of training pictures, which can help beam search, into best.pt"
    option("--no-neighbors", action="store_true", default=None, help=text)
    add_on_error(parser)
    option("--workers", type=int, help="processes that load pictures (0; on CUDA 4)")
    option("--seed", type=int, help="seed of initial weights, order and dropout (0)")
    text = "a setting of the list below; may be repeated"
    option("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def run(args: argparse.Namespace) -> None:
    train_captioner(request_of(args))


def request_of(args: argparse.Namespace) -> TrainingRequest:
    """Makes the request for `train_captioner` from the arguments."""
    values: dict[str, Any] = dict(vars(args))
    if data := values.pop("data"):
        if not (data / "captions_train.json").is_file():
            folder = "the folder that `captioning prepare` wrote, with captions_train.json"
            raise CaptioningError(f"expected {folder}, or --train FILE; got {data}")
        for split in ("train", "val", "test"):
            file = data / f"captions_{split}.json"
            if values[split] is None and (split == "train" or file.exists()):
                values[split] = file
    if values["train"] is None:
        raise CaptioningError("expected the folder that prepare wrote, or --train")
    settings = {name: values.pop(name) for name in MODEL_FIELDS | TRAIN_FIELDS if name in values}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= parse_settings(values.pop("set"))
    return TrainingRequest(**values, settings=settings)
