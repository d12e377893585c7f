"""`captioning serve`: a web page that captions the pictures dropped on it, by Gradio.

The page and its server talk to nobody else, and what is uploaded is kept in a temporary folder
that is removed at the end.
"""

import contextlib
import html
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from captioning import attention_maps
from captioning.checkpoint import Checkpoint
from captioning.cnn import FrozenCNN
from captioning.errors import CaptioningError
from captioning.generate import Caption, DecodeConfig, generate_captions
from captioning.images import ImageError, load_image
from captioning.tokenizer import tokenize
from fastlstm import functional

MIN_SIDE = 8  # pixels; there is nothing to see in fewer

# What a page of the server may load or talk to: the server.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'self'"
)

STYLE = (
    attention_maps.STYLE
    + """
.answer h3 { margin: 0 0 .1rem; font-size: .95rem; color: var(--neutral-500); }
.answer section + section { margin-top: 1.6rem; }
.answer .caption { font-size: 1.45rem; line-height: 1.3; margin: 0 0 .6rem; }
.answer .words { display: flex; flex-wrap: wrap; gap: .35rem; margin-bottom: .8rem; }
.answer .words span { padding: .2rem .55rem .35rem; border-radius: 6px; text-align: center;
  background: linear-gradient(var(--color-accent), var(--color-accent)) left bottom / var(--p) 4px
  no-repeat, var(--background-fill-secondary); }
.answer .words small { display: block; color: var(--neutral-500); font-size: .75rem; }
.answer details { color: var(--neutral-500); margin: .4rem 0 .8rem; }
.answer .message { font-size: 1.1rem; color: var(--error-text-color); }
footer { display: none !important; }
"""
)
EMPTY = '<div class="answer"><p>The captions appear here.</p></div>'


# What the page says -----------------------------------------------------------------------------


def describe_lstm(lstm: nn.Module) -> str:
    """Which LSTM runs, by which engine, on which device."""
    weight = next(lstm.parameters())
    where = f"on {weight.device}, {str(weight.dtype).removeprefix('torch.')}"
    if isinstance(lstm, (nn.LSTM, nn.LSTMCell)):
        return f"torch.nn.{type(lstm).__name__} {where}"
    asked = lstm.engine if lstm.engine != "auto" else os.environ.get("FASTLSTM_ENGINE", "auto")
    engine = functional.choose_engine(str(asked), weight.device.type, weight.dtype)
    how = "in plain PyTorch" if engine == "reference" else "compiled"
    return f"fastlstm.{type(lstm).__name__} ({how}, engine {engine}) {where}"


def _words(caption: Caption) -> str:
    words = [
        f'<span style="--p: {p:.1%}">{html.escape(word)}<small>{p:.0%}</small></span>'
        for word, p in caption.words
    ]
    return f'<div class="words">{"".join(words)}</div>'


def answer(checkpoint: Checkpoint, cnn: FrozenCNN, path: str | Path, beam_size: int = 5) -> str:
    """HTML about one picture: captions by greedy and beam search, each word with its probability,
    and where an attention decoder looked; or what is wrong with the picture.
    """
    try:
        image = load_image(path, 2 * cnn.transform.resize_size)
        if min(image.size) < MIN_SIDE:
            raise ImageError(
                f"{image.width} x {image.height} pixels, expected {MIN_SIDE} x {MIN_SIDE} or more"
            )
    except ImageError as error:
        reason = html.escape(str(error).removeprefix(f"{path}: "))
        return f'<div class="answer"><p class="message">No caption: {reason}.</p></div>'
    features = cnn.encode(image)
    sections = []
    for title, config in (
        ("Greedy search", DecodeConfig("greedy")),
        (f"Beam search, {beam_size} wide", DecodeConfig("beam", beam_size=beam_size)),
    ):
        start = time.perf_counter()
        found, _ = generate_captions(checkpoint.model, checkpoint.vocabulary, features, config)
        milliseconds = 1000 * (time.perf_counter() - start)
        best, *others = found[0]
        parts = [
            f"<h3>{title} &middot; {milliseconds:.0f} ms</h3>",
            f'<p class="caption">{html.escape(best.text) or "(nothing)"}</p>',
            _words(best),
        ]
        words = tokenize(best.text)
        if maps := attention_maps.maps_of(checkpoint, cnn, image, words):
            parts.append(attention_maps.panels_html(maps))
        if others:
            rest = "".join(f"<li>{html.escape(c.text)} ({c.score:.2f})</li>" for c in others)
            parts.append(
                f"<details><summary>The rest of the beam ({best.score:.2f} is the score of the "
                f"caption above)</summary><ul>{rest}</ul></details>"
            )
        sections.append(f"<section>{''.join(parts)}</section>")
    return f'<div class="answer">{"".join(sections)}</div>'


# The page and its server ------------------------------------------------------------------------


def _gradio() -> Any:
    """Import Gradio, with everything off that would talk to the internet."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        import gradio
    except ImportError as error:
        raise CaptioningError(
            f"serve needs Gradio: pip install 'fastlstm[serve]' ({error})"
        ) from error
    return gradio


@contextlib.contextmanager
def _everything_in_a_temporary_folder() -> Iterator[None]:
    """Uploads, and the cache of matplotlib, which Gradio imports; removed at the end."""
    before = dict(os.environ), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="captioning-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "MPLCONFIGDIR": folder}
        tempfile.tempdir = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            tempfile.tempdir = before[1]


class _SameOrigin:
    """ASGI middleware: tells the browser to talk to this server only."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_page(checkpoint: Checkpoint, cnn: FrozenCNN, name: str) -> Any:
    """The page, as a gradio.Blocks."""
    gradio = _gradio()

    def caption(path: str | None, beam_size: float) -> str:
        return answer(checkpoint, cnn, path, int(beam_size)) if path else EMPTY

    async def uploaded(path: str) -> str:
        if "://" in path:
            raise gradio.Error("expected an uploaded picture, got the address of one")
        return path  # Gradio has checked that it is among the uploads

    model = checkpoint.model
    kind = "with attention" if model.config.decoder == "attention" else "without attention"
    about = (
        f"CNN: {checkpoint.cnn.config.name}. LSTM: {describe_lstm(model.decoder.lstm)}, {kind}. "
        f"{len(checkpoint.vocabulary):,} words."
    )
    with gradio.Blocks(
        title=f"Captions by {name}",
        analytics_enabled=False,
        delete_cache=(600, 3600),  # seconds: how often, and the age of uploads that go
    ) as page:
        gradio.HTML(f"<h1>Captions by {html.escape(name)}</h1><p>{html.escape(about)}</p>")
        with gradio.Row():
            with gradio.Column(scale=2):
                picture = gradio.Image(
                    sources=["upload", "clipboard"], label="Picture", height=340, buttons=[]
                )
                # Unopened: `answer` says what is wrong with it. Never fetched from elsewhere.
                picture.preprocess = lambda payload: payload and payload.path
                picture.async_move_resource_to_block_cache = uploaded
                beam_size = gradio.Slider(1, 10, 5, step=1, label="Width of the beam")
            with gradio.Column(scale=3):
                result = gradio.HTML(EMPTY)
        gradio.on(
            [picture.change, beam_size.release],
            caption,
            [picture, beam_size],
            result,
            api_name="caption",
            show_progress="minimal",
        )
    return page


def serve(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    name: str = "this captioner",
    host: str = "127.0.0.1",
    port: int | None = None,
    max_megabytes: float = 20.0,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        checkpoint: the captioner.
        cnn: its CNN, ``checkpoint.cnn.load()``.
        name: what the page calls it.
        host: address to listen on; the default is reached from this machine only.
        port: if None, the first free one from 7860.
        max_megabytes: larger uploads are refused.

    Raises:
        CaptioningError: Gradio is missing, the port is taken, an argument is out of range.
    """
    if not max_megabytes > 0:
        raise CaptioningError(f"max_megabytes: expected > 0, got {max_megabytes}")
    with _everything_in_a_temporary_folder():
        page = build_page(checkpoint, cnn, name)
        _launch(page, host, port, int(max_megabytes * 1e6))
        print(f"{name}: {page.local_url} (Ctrl-C ends it)", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs deaf to ^C
            signal.signal(number, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            page.close(verbose=False)


def _launch(page: Any, host: str, port: int | None, max_bytes: int) -> None:
    from starlette.middleware import Middleware

    gradio = _gradio()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_bytes,
            prevent_thread_lock=True,
            theme=gradio.themes.Default(font="system-ui", font_mono="ui-monospace"),
            css=STYLE,
            app_kwargs={"middleware": [Middleware(_SameOrigin)]},
            quiet=True,
            share=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
    except OSError as error:
        raise CaptioningError(
            f"cannot listen on {host}, port {port}: it is taken, or no address of this machine"
        ) from error
