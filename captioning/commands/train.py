"""`captioning train`: see `captioning.training`."""

import argparse

from captioning import config
from captioning.cnn import CNNChoice, Extraction
from captioning.commands.arguments import add_decoder, add_encoding, add_settings, given
from captioning.config import ModelConfig, TrainConfig, settings_of
from captioning.model import DECODERS
from captioning.training import TrainingRequest, train_captioner


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "train a captioner; each picture is encoded once, and the features are kept\n\n"
        f"Where three defaults are given, they are for fewer than {config.SMALL_SET:,} pictures, "
        "for more,\nand for --self-critical.\n\n"
        "The curves: tensorboard --logdir OUTPUT (pip install tensorboard)"
    )
    add_settings(parser, TrainingRequest)
    group = parser.add_argument_group("model")
    add_decoder(group)
    added: list[str] = []
    kinds: list[type[ModelConfig]] = [ModelConfig]
    for kind in kinds + [decoder.Settings for decoder in DECODERS.values()]:
        add_settings(group, kind, left_out=added)
        added += settings_of(kind)
    group = parser.add_argument_group("training")
    texts = {name: default_of(name) for name in TrainConfig.__dataclass_fields__}
    texts["batches_of"] = "captions, or pictures with --decoder attention"
    samples = config.SELF_CRITICAL.self_critical
    texts["self_critical"] = f"{samples} without a number"
    number = {"nargs": "?", "const": samples, "metavar": "N"}
    add_settings(group, TrainConfig, texts, self_critical=number)
    add_encoding(parser)


def default_of(name: str) -> str:
    """The value of a setting of training, or its three values if they differ."""
    stages = (config.SMALL, config.LARGE, config.SELF_CRITICAL)
    values = [str(getattr(stage, name)) for stage in stages]
    return ", ".join(values if len(set(values)) > 1 else values[:1])


def run(args: argparse.Namespace) -> None:
    train_captioner(request_of(args))


def request_of(args: argparse.Namespace) -> TrainingRequest:
    """Makes the request for `train_captioner` from the options."""
    model = {"decoder": args.decoder} if args.decoder else {}
    for decoder in DECODERS.values():
        model |= given(args, decoder.Settings)
    return TrainingRequest(
        **given(args, TrainingRequest),
        cnn=CNNChoice(**given(args, CNNChoice)),
        extraction=Extraction(**given(args, Extraction)),
        model=model,
        settings=given(args, TrainConfig),
    )
