"""Print how accurate prepacked layers are in float32, bfloat16 and int8, as Markdown.

    python benchmarks/prepacked_accuracy.py
    python -m captioning demo --output runs/demo
    python benchmarks/prepacked_accuracy.py --demo runs/demo --write docs/reference/figures.md

The error of an output is the root mean square of its deviation from the output of the same layer in
float64, divided by the root mean square of the float64 output. With --demo, a second table shows
which share of the demo captioner's captions state all six facts of a picture correctly.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import machine
import torch
from markdown import publish, table
from torch import Tensor

import fastlstm

SIZES = (64, 256, 1024)
STEPS, BATCH = 1000, 8
WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)


def random_layer(size: int) -> list[str]:
    """Returns the errors of a random layer in each dtype, after 1 and after `STEPS` steps."""
    torch.manual_seed(size)
    lstm, x = fastlstm.LSTM(size, size).eval(), torch.randn(STEPS, BATCH, size)
    with torch.inference_mode():
        exact = copy.deepcopy(lstm).double()(x.double())[0]
        cells = []
        for weights in WEIGHTS:
            output = fastlstm.prepack(copy.deepcopy(lstm), weights)(x)[0]
            cells += [error(output[t], exact[t]) for t in (0, STEPS - 1)]
    return cells


def error(output: Tensor, exact: Tensor) -> str:
    """Returns the relative error of `output`, as text."""
    return f"{((output - exact).norm() / exact.norm()).item():.1e}"


def facts_right(demo: Path) -> list[str]:
    """Returns the number of pictures and, for each dtype, the share of correct captions.

    Args:
        demo: the folder that `captioning demo` wrote. The splits "val" and "unseen" count together.
    """
    from captioning.cnn.features import FeatureTable, extract_features
    from captioning.cnn.pretrained import load_cnn
    from captioning.data import scenes
    from captioning.data.coco import load_coco
    from captioning.model.checkpoint import load_checkpoint
    from captioning.model.layers import prepack_lstms
    from captioning.search.generate import best_captions
    from captioning.settings import DecodeConfig

    shares = []
    for weights in WEIGHTS:
        checkpoint = load_checkpoint(demo / "best.pt")
        prepack_lstms(checkpoint.model, str(weights).removeprefix("torch."))
        cnn, right, count = load_cnn(checkpoint.cnn), 0.0, 0
        for split in ("val", "unseen"):
            annotations = demo / "scenes" / "annotations" / f"captions_{split}.json"
            dataset = load_coco(annotations, demo / "scenes" / split)
            cache = extract_features(cnn, dataset.images, demo / "features", annotations)
            features = FeatureTable(dataset, cache)
            greedy = DecodeConfig("greedy")
            written = best_captions(checkpoint, features.read(), features.ids, config=greedy)
            truth = {image.id: scenes.parse(image.captions[0]) for image in dataset.images}
            right += scenes.fact_scores(written, truth)["all"] * len(truth)
            count += len(truth)
        shares.append(f"{right / count:.2%}")
    return [f"{count:,}", *shares]


def report(demo: Path | None) -> str:
    """Returns the tables in Markdown, below a line that describes the machine."""
    names = [str(weights).removeprefix("torch.") for weights in WEIGHTS]
    columns = [f"{name}, {after}" for name in names for after in ("1 step", f"{STEPS} steps")]
    header = ["input and hidden size", *columns]
    parts = [
        f"{machine.line(machine.describe('cpu'))}; {BATCH} rows.",
        table(header, [[str(size), *random_layer(size)] for size in SIZES]),
    ]
    if demo:
        header = ["captioner of the demo", "pictures", *names]
        parts.append(table(header, [["all facts right", *facts_right(demo)]]))
    else:
        parts.append("The captioner was left out, because --demo was not given.")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--demo", type=Path, help="the folder that `captioning demo` wrote")
    add("--write", type=Path, metavar="FILE.md", help="also put the tables into this file")
    args = parser.parse_args(arguments)
    text = report(args.demo)
    publish(text, args.write, "prepacked")


if __name__ == "__main__":
    main()
