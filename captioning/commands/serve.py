"""`captioning serve`: see `captioning.serving`."""

import argparse
from pathlib import Path

from captioning.cnn import keep_freed_blocks
from captioning.commands.arguments import add_inference, add_settings, given, load_captioner
from captioning.serving import ServerSettings, serve


def add(parser: argparse.ArgumentParser) -> None:
    told = "the captioner, such as runs/demo/best.pt, or several that write together"
    parser.add_argument("checkpoint", type=Path, nargs="+", help=told)
    add_settings(parser, ServerSettings)
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    keep_freed_blocks()
    settings = ServerSettings(**given(args, ServerSettings))
    checkpoint = load_captioner(args)
    cnn = checkpoint.cnn.load().to(args.device)
    serve(checkpoint, cnn, settings, ", ".join(map(str, args.checkpoint)))
