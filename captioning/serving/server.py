"""`captioning serve`: a web page that captions the pictures dropped on it, by Gradio.

The page and its server contact no other server, and uploads are kept in a temporary folder that is
removed at the end. `captioning.guard` decides which requests reach Gradio.
"""

import errno
import html
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from torch import nn

from captioning.cnn import FrozenCNN
from captioning.data import END, MAX_PIXELS, SPECIAL, ImageError, load_image, tokenize
from captioning.demo import PLACES, Facts, draw_scene, split_combinations
from captioning.errors import CaptioningError
from captioning.model import Checkpoint
from captioning.results import compute_maps, panels_html
from captioning.search import Caption, DecodeConfig, generate_captions
from captioning.serving.uploads import Limits, Uploads
from fastlstm import LSTM, LSTMCell, PackedLSTM, PackedLSTMCell, functional

MIN_SIDE = 8  # pixels

PORTS = range(7860, 7960)  # the first free one is the default
MAX_CONNECTIONS = 500

# The text of the page ---------------------------------------------------------------------------


def describe(checkpoint: Checkpoint) -> str:
    """One line about the captioner."""
    model = checkpoint.model
    return (
        f"CNN: {checkpoint.cnn.config.name}. Decoder: {model.config.decoder}, "
        f"{describe_lstm(model)}. {len(checkpoint.vocabulary):,} words."
    )


def describe_lstm(model: nn.Module) -> str:
    """Which LSTM runs, if any, by which engine, on which device."""
    weight = next(model.parameters())
    where = f"on {weight.device}, {str(weight.dtype).removeprefix('torch.')}"
    kinds = (nn.RNNBase, nn.RNNCellBase, PackedLSTM, PackedLSTMCell)
    lstm = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if lstm is None:
        return where
    if isinstance(lstm, (PackedLSTM, PackedLSTMCell)):
        weights = str(lstm.weights).removeprefix("torch.")
        return f"fastlstm.{type(lstm).__name__} (compiled, weights in {weights}) on cpu"
    if not isinstance(lstm, (LSTM, LSTMCell)):
        package = type(lstm).__module__.removesuffix(".modules.rnn")
        return f"{package}.{type(lstm).__name__} {where}"
    engine = lstm.engine if lstm.engine != "auto" else os.environ.get("FASTLSTM_ENGINE") or "auto"
    engine = functional.choose_engine(engine, weight.device.type, weight.dtype)
    how = "in plain PyTorch" if engine == "reference" else "compiled"
    return f"fastlstm.{type(lstm).__name__} ({how}, engine {engine}) {where}"


def _words(caption: Caption) -> str:
    words = [
        f'<span style="--p: {p:.1%}">{html.escape(word)}<small>{p:.0%}</small></span>'
        for word, p in caption.words
        if word != SPECIAL[END]
    ]
    return f'<div class="words">{"".join(words)}</div>'


def answer(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    path: str | Path,
    beam_size: int = 5,
    max_pixels: int = MAX_PIXELS,
) -> str:
    """HTML about one picture: captions by greedy and beam search, each word with its probability,
    and the attention maps if there are any; or what is wrong with the picture.
    """
    try:
        image = load_image(path, 2 * cnn.transform.resize_size, max_pixels)
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
        if maps := compute_maps(checkpoint, cnn, image, words):
            parts.append(panels_html(maps))
        if others:
            rest = "".join(f"<li>{html.escape(c.text)} ({c.score:.2f})</li>" for c in others)
            parts.append(
                f"<details><summary>The rest of the beam ({best.score:.2f} is the score of the "
                f"caption above)</summary><ul>{rest}</ul></details>"
            )
        sections.append(f"<section>{''.join(parts)}</section>")
    return f'<div class="answer">{"".join(sections)}</div>'


def draw_examples(folder: Path, checkpoint: Checkpoint) -> list[Path]:
    """Drawn scenes, for a captioner that knows no other pictures."""
    if checkpoint.cnn.config.name != "scenes_cnn":
        return []
    folder.mkdir()
    seen, rng = split_combinations()[0], random.Random(4)
    paths = [folder / f"scene{number}.png" for number in range(1, 5)]
    for path in paths:
        draw_scene(rng, Facts(*rng.choice(seen), place=rng.choice(list(PLACES)))).save(path)
    return paths


# The page and its server ------------------------------------------------------------------------


def _environment(folder: Path) -> dict[str, str]:
    """Variables that Gradio and matplotlib, which it imports, read."""
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_EXAMPLES_CACHE": str(folder / "cached"),
        "GRADIO_TEMP_DIR": str(folder),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": str(folder / "matplotlib"),
    }


def serve(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    name: str = "this captioner",
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        checkpoint: the captioner.
        cnn: its CNN, ``checkpoint.cnn.load()``.
        name: its name, in small print on the page.
        host: address to listen on; the default can be reached from this machine only.
        port: if None, the first free one from 7860.
        allow_hosts: other names by which browsers may call the server, such as a reverse proxy's.
        limits: of uploads; `Limits()` if None.

    Raises:
        CaptioningError: Gradio is missing, the port is taken, an argument is out of range.
    """
    limits = limits or Limits()
    # Larger than what malloc keeps, so that the memory of a large picture is returned.
    Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
    host = host.strip("[]")  # of an IPv6 address

    def caption(path: str, beam_size: int) -> str:
        return answer(checkpoint, cnn, path, beam_size, limits.pixels)

    with (
        _listen(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="captioning-") as temporary,
        mock.patch.dict(os.environ, _environment(folder := Path(temporary).resolve())),
    ):
        try:
            from captioning.serving.gradio_page import GradioPage
            from captioning.serving.guard import Connection, Guard, Hosts
        except ImportError as error:
            raise CaptioningError(
                f"serve needs Gradio: pip install 'fastlstm[serve]' ({error})"
            ) from error
        uploads = Uploads(folder / "uploads", limits.kept_bytes)
        about = f"{name}. {describe(checkpoint)}"
        examples = draw_examples(folder / "examples", checkpoint)
        page = GradioPage(caption, about, uploads, limits.upload_bytes, examples)
        hosts = Hosts(host, allow_hosts)
        guard = Guard(page.app(), hosts, page.paths, page.UPLOAD, limits)
        _run(guard, Connection, listener, f"{name}: {_address(host, listener)}")


def _listen(host: str, port: int | None) -> socket.socket:
    numbers = PORTS if port is None else (port,)
    for number in numbers:
        try:
            kind, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=kind)
        except OSError as reason:
            error = reason
            if reason.errno != errno.EADDRINUSE:
                break
    raise CaptioningError(f"cannot listen on {host}, port {number}: {error.strerror}") from error


def _address(host: str, listener: socket.socket) -> str:
    """The address for a browser on this machine."""
    host = "localhost" if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def _run(app: Any, protocol: Any, listener: socket.socket, title: str) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        http=protocol,
        proxy_headers=False,
        ws="none",
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore ^C
        signal.signal(number, signal.default_int_handler)
    print(f"{title} (Ctrl-C to stop)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # by uvicorn, after it has ended
        print("stopped")
