"""The command line: ``python -m captioning <command>``, installed as ``captioning``.

Modules are imported by the command that needs them, so that --help is quick.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from captioning.errors import CaptioningError

LSTMS = ("fastlstm", "torch", "reference")
EPILOG = """begin with:  captioning demo
more:        captioning COMMAND --help
"""
ON_ERROR = {
    "choices": ("refuse", "skip"),
    "default": "refuse",
    "help": "what to do about broken or missing pictures and empty captions",
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Adds the default to each help where there is one, and says PATH, N or X for a value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        value = action.default
        if value is None or value is False or value == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (%(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        named = {Path: "PATH", int: "N", float: "X", device: "DEVICE"}
        return named.get(action.type) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n({self.prog} --help says more)\n")


# Arguments that several commands share ----------------------------------------------------------


def device(name: str) -> str:
    """Checks a device before anything is computed."""
    if name != "cpu":  # which is always there, and --help need not import torch
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from error
    return name


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1, ...")


def add_cnn(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frozen CNN")
    group.add_argument(
        "--cnn",
        default="resnet152",
        help="a torchvision classifier, efficientnet_lite0, 1, 2 or scenes_cnn",
    )
    group.add_argument("--weights", default="DEFAULT", help="name of torchvision weights")
    group.add_argument(
        "--pool",
        choices=("avg", "2x2", "grid"),
        default="avg",
        help="avg: global average; 2x2: and the four quarters, which tell where things are",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the cached features; float16 takes half the disk",
    )
    group.add_argument(
        "--workers", type=int, default=0, help="processes that load pictures beside this one"
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--method",
        choices=("greedy", "beam", "sample"),
        default="greedy",
        help="greedy: the best word each time; beam: keep several beginnings; sample: draw words",
    )
    group.add_argument("--beam-size", type=int, default=5, help="beam: beginnings that are kept")
    group.add_argument(
        "--length-penalty", type=float, default=0.7, help="beam: 0 prefers short captions"
    )
    group.add_argument(
        "--no-repeat-ngram", type=int, default=0, help="beam: never so many words twice; 0 allows"
    )
    group.add_argument(
        "--temperature", type=float, default=1.0, help="sample: below 1 prefers probable words"
    )
    group.add_argument(
        "--top-k", type=int, default=0, help="sample: only of the k best words; 0: of all"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, help="sample: only of the best words of so much share"
    )
    group.add_argument("--seed", type=int, default=0, help="sample: the same captions each time")
    group.add_argument(
        "--max-seq-length", type=int, help="the most tokens, with <end>; as trained if not given"
    )


def docstring_args(config: type) -> dict[str, str]:
    """What the Args of a docstring say of each, as argparse wants it."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", config.__doc__ or "", re.M)
    return {
        name: re.sub(r"\s+", " ", text).strip().rstrip(".").replace("%", "%%").replace("`", "")
        for name, text in found
    }


def from_args(config: type, args: argparse.Namespace) -> Any:
    return config(**{f.name: getattr(args, f.name) for f in dataclasses.fields(config)})


def add_lstm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lstm",
        choices=LSTMS,
        default="fastlstm",
        help="who computes; torch: nn.LSTM; reference: fastlstm in plain PyTorch",
    )


# Commands ---------------------------------------------------------------------------------------


def add_prepare(parser: argparse.ArgumentParser) -> None:
    from captioning import prepare

    parser.description = prepare.__doc__
    parser.add_argument("source", help="captions: a file or folder of one of these formats")
    parser.add_argument(
        "--images", type=Path, help="folder of the pictures; the source's if absent"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--val", type=float, default=0.05, help="share of pictures to validate on")
    parser.add_argument("--test", type=float, default=0.05, help="share of pictures to test on")
    for split in prepare.SPLITS:
        parser.add_argument(f"--{split}-list", type=Path, help=f"file that lists {split} pictures")
    parser.add_argument("--on-error", **ON_ERROR)
    parser.add_argument("--seed", type=int, default=0, help="of random splits")


def run_prepare(args: argparse.Namespace) -> None:
    from captioning.prepare import SPLITS, prepare, read_source, read_split_lists

    given = {s: getattr(args, f"{s}_list") for s in SPLITS if getattr(args, f"{s}_list")}
    source = Path(args.source)
    images = args.images or (source if source.is_dir() else source.parent)
    counts, skipped = prepare(
        read_source(source),
        images,
        args.output,
        args.val,
        args.test,
        read_split_lists(given) or None,
        args.on_error,
        args.seed,
    )
    for reason, names in skipped.items():
        print(f"skipped {len(names)} x {reason}: {', '.join(names[:5])}")
    print(f"{args.output}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))


def add_vocab(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--min-count", type=int, default=4, help="rarer words become <unk>")


def run_vocab(args: argparse.Namespace) -> None:
    from captioning.files import read_json
    from captioning.vocabulary import Vocabulary

    data = read_json(args.annotations)
    try:
        captions = [row["caption"] for row in data["annotations"]]
    except (KeyError, TypeError) as error:
        raise CaptioningError(f"{args.annotations}: expected a COCO captions file") from error
    vocabulary = Vocabulary.build(captions, args.min_count)
    vocabulary.save(args.output)
    print(f"{args.output}: {len(vocabulary):,} words of {len(captions):,} captions")


def add_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--output", type=Path, required=True, help="cache file to write or continue"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time")
    parser.add_argument("--on-error", **ON_ERROR)
    add_device(parser)
    add_cnn(parser)


def run_features(args: argparse.Namespace) -> None:
    cnn = load_cnn_of(args)
    table(args, cnn, args.annotations, args.images, args.output, args.batch_size)
    print(f"{args.output}: features of shape {cnn.feature_shape} by {cnn.config}")


def load_cnn_of(args: argparse.Namespace) -> Any:
    from captioning.cnn import CNNConfig, load_cnn

    return load_cnn(CNNConfig(args.cnn, args.weights, args.pool))


def table(
    args: argparse.Namespace,
    cnn: Any,
    annotations: Path,
    images: Path | None,
    cache: Path,
    batch=32,
) -> Any:
    """Load a data set and its features, which are computed unless they are cached."""
    from captioning.datasets import load_coco
    from captioning.features import FeatureTable, extract_features

    dataset = load_coco(annotations, images, args.on_error)
    if dataset.skipped:
        print(dataset.report_skipped())
    found = extract_features(
        cnn, dataset.images, cache, batch, args.dtype, args.on_error, args.workers, args.device
    )
    return FeatureTable(dataset, found)


def add_train(parser: argparse.ArgumentParser) -> None:
    from captioning.config import DROPOUT, LARGE, SELF_CRITICAL, SMALL, SMALL_SET, TrainConfig

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
    parser.add_argument("--on-error", **ON_ERROR)
    add_device(parser)
    add_lstm(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--decoder",
        choices=("lstm", "attention"),
        default="lstm",
        help="attention looks at the cells of the feature map; give it --pool grid",
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


def run_train(args: argparse.Namespace) -> None:
    from captioning.processes import first_process_first, processes
    from captioning.train import train

    if (args.output / "last.pt").exists() and not args.resume:
        raise CaptioningError(
            f"{args.output} holds a captioner already: --resume, or another --output"
        )
    with processes(args.device) as here:
        with first_process_first(here):
            checkpoint, tables = prepare_training(args, here.is_first)
        config = config_of(args, len(tables[0].images))
        val = tables[1] if args.val else None
        train(checkpoint, config, tables[0], val, args.output, args.resume, here)
        if here.is_first:
            print(f"best captioner: {args.output / 'best.pt'}")


def config_of(args: argparse.Namespace, pictures: int) -> Any:
    """The settings for so many pictures, but for those that were given."""
    from captioning.config import TrainConfig, recipe

    asked = {e.name: getattr(args, e.name) for e in dataclasses.fields(TrainConfig)}
    given = {n: value for n, value in asked.items() if value is not None and value is not False}
    return dataclasses.replace(recipe(pictures, bool(args.self_critical)), **given)


def prepare_training(args: argparse.Namespace, is_first: bool) -> tuple[Any, list]:
    """The captioner as it begins, and the feature tables; features are computed if need be."""
    import torch

    from captioning.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
    from captioning.config import DROPOUT, SMALL_SET
    from captioning.model import Captioner, ModelConfig
    from captioning.vocabulary import Vocabulary

    config_of(args, 0)  # wrong settings are refused before the pictures are encoded
    start = load_checkpoint(args.start, args.lstm) if args.start else None
    if not start and (args.pool == "grid") != (args.decoder == "attention"):
        raise CaptioningError("--decoder attention and --pool grid need each other")
    if not start and args.decoder == "attention" and args.num_layers != 1:
        raise CaptioningError(f"--decoder attention has one layer, got {args.num_layers}")
    cnn = start.cnn.load() if start else load_cnn_of(args)
    folder = args.features or (args.start.parent if args.start else args.output) / "features"
    sources = [(args.train, args.train_images), (args.val, args.val_images)]
    tables = [
        table(args, cnn, captions, images, folder / f"{captions.stem}.st")
        for captions, images in sources[: 2 if args.val else 1]
    ]
    if start:
        start.training = {}
        return start, tables
    if args.vocab:
        vocabulary = Vocabulary.load(args.vocab)
    else:
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
    )
    return Checkpoint(Captioner(sizes, args.lstm), vocabulary, CNNIdentity.of(cnn), {}), tables


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help='[{"image_id": 1, "caption": "..."}, ...]')
    parser.add_argument("--references", type=Path, required=True, help="COCO captions file")
    parser.add_argument("--images", type=Path, help="folder of the pictures, for --report")
    parser.add_argument("--meteor", action="store_true", help="also METEOR (needs Java)")
    parser.add_argument("--json", type=Path, help="write scores, also of each picture")
    parser.add_argument("--report", type=Path, help="write an HTML report")
    parser.add_argument("--checkpoint", type=Path, help="adds its curves and attention to it")


def run_evaluate(args: argparse.Namespace) -> None:
    from captioning.datasets import load_coco, load_references
    from captioning.evaluate import evaluate, read_results, write_evaluation
    from captioning.files import write_json

    results = read_results(args.results)
    if args.report:
        dataset = load_coco(args.references, args.images, "skip")
    else:
        dataset = load_references(args.references)
    scores = evaluate(results, dataset, args.meteor)
    print(scores)
    if args.json:
        data = {"scores": scores.overall, "notes": scores.notes, "per_image": scores.per_image}
        write_json(args.json, data, indent=1)
    if args.report:
        from captioning.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(args.checkpoint) if args.checkpoint else None
        write_evaluation(args.report, results, dataset, scores, checkpoint)
        print(f"report: {args.report}")


def add_caption(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument("pictures", nargs="*", help="files, folders, globs")
    parser.add_argument("--annotations", type=Path, help="caption the pictures of a COCO file")
    parser.add_argument("--images", type=Path, help="folder of those pictures")
    parser.add_argument(
        "--json", type=Path, help="write COCO results; with files, also their names"
    )
    parser.add_argument("--all", action="store_true", help="print every caption of the beam")
    parser.add_argument(
        "--attention", type=Path, help="PNG to write: where it looked for each word (one picture)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time")
    add_lstm(parser)
    add_decoding(parser)


def run_caption(args: argparse.Namespace) -> int:
    import time

    from captioning.attention_maps import attender, write_panels
    from captioning.caption import caption_files, find_pictures
    from captioning.checkpoint import load_checkpoint
    from captioning.datasets import load_coco
    from captioning.files import write_json
    from captioning.generate import DecodeConfig

    if bool(args.pictures) == bool(args.annotations):
        raise CaptioningError("give either pictures or --annotations")
    if args.annotations:
        images = load_coco(args.annotations, args.images, "skip").images
        paths, ids = [image.path for image in images], [image.id for image in images]
    else:
        paths = find_pictures(args.pictures)
        ids = list(range(1, len(paths) + 1))
    checkpoint = load_checkpoint(args.checkpoint, args.lstm)
    cnn = checkpoint.cnn.load()
    attend = None
    if args.attention:
        attend = attender(checkpoint, cnn)
        if attend is None or len(paths) != 1:
            raise CaptioningError(
                "--attention: expected one picture, and a captioner trained with --decoder "
                f"attention; got {len(paths)}, --decoder {checkpoint.model.config.decoder}"
            )
    config = from_args(DecodeConfig, args)
    results, failed, start = [], 0, time.perf_counter()
    found = caption_files(checkpoint, cnn, paths, config, args.batch_size)
    for image_id, item in zip(ids, found, strict=True):
        if item.error:
            failed += 1
            print(item.error, file=sys.stderr)
            continue
        entry = {"image_id": image_id, "caption": item.captions[0].text}
        results.append(entry if args.annotations else entry | {"file_name": str(item.path)})
        if not args.json or args.all:
            for caption in item.captions if args.all else item.captions[:1]:
                print(f"{item.path}: {caption.text}")
        if attend and (maps := attend(item.path, item.captions[0].text)):
            write_panels(args.attention, maps)
    if args.json:
        write_json(args.json, results, indent=0)
    rate = len(results) / (time.perf_counter() - start)
    print(f"{len(results)} pictures, {rate:.1f} captions/s, CNN included", file=sys.stderr)
    return 1 if failed else 0


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the captioner, such as runs/demo/best.pt")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: let other machines in")
    parser.add_argument("--port", type=int, help="the first free one from 7860 if not given")
    parser.add_argument("--max-megabytes", type=float, default=20.0, help="of an upload")
    add_device(parser)
    add_lstm(parser)


def run_serve(args: argparse.Namespace) -> None:
    from captioning.checkpoint import load_checkpoint
    from captioning.serve import serve

    checkpoint = load_checkpoint(args.checkpoint, args.lstm, args.device)
    cnn = checkpoint.cnn.load().to(args.device)
    serve(checkpoint, cnn, str(args.checkpoint), args.host, args.port, args.max_megabytes)


def add_import_yunjey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", type=Path, required=True, help="encoder-*.ckpt")
    parser.add_argument("--decoder", type=Path, required=True, help="decoder-*.ckpt")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.pkl")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--cnn", default="resnet152", help="the ResNet of the encoder")


def run_import_yunjey(args: argparse.Namespace) -> None:
    from captioning.yunjey import import_yunjey

    import_yunjey(args.encoder, args.decoder, args.vocab, args.cnn).save(args.output)
    print(f"{args.output}: caption with it, python -m captioning caption {args.output} PICTURES")


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the captions")
    parser.add_argument("--fresh", action="store_true", help="train again even if it was done")
    parser.add_argument(
        "--decoder",
        choices=("lstm", "attention"),
        default="lstm",
        help="attention: slower, and the report shows where it looked for each word",
    )
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and order")
    add_lstm(parser)


def run_demo(args: argparse.Namespace) -> None:
    from captioning.demo import demo

    demo(args.output, args.epochs, args.lstm, args.fresh, args.seed, args.decoder)


COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "prepare": ("turn captioned pictures into COCO files with splits", add_prepare, run_prepare),
    "vocab": ("collect the words of captions", add_vocab, run_vocab),
    "features": ("encode pictures once with a frozen CNN", add_features, run_features),
    "train": ("train a captioner", add_train, run_train),
    "evaluate": ("score captions", add_evaluate, run_evaluate),
    "caption": ("write captions for pictures", add_caption, run_caption),
    "serve": ("caption pictures on a local web page", add_serve, run_serve),
    "import-yunjey": (
        "convert a captioner of yunjey's pytorch-tutorial",
        add_import_yunjey,
        run_import_yunjey,
    ),
    "demo": ("train on drawn pictures and report, in minutes on a CPU", add_demo, run_demo),
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="captioning",
        description="Captions for pictures: a frozen CNN looks, an LSTM writes.",
        epilog=EPILOG,
        formatter_class=Help,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        close = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"captioning: no command {argv[0]!r}: {hint}", file=sys.stderr)
        return 2
    for name, (text, add, run) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        if name in argv[:1]:  # the others need not import what their arguments come from
            add(command)
        command.set_defaults(run=run)
    if not argv:
        parser.print_help()
        return 0
    args, left = parser.parse_known_args(argv)
    # argparse lets no option stand between the checkpoint and the pictures.
    if left and hasattr(args, "pictures") and not any(word.startswith("-") for word in left):
        args.pictures += left
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    try:
        return args.run(args) or 0
    except (CaptioningError, OSError) as error:
        print(f"captioning: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncaptioning: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
