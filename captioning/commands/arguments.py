"""Arguments that several commands share, and options from dataclasses."""

import argparse
from argparse import SUPPRESS
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import torch

from captioning.cnn import CNNChoice, Extraction
from captioning.config import option, settings_of
from captioning.model import DECODERS, HELP, LSTMS, WEIGHTS, Checkpoint, freeze, load_ensemble


def device(name: str) -> str:
    """The type of an argument that is a device of this machine."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from error
    return name


def add_settings(
    parser: Any,
    kind: type,
    defaults: Mapping[str, str] | None = None,
    left_out: Collection[str] = (),
    **options: dict[str, Any],
) -> None:
    """Options for the fields of a dataclass that carry their help (`captioning.config.setting`).

    An option that is not given is absent from the namespace; see `given`. `defaults` has what the
    help shows as the default of a field, if not its value, `left_out` the names of fields without
    an option, and `options` more arguments of `add_argument`.
    """
    types = get_type_hints(kind)
    for entry in fields(kind):
        if "help" not in entry.metadata or entry.name in left_out:
            continue
        more = {**entry.metadata, **options.get(entry.name, {})}
        text = more.pop("help").replace("%", "%%")
        more.pop("bounds", None)
        default = (defaults or {}).get(entry.name, entry.default)
        if "suits" in more:
            default = ", ".join(map(str, more.pop("suits")))
        if types[entry.name] is bool:
            more["action"] = "store_true"
        else:
            more.setdefault("type", next(iter(get_args(types[entry.name])), types[entry.name]))
            text += "" if default in (None, MISSING, ()) else f" ({default})"
        required = entry.default is MISSING
        parser.add_argument(
            option(entry.name), default=SUPPRESS, required=required, help=text, **more
        )


def given(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The values of those options of `add_settings` that were given."""
    return {name: getattr(args, name) for name in settings_of(kind) if hasattr(args, name)}


def add_lstm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lstm", choices=LSTMS, default="fastlstm", help=HELP)


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Where and how a captioner writes; see `load_captioner`."""
    parser.add_argument(
        "--device", type=device, default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ..."
    )
    add_lstm(parser)
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float32",
        help="dtype of the LSTM's weights; fewer bits are read faster and may change a word",
    )


def load_captioner(args: argparse.Namespace) -> Checkpoint:
    """The captioners `args.checkpoint`, ready to write as `add_inference` lets one choose."""
    checkpoint = load_ensemble(args.checkpoint, args.lstm, args.device)
    freeze(checkpoint.model, args.weights)
    return checkpoint


def add_decoder(parser: Any, default: str | None = None) -> None:
    texts = "; ".join(f"{name}: {kind.help}" for name, kind in DECODERS.items())
    parser.add_argument("--decoder", choices=tuple(DECODERS), default=default, help=texts)


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """The options of `CNNChoice` and `Extraction`."""
    group = parser.add_argument_group("frozen CNN")
    add_settings(group, CNNChoice)
    add_settings(group, Extraction, device={"type": device})
