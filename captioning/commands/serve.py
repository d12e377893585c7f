"""`captioning serve`: a web page by Gradio that captions the pictures dropped on it."""

import argparse
import contextlib
import os
import random
import signal
import socket
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captioning.cnn import FrozenCNN
from captioning.commands.arguments import add_inference, add_settings, given, load_captioner
from captioning.config import POSITIVE, Checked, setting
from captioning.console import say
from captioning.data import MAX_PIXELS, ImageError, load_image, tokenize
from captioning.demo import PLACES, Facts, draw_scene, split_combinations
from captioning.errors import CaptioningError
from captioning.model import Attentive, Checkpoint
from captioning.results import compute_maps
from captioning.search import DecodeConfig, generate_captions

MIN_SIDE = 8  # pixels
MAX_BEAM = 20
TITLE = "Caption a picture"


@dataclass(frozen=True)
class ServerSettings(Checked):
    """Where the server listens, and what it accepts."""

    host: str = setting("address to listen on; 0.0.0.0 lets other machines in", "127.0.0.1")
    port: int | None = setting(
        "port to listen on; if not given, the first free one from 7860 on",
        None,
        bounds={">=": 1, "<=": 65535},
    )
    max_megabytes: float = setting("largest file of a picture", 20.0, bounds=POSITIVE)
    max_megapixels: float = setting("largest picture", 64.0, bounds=POSITIVE)


def add(parser: argparse.ArgumentParser) -> None:
    told = "the captioner, such as runs/demo/best.pt, or several that write together"
    parser.add_argument("checkpoint", type=Path, nargs="+", help=told)
    add_settings(parser, ServerSettings)
    add_inference(parser)


def run(args: argparse.Namespace) -> None:
    settings = ServerSettings(**given(args, ServerSettings))
    checkpoint = load_captioner(args)
    cnn = checkpoint.cnn.load().to(args.device)
    serve(checkpoint, cnn, settings, ", ".join(map(str, args.checkpoint)))


def answer(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    picture: str | Path,
    beam_size: int,
    max_pixels: int = MAX_PIXELS,
) -> list[dict[str, Any]]:
    """What greedy and beam search write about a picture's file.

    For each search its title, its milliseconds, its captions, the best first, and its maps: a
    picture for each word of the best that shows where a decoder that attends looked. An ImageError
    says why a picture is refused.
    """
    with open(picture, "rb") as file:
        image = load_image(file, 2 * cnn.transform.resize_size, max_pixels)
    if min(image.size) < MIN_SIDE:
        raise ImageError(
            f"{image.width} x {image.height} pixels, expected {MIN_SIDE} x {MIN_SIDE} or more"
        )
    features, searches = cnn.encode(image), []
    for title, config in (
        ("Greedy search", DecodeConfig("greedy")),
        (f"Beam search, {beam_size} wide", DecodeConfig("beam", beam_size=beam_size)),
    ):
        start = time.perf_counter()
        found = generate_captions(checkpoint.model, checkpoint.vocabulary, features, config)[0]
        search = {"title": title, "milliseconds": round(1000 * (time.perf_counter() - start))}
        maps = compute_maps(checkpoint, cnn, image, tokenize(found[0].text))
        pictures = maps.pictures() if maps else []
        searches.append(search | {"captions": [*map(asdict, found)], "maps": pictures})
    return searches


def draw_examples(folder: Path) -> list[str]:
    """Files of drawn scenes."""
    seen, rng = split_combinations()[0], random.Random(4)
    paths = [str(folder / f"{number}.png") for number in range(4)]
    for path in paths:
        draw_scene(rng, Facts(*rng.choice(seen), place=rng.choice(list(PLACES)))).save(path)
    return paths


def build_page(
    checkpoint: Checkpoint, cnn: FrozenCNN, settings: ServerSettings, name: str, folder: Path
) -> Any:
    """The page, a gradio.Blocks. `folder` gets examples if the captioner knows drawn scenes."""
    import gradio as gr

    model, cnn_name = checkpoint.model, checkpoint.cnn.config.name

    def caption(picture: dict[str, Any] | None, beams: float) -> list[Any]:
        if not picture:
            return [None] * 5
        size, pixels = min(max(int(beams), 1), MAX_BEAM), int(settings.max_megapixels * 1e6)
        try:
            found = answer(checkpoint, cnn, picture["path"], size, pixels)
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
                widest = min(model.beam.beam_size, MAX_BEAM)
                beams = gr.Slider(1, MAX_BEAM, widest, step=1, label="Beams")
                if cnn_name == "scenes_cnn":
                    gr.Examples(draw_examples(folder), picture)
            with gr.Column():
                outputs: list[Any] = []
                for title in ("Greedy search", "Beam search"):
                    attends, label = isinstance(model.decoder, Attentive), "Where it looked"
                    outputs.append(gr.HighlightedText(label=title))
                    outputs.append(gr.Gallery(label=label, visible=attends, columns=6))
                outputs.append(gr.JSON(label="All captions, for programs"))
        words = f"{len(checkpoint.vocabulary):,} words"
        gr.Markdown(f"`{name}`. CNN: {cnn_name}. Decoder: {model.config.decoder}. {words}.")
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


def serve(checkpoint: Checkpoint, cnn: FrozenCNN, settings: ServerSettings, name: str) -> None:
    """Serve the page, with the captioner's name below it, until Ctrl-C or SIGTERM."""
    host = settings.host.strip("[]")  # of an IPv6 address
    _check_address(host, settings.port)
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
            told = f"serve needs {error.name}: pip install gradio"
            raise CaptioningError(told) from error
        page = build_page(checkpoint, cnn, settings, name, Path(folder))
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=settings.port,
            max_file_size=int(settings.max_megabytes * 1e6),
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


def _check_address(host: str, port: int | None) -> None:
    """Gradio would try a hundred ports first, and say less."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=kind).close()
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise CaptioningError(f"cannot listen on {where}: {error.strerror}") from error
