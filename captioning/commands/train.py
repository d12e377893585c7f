"""`captioning train`: see `captioning.train`."""

import argparse
import contextlib
import dataclasses
import os
import re
from pathlib import Path

import torch

from captioning.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
from captioning.cnn import keep_freed_blocks
from captioning.commands.arguments import (
    add_cnn,
    add_decoder,
    add_device,
    add_lstm,
    add_on_error,
    at_least,
    encode,
    load_cnn_of,
    load_data,
    option,
)
from captioning.config import (
    DROPOUT,
    LARGE,
    SELF_CRITICAL,
    SMALL,
    SMALL_SET,
    ModelConfig,
    TrainConfig,
    from_dict,
    recipe,
)
from captioning.console import say
from captioning.decoders import decoder_class
from captioning.errors import CaptioningError
from captioning.features import FeatureTable, cache_path
from captioning.generate import DecodeConfig, best_captions
from captioning.locks import lock_folder
from captioning.metrics import score_captions
from captioning.model import Captioner
from captioning.processes import first_process_first, processes
from captioning.train import FREE, train
from captioning.vocabulary import Vocabulary

MIN_COUNT = 4
LEGEND = {
    "loss": "loss: nats per word, given the words before it, on --train with dropout and on --val",
    "reward": "reward: mean CIDEr-D of captions drawn for pictures of --train",
}
SCORES = "CIDEr-D, BLEU-4: of the captions that greedy search writes for --val"
MODEL = ("decoder", "embed_size", "hidden_size", "num_layers", "max_seq_length", "dropout")


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "train a captioner; each picture is encoded once, and the features are kept\n\n"
        f"Where three defaults are given, they are for fewer than {SMALL_SET:,} pictures, for more,"
        "\nand for --self-critical.\n\n"
        "The curves: tensorboard --logdir OUTPUT (pip install 'fastlstm[tensorboard]')"
    )
    parser.add_argument("--train", type=Path, required=True, help="COCO captions file")
    parser.add_argument("--train-images", type=Path, help="folder of its pictures")
    parser.add_argument("--val", type=Path, help="COCO captions file to validate on")
    parser.add_argument("--val-images", type=Path, help="folder of its pictures")
    parser.add_argument("--test", type=Path, help="COCO captions file to score the best epoch on")
    parser.add_argument("--test-images", type=Path, help="folder of its pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument(
        "--features", type=Path, help="folder of feature caches (OUTPUT/features, or START's)"
    )
    parser.add_argument("--vocab", type=Path, help="vocabulary file; built if not given")
    parser.add_argument(
        "--min-count", type=at_least(1), metavar="N", help=f"of a built vocabulary ({MIN_COUNT})"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint whose weights to start from; words, model and CNN are its own then",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from OUTPUT/last.pt, if it is there; its words, model, CNN and settings need "
        "not be given again",
    )
    add_on_error(parser)
    add_device(parser)
    add_lstm(parser)
    group = parser.add_argument_group("model")
    add_decoder(group)
    standard = ModelConfig(1, 1)
    for name, text in {
        "embed_size": "of word and picture vectors",
        "hidden_size": "of the LSTM's state",
        "num_layers": "of the LSTM",
        "max_seq_length": "the most tokens to write, with <end>",
    }.items():
        group.add_argument(option(name), type=int, help=f"{text} ({getattr(standard, name)})")
    group.add_argument(
        "--dropout",
        type=float,
        help="share of elements dropped ({small}, {large})".format(**DROPOUT),
    )
    group = parser.add_argument_group("training")
    texts = docstring_args(TrainConfig)
    for entry in dataclasses.fields(TrainConfig):
        name, text = option(entry.name), texts[entry.name]
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


def run(args: argparse.Namespace) -> None:
    keep_freed_blocks()
    with processes(args.device) as here, contextlib.ExitStack() as stack:
        if here.is_first:
            stack.enter_context(lock_folder(args.output, "vocabulary.json"))
        if (args.output / "last.pt").exists() and not args.resume:
            raise CaptioningError(
                f"{args.output} holds a captioner already: --resume, or another --output"
            )
        with first_process_first(here):
            checkpoint, config, tables = prepare_training(args, here.is_first)
        table, val = tables["train"], tables.get("val")
        if here.is_first:
            of = "pictures" if config.self_critical else "captions"
            say(
                f"{len(table.images):,} pictures, {len(checkpoint.vocabulary):,} words; "
                f"{config.epochs} epochs, batches of {config.batch_size} {of}, learning rate "
                f"{config.learning_rate}"
            )
            say(LEGEND["reward" if config.self_critical else "loss"], SCORES)
        history = train(checkpoint, config, table, val, args.output, args.resume, here)
        if here.is_first:
            best = args.output / "best.pt"
            say(summary(history, best))
            if "test" in tables:
                say(test(load_checkpoint(best, args.lstm, here.device), tables["test"]))
            say(f"next: python -m captioning caption {best} PICTURE --method beam")


def summary(history: list[dict[str, float]], best: Path) -> str:
    """Which epoch is the best, and where it is."""
    validated = [entry for entry in history if "CIDEr-D" in entry]
    if not validated:
        return f"{best} holds epoch {len(history)}, the last (no --val to choose by)"
    entry = max(validated, key=lambda entry: entry["CIDEr-D"])
    return (
        f"best of {len(history)} epochs: {entry['epoch']:.0f}, CIDEr-D {entry['CIDEr-D']:.3f}, "
        f"BLEU-4 {entry['BLEU-4']:.3f} on --val: {best}"
    )


def test(checkpoint: Checkpoint, table: FeatureTable) -> str:
    """One line of scores on pictures that chose nothing."""
    told = []
    for method in ("greedy", "beam"):
        config = DecodeConfig(method)
        written = best_captions(
            checkpoint.model, checkpoint.vocabulary, table.read(), table.ids, config=config
        )
        scores = score_captions(written, table.references).overall
        name = f"beam of {config.beam_size}" if method == "beam" else method
        told.append(f"{name} CIDEr-D {scores['CIDEr-D']:.3f}, BLEU-4 {scores['BLEU-4']:.3f}")
    return f"test, {len(table.images):,} pictures: {'; '.join(told)}"


def config_of(
    args: argparse.Namespace, pictures: int, before: TrainConfig | None = None
) -> TrainConfig:
    """The settings of the run that is resumed, or for so many pictures, but for those given."""
    asked = {e.name: getattr(args, e.name) for e in dataclasses.fields(TrainConfig)}
    given = {n: value for n, value in asked.items() if value is not None and value is not False}
    return dataclasses.replace(before or recipe(pictures, bool(args.self_critical)), **given)


def prepare_training(
    args: argparse.Namespace, is_first: bool
) -> tuple[Checkpoint, TrainConfig, dict[str, FeatureTable]]:
    """The captioner as it begins, the settings, and the feature tables, computed if need be."""
    # What is wrong is refused before weights are downloaded and pictures encoded.
    last = args.output / "last.pt"
    resumed = args.resume and last.exists()
    path = last if resumed else args.start
    begun = load_checkpoint(path, args.lstm) if path else None
    before = None
    if resumed:
        before = from_dict(TrainConfig, begun.training.get("config"), f"{path}: settings")
    config = config_of(args, 0, before)
    if config.self_critical and not begun:
        raise CaptioningError(
            "--self-critical goes on with a trained captioner: --start CHECKPOINT"
        )
    if config.patience and not args.val:
        raise CaptioningError(f"--patience: expected 0 without --val, got {config.patience}")
    sizes = {n: getattr(args, n) for n in MODEL if getattr(args, n) is not None}
    # What the data decides is 1 here.
    sizes = dataclasses.asdict(ModelConfig(feature_size=1, vocab_size=1, grid=1, **sizes))
    if begun:
        refuse_others(args, path, begun, before)
    else:
        pools = decoder_class(ModelConfig(**sizes)).pools
        args.pool = args.pool or pools[0]
        if args.pool not in pools:
            raise CaptioningError(
                f"--pool: expected {' or '.join(pools)} with --decoder {sizes['decoder']}, "
                f"got {args.pool}"
            )
    splits = [split for split in ("train", "val", "test") if getattr(args, split)]
    data = {
        split: load_data(
            args, getattr(args, split), getattr(args, f"{split}_images"), need_captions=True
        )
        for split in splits
    }
    config = config_of(args, len(data["train"].images), before)
    vocabulary = vocabulary_of(args, data["train"].captions, path, begun)

    cnn = begun.cnn.load() if begun else load_cnn_of(args)
    folder = features_folder(args, begun, before)
    tables = {
        split: encode(args, cnn, dataset, cache_path(folder, getattr(args, split)))
        for split, dataset in data.items()
    }
    told = {}
    with contextlib.suppress(ValueError):  # they are on another drive
        told["features"] = os.path.relpath(folder, args.output)  # for --resume
    if begun:
        begun.training = begun.training | told if before else told
        return begun, config, tables
    if is_first:
        vocabulary.save(args.output / "vocabulary.json")
    torch.manual_seed(config.seed)
    if args.dropout is None:
        sizes["dropout"] = DROPOUT["small" if len(data["train"].images) < SMALL_SET else "large"]
    sizes |= {"feature_size": cnn.feature_shape[-1], "vocab_size": len(vocabulary)}
    model = Captioner(ModelConfig(**sizes | {"grid": cnn.grid}), args.lstm)
    model.set_word_frequencies(map(vocabulary.encode, data["train"].captions))
    return Checkpoint(model, vocabulary, CNNIdentity.of(cnn), told), config, tables


def refuse_others(
    args: argparse.Namespace, path: Path, begun: Checkpoint, before: TrainConfig | None
) -> None:
    """What is given must be what the checkpoint has, which is gone on with."""
    known = {name: getattr(begun.model.config, name) for name in MODEL}
    cnn = begun.cnn.config
    view = "whole" if begun.cnn.transform.squash else "crop"
    known |= {"cnn": cnn.name, "pool": cnn.pool, "view": view}
    if args.weights != "DEFAULT":  # which stands for a name
        known["weights"] = cnn.weights
    if before:
        known |= {n: v for n, v in dataclasses.asdict(before).items() if n not in FREE}
    for name, value in known.items():
        given = getattr(args, name)
        if given is not None and given != value:
            raise CaptioningError(
                f"{option(name)}: expected {value}, as in {path}, got {given}; leave it out"
            )


def vocabulary_of(
    args: argparse.Namespace, captions: list[str], path: Path | None, begun: Checkpoint | None
) -> Vocabulary:
    """The words of the checkpoint, of a file, or of the captions."""
    if begun and not args.vocab and args.min_count is None:
        return begun.vocabulary
    if args.vocab:
        given, vocabulary = "--vocab", Vocabulary.load(args.vocab)
    else:
        count = MIN_COUNT if args.min_count is None else args.min_count
        given, vocabulary = f"--min-count {count}", Vocabulary.build(captions, count)
    if begun and vocabulary.words != begun.vocabulary.words:
        raise CaptioningError(
            f"{given}: expected the {len(begun.vocabulary)} words of {path}, got "
            f"{len(vocabulary)} words that are not the same; leave it out"
        )
    return vocabulary


def features_folder(
    args: argparse.Namespace, begun: Checkpoint | None, before: TrainConfig | None
) -> Path:
    """Where features are kept: as given, as before, of the start, or of this run."""
    if args.features:
        return args.features
    if before and "features" in begun.training:
        return args.output / begun.training["features"]
    return (args.start.parent if args.start else args.output) / "features"


def docstring_args(config: type) -> dict[str, str]:
    """What the Args of a docstring say of each, as argparse wants it."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", config.__doc__ or "", re.M)
    return {
        name: re.sub(r"\s+", " ", text).strip().rstrip(".").replace("%", "%%").replace("`", "")
        for name, text in found
    }
