"""Writes an HTML report of captions: scores, curves and pictures, in one file."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from captioning.cnn.pretrained import FrozenCNN
from captioning.data.coco import CaptionedImage
from captioning.data.images import ImageError, data_uri
from captioning.files import write_text
from captioning.model.checkpoint import Checkpoint
from captioning.results import figures
from captioning.results.attention_maps import Maps, attends, file_maps
from captioning.results.figures import History
from captioning.results.metrics import Scores

MapsFor = Callable[[Path, str], Maps]  # (picture, caption) -> attention maps


@dataclass(frozen=True)
class Section:
    """A part of the report, about the pictures of one split."""

    title: str  # the heading
    text: str  # the paragraph below the heading
    pictures: Sequence[CaptionedImage]  # all that were captioned, with their references
    captions: Mapping[int, str]  # the caption of each picture, by id
    scores: Scores
    # Of drawn scenes: the share of captions in which each fact is right, and the ids of the
    # pictures whose captions have all facts right.
    facts: Mapping[str, float] = field(default_factory=dict)
    right_ids: Collection[int] = ()

    def score(self, picture: CaptionedImage) -> float:
        return self.scores.per_image[picture.id]["CIDEr-D"]


def examples(section: Section, count: int = 8, seed: int = 0) -> dict[str, list[CaptionedImage]]:
    """Chooses pictures to show: `count` at random, the best and the worst `count` by CIDEr-D."""
    ordered = sorted(section.pictures, key=section.score, reverse=True)
    drawn = random.Random(seed).sample(ordered, min(count, len(ordered)))
    return {"Drawn at random": drawn, "Best": ordered[:count], "Worst": ordered[::-1][:count]}


def write_report(
    path: str | Path,
    title: str,
    text: str,
    sections: Sequence[Section],
    history: History = (),
    checkpoint: Checkpoint | None = None,
    cnn: FrozenCNN | None = None,
) -> None:
    """Writes an HTML file that needs no other file.

    `text` is the paragraph below the title. The curves are those of the `history` of training. The
    page shows attention maps if `checkpoint`, whose CNN is `cnn`, has a decoder with attention.
    """
    from jinja2 import Environment, PackageLoader  # not at the top, because few commands need it

    maps_for = None
    if checkpoint and cnn and attends(checkpoint):
        maps_for = partial(file_maps, checkpoint, cnn)
    labels = [y for y, names in figures.CURVES.items() if any(names[0] in e for e in history)]
    plots = [partial(figures.draw_curves, history=history, label=label) for label in labels]
    environment = Environment(loader=PackageLoader("captioning", "."), autoescape=True)
    values: dict[str, Any] = {"title": title, "text": text, "sections": sections}
    values |= {"curves": [figures.svg(plot, (4.8, 2.9)) for plot in plots], "maps_for": maps_for}
    functions = {"examples": examples, "picture_and_maps": _picture_and_maps}
    write_text(path, environment.get_template("results/report.html").render(values | functions))


def _picture_and_maps(path: Path, caption: str, maps_for: MapsFor | None) -> dict[str, Any]:
    """Returns a picture and its attention maps as data URIs, or the error if it is broken."""
    try:
        word_maps = maps_for(path, caption)[1:] if maps_for else []
        maps = [(word, data_uri(picture.resize((160, 160)))) for picture, word in word_maps]
        return {"uri": data_uri(figures.thumbnail(path)), "maps": maps}
    except ImageError as error:
        return {"error": str(error)}
