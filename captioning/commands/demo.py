"""`captioning demo`: see `captioning.demo`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import add_decoder, add_device, add_lstm
from captioning.demo import demo
from captioning.model import DECODERS


def add(parser: argparse.ArgumentParser) -> None:
    defaults = ", ".join(f"{name}: {kind.demo['epochs']}" for name, kind in DECODERS.items())
    option = parser.add_argument
    option("--output", type=Path, default=Path("runs/demo"), help="folder (%(default)s)")
    option("--epochs", type=int, help=f"passes over the captions ({defaults})")
    option("--seed", type=int, default=0, help="seed of pictures, weights and order (0)")
    add_decoder(parser)
    add_device(parser)
    add_lstm(parser)


def run(args: argparse.Namespace) -> None:
    decoder = args.decoder or "lstm"
    demo(args.output, args.epochs, args.lstm, args.seed, decoder, args.device)
