"""Arguments that several commands share, and what they stand for."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from captioning.cnn import POOLS, VIEWS, CNNConfig, FrozenCNN, load_cnn
from captioning.console import say
from captioning.datasets import CaptionDataset, load_coco
from captioning.decoders import DECODERS
from captioning.features import FeatureTable, extract_features
from captioning.lstm import LSTMS


def at_least(low: int, high: float = math.inf) -> Callable[[str], int]:
    """The type of an argument that is an integer, not below `low` nor above `high`."""

    def integer(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            told = f">= {low}" if high == math.inf else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"expected {told}, got {value}")
        return value

    integer.__name__ = "int"  # argparse says "invalid int value: 'x'"
    return integer


def positive(text: str) -> float:
    """The type of an argument that is a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected > 0, got {value}")
    return value


positive.__name__ = "float"


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def device(name: str) -> str:
    """Checks a device before anything is computed."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from error
    return name


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=device, default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ..."
    )


def add_on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about what is broken or missing: pictures, captions, rows of a list",
    )


def add_lstm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lstm",
        choices=LSTMS,
        default="fastlstm",
        help="who computes; torch: nn.LSTM; reference: fastlstm in plain PyTorch",
    )


def add_decoder(parser: Any, default: str | None = None) -> None:
    texts = "; ".join(f"{name}: {kind.help}" for name, kind in DECODERS.items())
    parser.add_argument("--decoder", choices=tuple(DECODERS), default=default, help=texts)


def add_cnn(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frozen CNN")
    standard = CNNConfig()
    group.add_argument(
        "--cnn",
        help=f"a torchvision classifier, efficientnet_lite0, 1, 2 or scenes_cnn ({standard.name})",
    )
    group.add_argument("--weights", help=f"name of torchvision weights ({standard.weights})")
    group.add_argument(
        "--pool",
        choices=POOLS,
        help="avg: global average; 2x2: and the four quarters, which tell where things are; grid: "
        "the cells, for --decoder attention, and its default (else avg)",
    )
    group.add_argument(
        "--view",
        choices=VIEWS,
        help="whole: all of the picture, squashed to a square (default); crop: the square in its "
        "middle, as in the CNN's own training",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the cached features; float16 takes half the disk",
    )
    group.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        default=0,
        help="processes that load pictures beside this one",
    )


def load_cnn_of(args: argparse.Namespace) -> FrozenCNN:
    given = {"name": args.cnn, "weights": args.weights, "pool": args.pool}
    config = CNNConfig(**{name: value for name, value in given.items() if value})
    return load_cnn(config, args.view or VIEWS[0])


def load_data(
    args: argparse.Namespace, annotations: Path, images: Path | None, need_captions: bool = False
) -> CaptionDataset:
    dataset = load_coco(annotations, images, args.on_error, need_captions)
    if dataset.skipped:
        say(*dataset.report_skipped())
    return dataset


def encode(
    args: argparse.Namespace, cnn: FrozenCNN, dataset: CaptionDataset, cache: Path, batch: int = 32
) -> FeatureTable:
    """The features of a data set, which are computed unless they are cached."""
    found = extract_features(
        cnn, dataset.images, cache, batch, args.dtype, args.on_error, args.workers, args.device
    )
    return FeatureTable(dataset, found)
