"""`captioning train`: see `captioning.request`."""

import argparse

from captioning.cnn import CNNChoice, Extraction, keep_freed_blocks
from captioning.commands.arguments import add_decoder, add_encoding, add_settings, given
from captioning.config import (
    DROPOUT,
    IMAGE_AT,
    LARGE,
    SELF_CRITICAL,
    SMALL,
    SMALL_SET,
    ModelConfig,
    TrainConfig,
)
from captioning.training import TrainingRequest, train_captioner


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "train a captioner; each picture is encoded once, and the features are kept\n\n"
        f"Where three defaults are given, they are for fewer than {SMALL_SET:,} pictures, for more,"
        "\nand for --self-critical.\n\n"
        "The curves: tensorboard --logdir OUTPUT (pip install 'fastlstm[tensorboard]')"
    )
    add_settings(parser, TrainingRequest)
    group = parser.add_argument_group("model")
    add_decoder(group)
    defaults = {
        name: f"{values['small']}, {values['large']}"
        for name, values in (("dropout", DROPOUT), ("image_at", IMAGE_AT))
    }
    add_settings(group, ModelConfig, defaults)
    group = parser.add_argument_group("training")
    texts = {name: default_of(name) for name in TrainConfig.__dataclass_fields__}
    texts["batches_of"] = "captions, or pictures with --decoder attention"
    texts["self_critical"] = f"{SELF_CRITICAL.self_critical} without a number"
    number = {"nargs": "?", "const": SELF_CRITICAL.self_critical, "metavar": "N"}
    add_settings(group, TrainConfig, texts, self_critical=number)
    add_encoding(parser)


def default_of(name: str) -> str:
    """The value of a setting of training, or its three values if they differ."""
    values = [str(getattr(config, name)) for config in (SMALL, LARGE, SELF_CRITICAL)]
    return ", ".join(values if len(set(values)) > 1 else values[:1])


def run(args: argparse.Namespace) -> None:
    keep_freed_blocks()
    train_captioner(request_of(args))


def request_of(args: argparse.Namespace) -> TrainingRequest:
    """Makes the request for `train_captioner` from the options."""
    decoder = {"decoder": args.decoder} if args.decoder else {}
    return TrainingRequest(
        **given(args, TrainingRequest),
        cnn=CNNChoice(**given(args, CNNChoice)),
        extraction=Extraction(**given(args, Extraction)),
        model=given(args, ModelConfig) | decoder,
        settings=given(args, TrainConfig),
    )
