"""`captioning serve`: a web page by Gradio that captions the pictures dropped on it."""

import argparse
import contextlib
import os
import signal
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioning.cnn import FrozenCNN, load_cnn
from captioning.commands.arguments import add_checkpoint, add_device, load_captioner
from captioning.console import say
from captioning.data import ImageError, load_image
from captioning.errors import CaptioningError
from captioning.model import Checkpoint
from captioning.results import attends, compute_maps
from captioning.search import DecodeConfig, generate_captions

MIN_SIDE = 8  # pixels
MAX_PIXELS = 64_000_000
MAX_FILE = "20mb"
MAX_BEAM = 20
TITLE = "Caption a picture"


def add(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    text = "address to listen on; 0.0.0.0 lets other machines in (127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, help="port (the first free one from 7860 on)")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    checkpoint = load_captioner(args.checkpoint, args.device)
    cnn = load_cnn(checkpoint.cnn).to(next(checkpoint.model.parameters()).device)
    serve(checkpoint, cnn, args.host, args.port, ", ".join(map(str, args.checkpoint)))


def answer(
    checkpoint: Checkpoint, cnn: FrozenCNN, picture: str | Path, beam_size: int
) -> list[dict[str, Any]]:
    """What greedy and beam search write about a picture's file.

    For each search its title, its milliseconds, its captions, the best first, and its maps: a
    picture for each word of the best that shows where a decoder that attends looked. An ImageError
    says why a picture is refused.
    """
    with open(picture, "rb") as file:
        image = load_image(file, 2 * cnn.transform.resize_size, MAX_PIXELS)
    if min(image.size) < MIN_SIDE:
        raise ImageError(
            f"{image.width} x {image.height} pixels, expected {MIN_SIDE} x {MIN_SIDE} or more"
        )
    features, view, searches = cnn.encode(image), cnn.transform.view(image), []
    for title, config in (
        ("Greedy search", DecodeConfig("greedy")),
        (f"Beam search, {beam_size} wide", DecodeConfig("beam", beam_size=beam_size)),
    ):
        start = time.perf_counter()
        found = generate_captions(checkpoint, features, config)[0]
        search = {"title": title, "milliseconds": round(1000 * (time.perf_counter() - start))}
        words = [word for word, _ in found[0].words if word != "<end>"]
        maps: list[Any] = []
        if attends(checkpoint):
            maps = compute_maps(checkpoint, view, features, words).pictures()
        searches.append(search | {"captions": [*map(asdict, found)], "maps": maps})
    return searches


def build_page(checkpoint: Checkpoint, cnn: FrozenCNN, name: str) -> Any:
    """The page, a gradio.Blocks."""
    import gradio as gr

    def caption(picture: dict[str, Any] | None, beams: float) -> list[Any]:
        if not picture:
            return [None] * 5
        path, size = picture.get("path"), min(max(int(beams), 1), MAX_BEAM)
        try:
            if not isinstance(path, str):
                raise ImageError("expected the path of an uploaded file")
            found = answer(checkpoint, cnn, path, size)
        except ImageError as error:
            raise gr.Error(f"No caption: {error}", print_exception=False) from error
        shown: list[Any] = []
        for search in found:
            words = search["captions"][0]["words"]
            tagged = [(word, f"{p:.0%}") for word, p in words if word != "<end>"]
            label = f"{search['title']}, {search['milliseconds']} ms"
            shown += [gr.HighlightedText(tagged, label=label), search.pop("maps")]
        return [*shown, found]

    uploads = (600, 3600)  # seconds: how often Gradio looks for old ones, and how old those are
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=uploads) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(sources=["upload", "clipboard"], label="Picture", height=340)
                widest = min(checkpoint.beam.beam_size, MAX_BEAM)
                beams = gr.Slider(1, MAX_BEAM, widest, step=1, label="Beams")
            with gr.Column():
                outputs: list[Any] = []
                for title in ("Greedy search", "Beam search"):
                    outputs.append(gr.HighlightedText(label=title))
                    looked = {"label": "Where it looked", "visible": attends(checkpoint)}
                    outputs.append(gr.Gallery(columns=6, **looked))
                outputs.append(gr.JSON(label="All captions, for programs"))
        words, decoder = len(checkpoint.vocabulary), checkpoint.model.config.decoder
        gr.Markdown(f"`{name}`. CNN: {checkpoint.cnn.name}. Decoder: {decoder}. {words:,} words.")
        gr.on(
            [picture.change, beams.release],
            caption,
            [picture, beams],
            outputs,
            api_name="caption",
            preprocess=False,  # Gradio would say less about a broken picture
            concurrency_limit=1,
        )
    return page.queue(max_size=50)


def serve(checkpoint: Checkpoint, cnn: FrozenCNN, host: str, port: int | None, name: str) -> None:
    """Serve the page, with the captioner's name below it, until Ctrl-C or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore ^C
        signal.signal(number, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="captioning-") as folder,
    ):
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads
        try:
            import gradio as gr
        except ImportError as error:
            raise CaptioningError(f"serve needs {error.name}: pip install gradio") from error
        page = build_page(checkpoint, cnn, name)
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_FILE,
            theme=gr.themes.Default(font="system-ui", font_mono="ui-monospace"),
            footer_links=["api"],
            prevent_thread_lock=True,
            quiet=True,
            share=False,  # not even in a notebook
            run_history=False,
        )
        try:
            say(f"{name}: {page.local_url} (Ctrl-C to stop)")
            threading.Event().wait()
        finally:
            page.close(verbose=False)
