"""`captioning serve` serves a web page, made with Gradio, that captions pictures."""

import argparse
import os
import signal
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioning.commands.arguments import add_captioner, load_captioner
from captioning.console import say
from captioning.data.images import ImageError, load_image
from captioning.errors import CaptioningError
from captioning.image_captioner import ImageCaptioner
from captioning.results.attention_maps import Maps, attends, attention_maps
from captioning.search.generate import Caption, generate_captions

MAX_PIXELS = 64_000_000  # of a picture
MAX_FILE = "20mb"  # size of an upload
MAX_BEAM = 20  # beams; more are reduced to this
TITLE = "Caption a picture"


def add(parser: argparse.ArgumentParser) -> None:
    text = "the captioner, such as runs/demo/best.pt, or an ensemble of several"
    parser.add_argument("checkpoint", type=Path, nargs="+", help=text)
    text = "address to listen on; 0.0.0.0 lets other machines in (127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, help="port (the first free one from 7860 on)")
    add_captioner(parser)


def run(args: argparse.Namespace) -> None:
    check_address(args.host, args.port)
    captioner = load_captioner(args, args.checkpoint)
    import gradio as gr

    # Both signals stop the page. SIGINT is set too: shells start background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="captioning-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # where Gradio keeps uploads
        name = ", ".join(map(str, args.checkpoint))
        page = build_page(captioner, name)
        theme = gr.themes.Default(font="system-ui", font_mono="ui-monospace")
        options: Any = {"server_name": args.host, "server_port": args.port, "quiet": True}
        # By default Gradio would make a public link to the page if it runs in Colab.
        options |= {"max_file_size": MAX_FILE, "run_history": False, "share": False}
        page.launch(theme=theme, footer_links=["api"], prevent_thread_lock=True, **options)
        say(f"{name}: {page.local_url} (Ctrl-C to stop)")
        page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """Refuses an address that this machine cannot listen on. Otherwise Gradio tries many ports."""
    if port is not None and not 1 <= port <= 65535:
        raise CaptioningError(f"--port: expected a number from 1 to 65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port or 0), family=family).close()
    except OSError as error:
        address = f"{host} port {port}" if port else f"--host {host}"
        reason = str(error.strerror).partition(" (")[0]  # the address follows, in parentheses
        raise CaptioningError(f"cannot listen on {address}: {reason}") from error


def caption_picture(
    captioner: ImageCaptioner, picture: str | Path, beam_size: int
) -> tuple[list[Caption], Maps]:
    """Captions a picture file by beam search; raises `ImageError` if it is broken or too large.

    Returns the captions, best first, and the attention maps of the best one, [] without attention.
    """
    checkpoint, cnn = captioner.checkpoint, captioner.cnn
    with open(picture, "rb") as file:
        image = load_image(file, 2 * cnn.transform.resize_size, MAX_PIXELS)
    features, config = cnn.encode(image), captioner.search(method="beam", beam_size=beam_size)
    (captions,) = generate_captions(checkpoint, features, config)
    if not attends(checkpoint):
        return captions, []
    words = [word for word, _ in captions[0].words if word != "<end>"]
    return captions, attention_maps(checkpoint, cnn.transform.view(image), features, words)


def build_page(captioner: ImageCaptioner, name: str) -> Any:
    """Makes the page, a gradio.Blocks. It shows the `name` of the captioner."""
    import gradio as gr

    checkpoint = captioner.checkpoint

    def caption(picture: dict[str, Any] | None, beams: float) -> tuple[Any, Any, Any]:
        if not picture:
            return None, None, None
        path, beam_size = picture.get("path"), min(max(int(beams), 1), MAX_BEAM)
        try:
            if not isinstance(path, str):
                raise ImageError("expected the path of an uploaded file")
            captions, maps = caption_picture(captioner, path, beam_size)
        except ImageError as error:
            raise gr.Error(f"No caption: {error}", print_exception=False) from error
        words = [(word, f"{p:.0%}") for word, p in captions[0].words if word != "<end>"]
        return words, maps, [asdict(c) for c in captions]

    cleanup = (600, 3600)  # every 600 seconds Gradio deletes uploads older than 3,600 seconds
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=cleanup) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(sources=["upload", "clipboard"], label="Picture", height=340)
                initial = min(checkpoint.search.beam_size, MAX_BEAM)
                beams = gr.Slider(1, MAX_BEAM, initial, step=1, label="Beams (1: greedy search)")
            with gr.Column():
                words = gr.HighlightedText(label="Caption, and the probability of each word")
                maps = gr.Gallery(columns=6, label="Where it looked", visible=attends(checkpoint))
                all_captions = gr.JSON(label="All captions, for programs")
        count, decoder = len(checkpoint.vocabulary), checkpoint.model.config.decoder
        gr.Markdown(f"`{name}`. CNN: {checkpoint.cnn.name}. Decoder: {decoder}. {count:,} words.")
        # Without `preprocess`, because Gradio's own message about a broken picture says less.
        options: Any = {"api_name": "caption", "preprocess": False, "concurrency_limit": 1}
        events, outputs = [picture.change, beams.release], [words, maps, all_captions]
        gr.on(events, caption, [picture, beams], outputs, **options)
    return page.queue(max_size=50)
