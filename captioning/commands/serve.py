"""`captioning serve`: see `captioning.serve`."""

import argparse
from pathlib import Path

from captioning.cnn import keep_freed_blocks
from captioning.commands.arguments import (
    add_inference,
    add_settings,
    at_least,
    given,
    load_captioner,
)
from captioning.serving import Limits, serve


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in"
    )
    parser.add_argument(
        "--port",
        type=at_least(0, 65535),
        metavar="N",
        help="port to listen on; if not given, the first free one from 7860 on",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="another name by which browsers may call the server, such as a reverse proxy's",
    )
    add_settings(parser, Limits)
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    keep_freed_blocks()
    limits = Limits(**given(args, Limits))
    checkpoint = load_captioner(args)
    cnn = checkpoint.cnn.load().to(args.device)
    name = str(args.checkpoint)
    serve(checkpoint, cnn, name, args.host, args.port, args.allow_host or (), limits)
