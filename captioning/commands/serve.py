"""`captioning serve`: see `captioning.serve`."""

import argparse
from pathlib import Path

from captioning.checkpoint import load_checkpoint
from captioning.commands.arguments import add_device, add_lstm, at_least, positive
from captioning.serve import serve


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: let other machines in")
    parser.add_argument(
        "--port",
        type=at_least(0, 65535),
        metavar="N",
        help="the first free one from 7860 if not given",
    )
    parser.add_argument(
        "--max-megabytes", type=positive, metavar="X", default=20.0, help="of an upload"
    )
    add_device(parser)
    add_lstm(parser)


def run(args: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(args.checkpoint, args.lstm, args.device)
    cnn = checkpoint.cnn.load().to(args.device)
    serve(checkpoint, cnn, str(args.checkpoint), args.host, args.port, args.max_megabytes)
