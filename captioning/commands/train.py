"""`captioning train`: see `captioning.train`."""

import argparse
import dataclasses
import re
from pathlib import Path

import torch

from captioning.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
from captioning.commands.arguments import (
    add_cnn,
    add_device,
    add_lstm,
    add_on_error,
    encode,
    load_cnn_of,
    load_data,
)
from captioning.config import (
    DROPOUT,
    LARGE,
    SELF_CRITICAL,
    SMALL,
    SMALL_SET,
    TrainConfig,
    recipe,
)
from captioning.errors import CaptioningError
from captioning.features import FeatureTable
from captioning.model import Captioner, ModelConfig
from captioning.processes import first_process_first, processes
from captioning.train import train
from captioning.vocabulary import Vocabulary


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "train a captioner; each picture is encoded once, and the features are kept\n\n"
        f"Where three defaults are given, they are for fewer than {SMALL_SET:,} pictures, for more,"
        "\nand for --self-critical."
    )
    parser.add_argument("--train", type=Path, required=True, help="COCO captions file")
    parser.add_argument("--train-images", type=Path, help="folder of its pictures")
    parser.add_argument("--val", type=Path, help="COCO captions file to validate on")
    parser.add_argument("--val-images", type=Path, help="folder of its pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument(
        "--features", type=Path, help="folder of feature caches (OUTPUT/features, or START's)"
    )
    parser.add_argument("--vocab", type=Path, help="vocabulary file; built if not given")
    parser.add_argument("--min-count", type=int, default=4, help="of a built vocabulary")
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint whose weights to start from; words, model and CNN are its own then",
    )
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/last.pt")
    add_on_error(parser)
    add_device(parser)
    add_lstm(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--decoder",
        choices=("lstm", "attention"),
        default="lstm",
        help="attention looks at the cells of the feature map (--pool grid)",
    )
    group.add_argument("--embed-size", type=int, default=256, help="of word and picture vectors")
    group.add_argument("--hidden-size", type=int, default=512, help="of the LSTM's state")
    group.add_argument("--num-layers", type=int, default=1, help="of the LSTM")
    group.add_argument(
        "--max-seq-length", type=int, default=20, help="the most tokens to write, with <end>"
    )
    group.add_argument(
        "--dropout",
        type=float,
        help="share of elements dropped ({small}, {large})".format(**DROPOUT),
    )
    group = parser.add_argument_group("training")
    texts = docstring_args(TrainConfig)
    for entry in dataclasses.fields(TrainConfig):
        name, text = "--" + entry.name.replace("_", "-"), texts[entry.name]
        kind = type(entry.default)
        values = [getattr(config, entry.name) for config in (SMALL, LARGE, SELF_CRITICAL)]
        if entry.name == "self_critical":
            text = f"{text}; without a number {values[2]}"
            group.add_argument(name, type=int, nargs="?", const=values[2], metavar="N", help=text)
        elif kind is bool:
            group.add_argument(name, action="store_true", help=text)
        else:
            told = values[:1] if len(set(values)) == 1 else values
            group.add_argument(name, type=kind, help=f"{text} ({', '.join(map(str, told))})")
    add_cnn(parser)
    parser.set_defaults(pool=None)  # as the decoder needs it


def run(args: argparse.Namespace) -> None:
    if (args.output / "last.pt").exists() and not args.resume:
        raise CaptioningError(
            f"{args.output} holds a captioner already: --resume, or another --output"
        )
    with processes(args.device) as here:
        with first_process_first(here):
            checkpoint, tables = prepare_training(args, here.is_first)
        config = config_of(args, len(tables[0].images))
        val = tables[1] if args.val else None
        if here.is_first:
            print(
                f"{len(tables[0].images):,} pictures, {len(checkpoint.vocabulary):,} words; "
                f"{config.epochs} epochs, batches of {config.batch_size}, learning rate "
                f"{config.learning_rate}"
            )
        train(checkpoint, config, tables[0], val, args.output, args.resume, here)
        if here.is_first:
            print(f"best captioner: {args.output / 'best.pt'}")


def config_of(args: argparse.Namespace, pictures: int) -> TrainConfig:
    """The settings for so many pictures, but for those that were given."""
    asked = {e.name: getattr(args, e.name) for e in dataclasses.fields(TrainConfig)}
    given = {n: value for n, value in asked.items() if value is not None and value is not False}
    return dataclasses.replace(recipe(pictures, bool(args.self_critical)), **given)


def prepare_training(
    args: argparse.Namespace, is_first: bool
) -> tuple[Checkpoint, list[FeatureTable]]:
    """The captioner as it begins, and the feature tables; features are computed if need be."""
    # What is wrong is refused before weights are downloaded and pictures encoded.
    config_of(args, 0)
    start = load_checkpoint(args.start, args.lstm) if args.start else None
    args.pool = args.pool or ("grid" if args.decoder == "attention" else "avg")
    if not start and (args.pool == "grid") != (args.decoder == "attention"):
        raise CaptioningError("--decoder attention and --pool grid need each other")
    if not start and args.decoder == "attention" and args.num_layers != 1:
        raise CaptioningError(f"--decoder attention has one layer, got {args.num_layers}")
    vocabulary = Vocabulary.load(args.vocab) if args.vocab else None
    sources = [(args.train, args.train_images), (args.val, args.val_images)]
    sources = sources[: 2 if args.val else 1]
    data = [load_data(args, *source) for source in sources]
    cnn = start.cnn.load() if start else load_cnn_of(args)
    folder = args.features or (args.start.parent if args.start else args.output) / "features"
    tables = [
        encode(args, cnn, dataset, folder / f"{captions.stem}.st")
        for dataset, (captions, _) in zip(data, sources, strict=True)
    ]
    if start:
        start.training = {}
        return start, tables
    if vocabulary is None:
        captions = [c for image in tables[0].images for c in image.captions]
        vocabulary = Vocabulary.build(captions, args.min_count)
        if is_first:
            vocabulary.save(args.output / "vocabulary.json")
    torch.manual_seed(args.seed or 0)
    if args.dropout is None:
        args.dropout = DROPOUT["small" if len(tables[0].images) < SMALL_SET else "large"]
    sizes = ModelConfig(
        cnn.feature_shape[-1],
        len(vocabulary),
        args.embed_size,
        args.hidden_size,
        args.num_layers,
        args.max_seq_length,
        args.dropout,
        args.decoder,
        cnn.grid,
    )
    return Checkpoint(Captioner(sizes, args.lstm), vocabulary, CNNIdentity.of(cnn), {}), tables


def docstring_args(config: type) -> dict[str, str]:
    """What the Args of a docstring say of each, as argparse wants it."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", config.__doc__ or "", re.M)
    return {
        name: re.sub(r"\s+", " ", text).strip().rstrip(".").replace("%", "%%").replace("`", "")
        for name, text in found
    }
