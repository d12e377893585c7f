"""The arguments that several commands have, and the loading of captioners."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioning.console import say
from captioning.data.coco import ON_ERROR
from captioning.errors import CaptioningError
from captioning.image_captioner import ImageCaptioner, load
from captioning.model.captioner import DECODERS
from captioning.model.layers import LSTM_HELP, LSTM_WEIGHTS
from captioning.settings import DecodeConfig, choose_device, describe_device

# Options that only one search method uses, and that method.
METHOD_OF = {"neighbors": "beam", "beam_size": "beam", "temperature": "sample", "seed": "sample"}


def add_device(parser: Any) -> None:
    text = "cpu, cuda, cuda:1, ... (auto: cuda if there is a GPU)"
    parser.add_argument("--device", default="auto", help=text)


def add_lstm(parser: Any) -> None:
    parser.add_argument("--lstm", default="fastlstm", metavar="LSTM", help=LSTM_HELP)


def add_new_captioner(parser: Any) -> None:
    """Adds the options of a new captioner: its decoder, the LSTM implementation, and the device."""
    texts = "; ".join(f"{name}: {decoder.help}" for name, decoder in DECODERS.items())
    parser.add_argument("--decoder", choices=tuple(DECODERS), help=f"{texts} (lstm)")
    add_lstm(parser)
    add_device(parser)


def add_on_error(parser: Any) -> None:
    text = "what to do with broken or missing pictures, captions, rows of a table (refuse)"
    parser.add_argument("--on-error", choices=ON_ERROR, default="refuse", help=text)


def add_captioner(parser: Any) -> None:
    """Adds the options of a captioner that was trained: how to run it."""
    add_lstm(parser)
    text = "dtype of the LSTM's weights on a CPU; fewer bits are faster (float32)"
    parser.add_argument("--lstm-weights", choices=LSTM_WEIGHTS, default="float32", help=text)
    add_device(parser)


def add_search(parser: Any) -> None:
    """Adds the options of the search for captions."""
    option = parser.add_argument
    option("--method", choices=("beam", "greedy", "sample"), default="beam", help="search (beam)")
    option("--beam-size", type=int, help="beam: captions that are kept (as training chose)")
    text = "beam: weight of captions of similar training pictures, 0 for none (as training chose)"
    option("--neighbors", type=float, help=text)
    option("--temperature", type=float, help="sample: below 1 prefers probable words (1)")
    option("--seed", type=int, help="sample: the same seed gives the same captions (0)")


def search_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the `DecodeConfig` fields given as options; refuses options of another method."""
    values = {name: getattr(args, name) for name in METHOD_OF if getattr(args, name) is not None}
    for name in values:
        if METHOD_OF[name] != args.method:
            option, expected = name.replace("_", "-"), METHOD_OF[name]
            raise CaptioningError(f"--{option}: expected --method {expected}, got {args.method}")
    DecodeConfig(**values)  # refuses a wrong value before a captioner is read
    return {"method": args.method, **values}


def load_captioner(args: argparse.Namespace, paths: Sequence[str | Path]) -> ImageCaptioner:
    """Loads a captioner or an ensemble by the options of `add_captioner`; prints the device."""
    device = choose_device(args.device)
    say(describe_device(device), error=True)
    captioner = load(*paths, device=device, lstm=args.lstm, lstm_weights=args.lstm_weights)
    if getattr(args, "neighbors", None) and not captioner.checkpoint.neighbors:
        expected = "expected a captioner with captions of training pictures"
        raise CaptioningError(f"--neighbors: {expected}, got {paths[0]}")
    return captioner
