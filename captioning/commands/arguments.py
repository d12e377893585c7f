"""The arguments that several commands have, and the loading of captioners."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioning.cnn.pretrained import FrozenCNN, load_cnn
from captioning.console import say
from captioning.data.coco import ON_ERROR
from captioning.model.captioner import DECODERS
from captioning.model.checkpoint import Checkpoint, load_ensemble
from captioning.model.layers import LSTM_HELP, LSTMS, prepack_lstms
from captioning.settings import choose_device, describe_device


def add_device(parser: Any) -> None:
    text = "cpu, cuda, cuda:1, ... (auto: cuda if there is a GPU)"
    parser.add_argument("--device", default="auto", help=text)


def add_captioner_options(parser: Any) -> None:
    """Adds the options of a new captioner: its decoder, the LSTM implementation, and the device."""
    texts = "; ".join(f"{name}: {decoder.help}" for name, decoder in DECODERS.items())
    parser.add_argument("--decoder", choices=tuple(DECODERS), help=f"{texts} (lstm)")
    parser.add_argument("--lstm", choices=LSTMS, default="fastlstm", help=LSTM_HELP)
    add_device(parser)


def add_on_error(parser: Any) -> None:
    text = "what to do with broken or missing pictures, captions, rows of a table (refuse)"
    parser.add_argument("--on-error", choices=ON_ERROR, default="refuse", help=text)


def load_captioner(
    paths: Sequence[str | Path], device: str, lstm_weights: str = "float32"
) -> tuple[Checkpoint, FrozenCNN]:
    """Loads a captioner or an ensemble, with prepacked LSTMs, and its CNN; prints the device."""
    device = choose_device(device)
    say(describe_device(device), error=True)
    checkpoint = load_ensemble(paths, device=device)
    for model in checkpoint.models:
        prepack_lstms(model, lstm_weights)
    return checkpoint, load_cnn(checkpoint.cnn).to(device)
