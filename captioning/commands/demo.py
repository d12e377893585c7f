"""`captioning demo`: see `captioning.demo`."""

import argparse
from pathlib import Path

from captioning.commands.arguments import add_decoder, add_lstm
from captioning.demo import demo
from captioning.model import DECODERS


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    defaults = ", ".join(f"{name}: {kind.demo.epochs}" for name, kind in DECODERS.items())
    parser.add_argument(
        "--epochs", type=int, metavar="N", help=f"passes over the captions ({defaults})"
    )
    add_decoder(parser, default="lstm")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures, weights and order")
    add_lstm(parser)


def run(args: argparse.Namespace) -> None:
    demo(args.output, args.epochs, args.lstm, args.seed, args.decoder)
