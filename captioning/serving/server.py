"""`captioning serve`: a web page that captions the pictures dropped on it.

It is served by Starlette and uvicorn, contacts no other server, and writes nothing to the disk.
"""

import contextlib
import errno
import io
import random
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import nn

from captioning.cnn import FrozenCNN
from captioning.config import POSITIVE, Checked, setting
from captioning.data import MAX_PIXELS, ImageError, data_uri, load_image, tokenize
from captioning.demo import PLACES, Facts, draw_scene, split_combinations
from captioning.errors import CaptioningError
from captioning.files import render
from captioning.model import Checkpoint
from captioning.results import compute_maps
from captioning.search import DecodeConfig, generate_captions
from fastlstm import PackedLSTM, PackedLSTMCell

MIN_SIDE = 8  # pixels
MAX_BEAM = 20
PORTS = range(7860, 7960)  # the first free one is the default
MAX_CONNECTIONS = 500


@dataclass(frozen=True)
class ServerSettings(Checked):
    """Where the server listens, and what it accepts."""

    host: str = setting("address to listen on; 0.0.0.0 lets other machines in", "127.0.0.1")
    port: int | None = setting(
        "port to listen on; if not given, the first free one from 7860 on",
        None,
        bounds={">=": 0, "<=": 65535},
    )
    allow_host: Sequence[str] = setting(
        "another name by which browsers may call the server, such as a reverse proxy's",
        (),
        action="append",
        metavar="NAME",
    )
    max_megabytes: float = setting("largest file of a picture", 20.0, bounds=POSITIVE)
    max_megapixels: float = setting("largest picture", 64.0, bounds=POSITIVE)


def describe_lstm(model: nn.Module) -> str:
    """Which LSTM runs, if any, and where."""
    weight = next(model.parameters())
    kinds = (nn.RNNBase, nn.RNNCellBase, PackedLSTM, PackedLSTMCell)
    lstm = next((module for module in model.modules() if isinstance(module, kinds)), model)
    engine = f" (engine {lstm.engine})" if hasattr(lstm, "engine") else ""
    name = f"{type(lstm).__module__.split('.')[0]}.{type(lstm).__name__}"
    dtype = str(getattr(lstm, "weights", weight.dtype)).removeprefix("torch.")
    return f"{name}{engine} on {weight.device}, {dtype}"


def answer(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    picture: bytes,
    beam_size: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """What greedy and beam search write about a picture, the content of a file, for JSON.

    For each search its title, its milliseconds, its captions, the best first, and where it looked
    for the words of the best, if the decoder attends. With a `beam_size` of 0 the beam is as wide
    as was best for the captioner. An ImageError says why a picture is refused.
    """
    image = load_image(io.BytesIO(picture), 2 * cnn.transform.resize_size, max_pixels)
    if min(image.size) < MIN_SIDE:
        raise ImageError(
            f"{image.width} x {image.height} pixels, expected {MIN_SIDE} x {MIN_SIDE} or more"
        )
    features, size = cnn.encode(image), beam_size or checkpoint.model.beam.beam_size
    searches = []
    for title, config in (
        ("Greedy search", DecodeConfig("greedy")),
        (f"Beam search, {size} wide", DecodeConfig("beam", beam_size=size)),
    ):
        start = time.perf_counter()
        found = generate_captions(checkpoint.model, checkpoint.vocabulary, features, config)[0]
        search = {"title": title, "milliseconds": round(1000 * (time.perf_counter() - start))}
        maps = compute_maps(checkpoint, cnn, image, tokenize(found[0].text))
        attention = maps.panels() if maps else None
        searches.append(search | {"captions": [*map(asdict, found)], "attention": attention})
    return {"searches": searches}


def draw_examples(checkpoint: Checkpoint) -> list[str]:
    """Drawn scenes as data URIs, for a captioner that knows no other pictures."""
    if checkpoint.cnn.config.name != "scenes_cnn":
        return []
    seen, rng = split_combinations()[0], random.Random(4)
    facts = [Facts(*rng.choice(seen), place=rng.choice(list(PLACES))) for _ in range(4)]
    return [data_uri(draw_scene(rng, fact)) for fact in facts]


def serve(
    checkpoint: Checkpoint,
    cnn: FrozenCNN,
    settings: ServerSettings | None = None,
    name: str = "this captioner",
) -> None:
    """Serve the page, with the captioner's name in small print, until Ctrl-C or SIGTERM."""
    settings = settings or ServerSettings()
    try:
        import uvicorn

        from captioning.serving.app import CaptionApp
        from captioning.serving.guard import Connection, Guard, Hosts
    except ImportError as error:
        raise CaptioningError(f"serve needs {error.name}: pip install 'fastlstm[serve]'") from error
    # Larger than what malloc keeps, so that the memory of a large picture is returned.
    Image.core.set_block_size(2**26)  # type: ignore[attr-defined]
    host = settings.host.strip("[]")  # of an IPv6 address
    model = checkpoint.model
    about = f"{name}. CNN: {checkpoint.cnn.config.name}. Decoder: {model.config.decoder}, "
    page = render(
        "serving/page.html",
        about=f"{about}{describe_lstm(model)}. {len(checkpoint.vocabulary):,} words.",
        examples=draw_examples(checkpoint),
        max_beam=MAX_BEAM,
        beam=min(model.beam.beam_size, MAX_BEAM),
        max_megabytes=settings.max_megabytes,
    )

    def caption(picture: bytes, beam_size: int) -> dict[str, Any]:
        pixels = int(settings.max_megapixels * 1e6)
        return answer(checkpoint, cnn, picture, min(beam_size, MAX_BEAM), pixels)

    app = CaptionApp(page, caption, int(settings.max_megabytes * 1e6))
    config = uvicorn.Config(
        Guard(app, Hosts(host, settings.allow_host)),
        http=Connection,
        proxy_headers=False,
        ws="none",
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore ^C
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), _listen(host, settings.port) as listener:
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        print(f"{name}: {address} (Ctrl-C to stop)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])  # it raises KeyboardInterrupt at its end


def _listen(host: str, port: int | None) -> socket.socket:
    for number in PORTS if port is None else (port,):
        try:
            kind, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=kind)
        except OSError as reason:
            error = reason
            if reason.errno != errno.EADDRINUSE:
                break
    raise CaptioningError(f"cannot listen on {host}, port {number}: {error.strerror}") from error
