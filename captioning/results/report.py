"""Results to look at: an HTML report in one file, and a contact sheet."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from captioning.data import ImageError, data_uri
from captioning.files import render, write_text
from captioning.model import Attentive, Checkpoint
from captioning.results import figures
from captioning.results.attention_maps import AttentionMaps, file_maps
from captioning.results.figures import History, fill
from captioning.results.metrics import Scores

MapsFor = Callable[[Path, str], AttentionMaps | None]
# Of a caption, by whether it is right.
COLORS = {True: "#2e7d4f", False: "#b3402e", None: figures.INK}


@dataclass(frozen=True)
class Picture:
    """A picture in a report, with the caption that was written for it."""

    id: int
    path: Path
    caption: str
    references: Sequence[str]
    right: bool | None = None  # whether all facts are right; None if there are no facts


@dataclass(frozen=True)
class Section:
    """One split in the report: its heading, a text, and all pictures that were captioned.

    `facts` is the share of right captions by fact, if there are facts.
    """

    title: str
    text: str
    pictures: Sequence[Picture]
    scores: Scores
    facts: Mapping[str, float] = field(default_factory=dict)

    def score(self, picture: Picture) -> float:
        """The CIDEr-D of its caption."""
        return self.scores.per_image[picture.id]["CIDEr-D"]


def choose(section: Section, each: int = 8, seed: int = 0) -> dict[str, list[Picture]]:
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
    maps_for = None
    if checkpoint and isinstance(checkpoint.model.decoder, Attentive):
        maps_for = partial(file_maps, checkpoint, checkpoint.cnn.load())
    page = render(
        "results/report.html",
        title=title,
        text=text,
        scores={s.title: s.scores.overall for s in sections},
        notes={note: s.title for s in sections for note in s.scores.notes},
        facts={s.title: s.facts for s in sections if s.facts},
        curves=[figures.svg(draw, (4.8, 2.9)) for draw in figures.curves(history)],
        sections=[_shown(section, maps_for) for section in sections],
        wide=maps_for is not None,
    )
    write_text(path, page)


def _shown(section: Section, maps_for: MapsFor | None) -> dict[str, Any]:
    """What the report shows of a section."""
    scores = [section.score(picture) for picture in section.pictures]
    return {
        "title": section.title,
        "text": section.text,
        "histogram": figures.svg(partial(figures.histogram, scores=scores), (4.8, 2.2)),
        "groups": {
            heading: [_figure(p, section.score(p), maps_for) for p in pictures]
            for heading, pictures in choose(section).items()
        },
    }


def _figure(picture: Picture, score: float, maps_for: MapsFor | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"picture": picture, "score": score}
    try:
        shown["uri"] = data_uri(figures.small(picture.path))
        maps = maps_for(picture.path, picture.caption) if maps_for else None
        return shown | {"panels": maps and maps.panels()}
    except ImageError as error:
        return shown | {"error": str(error)}


def write_contact_sheet(
    path: str | Path, title: str, sections: Sequence[Section], history: History
) -> None:
    """Write a PNG: random pictures of each section with captions and a reference, and curves."""
    heights = [5.8] * len(sections) + [2.9] * bool(history)
    figure = figures.new_figure((11, sum(heights) + 0.7))
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    figure.suptitle(title, x=0.03, ha="left", fontsize=17, fontweight="bold")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    for section, part in zip(sections, parts, strict=False):
        facts = section.facts.get("all")
        right = "" if facts is None else f"   all facts right: {facts:.0%}"
        text = f"{section.title}   CIDEr-D {section.scores.overall['CIDEr-D']:.2f}{right}"
        part.suptitle(text, x=0.03, ha="left", fontsize=12, color="#5c6b77")
        pictures = choose(section)["Drawn at random"]
        for axes, picture in zip(part.subplots(2, 4).flat, pictures, strict=False):
            axes.imshow(figures.small(picture.path), interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="#d5dbe0", linewidth=0.8)
            style = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            reference = fill("ref: " + picture.references[0], 44)
            caption, color = fill(picture.caption, 36), COLORS[picture.right]
            axes.text(0.5, -0.04, caption, fontsize=9.5, color=color, **style)
            axes.text(0.5, -0.29, reference, fontsize=7.5, color="#7a8791", **style)
    if history:
        for axes, draw in zip(next(parts).subplots(1, 2), figures.curves(history), strict=False):
            draw(axes)
    figures.save(figure, path, dpi=110)
