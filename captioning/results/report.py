"""Results to look at: an HTML report in one file."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from captioning.cnn import load_cnn
from captioning.data import CaptionedImage, ImageError, data_uri
from captioning.files import write_text
from captioning.model import Checkpoint
from captioning.results import figures
from captioning.results.attention_maps import AttentionMaps, attends, file_maps
from captioning.results.figures import History
from captioning.results.metrics import Scores

MapsFor = Callable[[Path, str], AttentionMaps]


@dataclass(frozen=True)
class Section:
    """One split in the report: its heading, a text, and all pictures that were captioned.

    `captions` are what was written, by the ids of the pictures. If there are facts, `facts` is the
    share of right captions by fact, and `right` the ids of those in which all are right.
    """

    title: str
    text: str
    pictures: Sequence[CaptionedImage]
    captions: Mapping[int, str]
    scores: Scores
    facts: Mapping[str, float] = field(default_factory=dict)
    right: Collection[int] = ()

    def score(self, picture: CaptionedImage) -> float:
        """The CIDEr-D of its caption."""
        return self.scores.per_image[picture.id]["CIDEr-D"]


def choose(section: Section, each: int = 8, seed: int = 0) -> dict[str, list[CaptionedImage]]:
    """Random, best and worst pictures of a section by CIDEr-D."""
    ordered = sorted(section.pictures, key=section.score, reverse=True)
    drawn = random.Random(seed).sample(ordered, min(each, len(ordered)))
    return {"Drawn at random": drawn, "Best": ordered[:each], "Worst": ordered[::-1][:each]}


def write_report(
    path: str | Path,
    title: str,
    text: str,
    sections: Sequence[Section],
    history: History = (),
    checkpoint: Checkpoint | None = None,
) -> None:
    """Write one HTML file that needs no other file.

    `text` is the paragraph below the title, `history` the epochs of training, for the curves, and
    `checkpoint` the captioner, for its attention maps.
    """
    from jinja2 import Environment, PackageLoader  # not at the top: few commands need it

    maps_for = None
    if checkpoint and attends(checkpoint):
        maps_for = partial(file_maps, checkpoint, load_cnn(checkpoint.cnn))
    environment = Environment(loader=PackageLoader("captioning", "."), autoescape=True)
    page = environment.get_template("results/report.html").render(
        title=title,
        text=text,
        scores={s.title: s.scores.overall for s in sections},
        notes={note: s.title for s in sections for note in s.scores.notes},
        facts={s.title: s.facts for s in sections if s.facts},
        curves=[figures.svg(draw, (4.8, 2.9)) for draw in figures.curves(history)],
        sections=sections,
        histogram=_histogram,
        choose=choose,
        look=partial(_look, maps_for=maps_for),
        wide=maps_for is not None,
    )
    write_text(path, page)


def _histogram(section: Section) -> str:
    scores = [*map(section.score, section.pictures)]
    return figures.svg(partial(figures.histogram, scores=scores), (4.8, 2.2))


def _look(path: Path, caption: str, maps_for: MapsFor | None) -> dict[str, Any]:
    """The pixels of a picture, and the maps if there are any; or why there are none."""
    try:
        uri = data_uri(figures.small(path))
        maps = maps_for(path, caption) if maps_for else None
        return {"uri": uri, "panels": maps and maps.panels()}
    except ImageError as error:
        return {"error": str(error)}
