"""`captioning import-yunjey`: see `captioning.model.yunjey`."""

import argparse
from pathlib import Path

from captioning.console import say
from captioning.files import lock_files
from captioning.model import import_yunjey


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", type=Path, required=True, help="encoder-*.ckpt")
    parser.add_argument("--decoder", type=Path, required=True, help="decoder-*.ckpt")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.pkl")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--cnn", default="resnet152", help="the ResNet of the encoder")


def run(args: argparse.Namespace) -> None:
    with lock_files(args.output):
        import_yunjey(args.encoder, args.decoder, args.vocab, args.cnn).save(args.output)
    say(f"{args.output}: caption with it, python -m captioning caption {args.output} PICTURES")
