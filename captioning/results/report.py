"""Results to look at: an HTML report in one file, and contact sheets."""

import html
import io
import math
import random
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from captioning.console import printable
from captioning.data import ImageError, data_uri, load_image
from captioning.files import write_atomically, write_text
from captioning.results.attention_maps import ATTENTION_STYLE, AttentionMaps, panels_html
from captioning.results.metrics import Scores

History = Sequence[Mapping[str, float]]
MapsFor = Callable[[Path, str], AttentionMaps | None]  # see `attention_maps.file_maps`
GOOD, BAD, INK, ACCENT = "#2e7d4f", "#b3402e", "#22303c", "#2a6f97"


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
    """One split in the report.

    Args:
        title: its heading.
        text: about it.
        pictures: all that were captioned.
        scores: of the captions.
        facts: share of right captions by fact, if there are facts.
    """

    title: str
    text: str
    pictures: Sequence[Picture]
    scores: Scores
    facts: Mapping[str, float] = field(default_factory=dict)


# Plots ------------------------------------------------------------------------------------------


def _plt() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa5ae",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": "#5c6b77",
        "ytick.color": "#5c6b77",
        "svg.fonttype": "path",
    }
    return plt


def _draw_training(axes: Any, history: History) -> None:
    metric = "loss" if "loss" in history[0] else "reward"
    axes.plot([e["epoch"] for e in history], [e[metric] for e in history], color=INK)
    if metric == "reward":
        label = "reward (CIDEr-D of samples)"
    else:
        label = "loss (nats per word)"
        validated = [e for e in history if "val_loss" in e]
        if validated:
            epochs = [e["epoch"] for e in validated]
            axes.plot(epochs, [e["val_loss"] for e in validated], color=ACCENT)
            axes.legend(["training", "validation"], frameon=False)
    axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_cider(axes: Any, history: History) -> None:
    validated = [e for e in history if "CIDEr-D" in e]
    axes.plot([e["epoch"] for e in validated], [e["CIDEr-D"] for e in validated], color=ACCENT)
    axes.set(xlabel="epoch", ylabel="CIDEr-D (validation)", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    plt = _plt()
    figure, axes = plt.subplots(figsize=size)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    plt.close(figure)
    svg = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


# HTML -------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #22303c; background: #f6f7f8;
       max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.6rem; }
h3 { margin: 1.6rem 0 .6rem; }
p.lead { color: #5c6b77; margin-top: 0; max-width: 46rem; }
table { border-collapse: collapse; background: #fff; border-radius: 8px; overflow: hidden; }
th, td { padding: .45rem .9rem; text-align: right; } th { background: #e8ecef; font-weight: 600; }
th:first-child, td:first-child { text-align: left; } tr + tr td { border-top: 1px solid #eef1f3; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { background: #fff; border-radius: 8px; padding: .6rem; height: auto; max-width: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(236px, 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; border-radius: 8px; overflow: hidden; }
figure img { width: 100%; height: 180px; object-fit: contain; background: #dfe4e8; display: block; }
figcaption { padding: .6rem .8rem .8rem; font-size: .92rem; line-height: 1.35; }
figcaption b { display: block; } .good { color: #2e7d4f; } .bad { color: #b3402e; }
figcaption ul { margin: .4rem 0 0; padding-left: 1rem; color: #5c6b77; font-size: .82rem; }
figcaption small { color: #5c6b77; } .note { color: #8a5a00; }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
figcaption .attention { margin-top: .6rem; }
.show { color: #5c6b77; } .show label { margin-left: .8rem; cursor: pointer; }
section:has(.only-0:checked) > div:not(.group-0), section:has(.only-1:checked) > div:not(.group-1),
section:has(.only-2:checked) > div:not(.group-2) { display: none; }
"""


def _image_tag(path: Path, alt: str) -> str:
    try:
        image = load_image(path, 480)
    except ImageError as error:
        return f"<p>{html.escape(str(error))}</p>"
    image.thumbnail((480, 480))
    return f'<img alt="{html.escape(alt)}" src="{data_uri(image)}">'


def _figure(picture: Picture, score: float, maps_for: MapsFor | None) -> str:
    css = {True: "good", False: "bad", None: ""}[picture.right]
    references = "".join(f"<li>{html.escape(r)}</li>" for r in picture.references)
    maps = maps_for(picture.path, picture.caption) if maps_for else None
    panels = panels_html(maps) if maps else ""
    return (
        f"<figure>{_image_tag(picture.path, picture.caption)}<figcaption>"
        f'<b class="{css}">{html.escape(picture.caption) or "(nothing)"}</b>'
        f"<small>CIDEr-D {score:.2f} &middot; {html.escape(picture.path.name)}</small>"
        f"<ul>{references}</ul>{panels}</figcaption></figure>"
    )


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"


def _table(first: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    body = [_row([title, *(f"{row[n]:.3f}" for n in names)]) for title, row in rows.items()]
    return f"<table>{_row([first, *names], 'th')}{''.join(body)}</table>"


def choose(section: Section, each: int = 8, seed: int = 0) -> dict[str, list[Picture]]:
    """Random, best and worst pictures of a section by CIDEr-D."""
    score = {p.id: section.scores.per_image[p.id]["CIDEr-D"] for p in section.pictures}
    ordered = sorted(section.pictures, key=lambda p: -score[p.id])
    drawn = random.Random(seed).sample(ordered, min(each, len(ordered)))
    return {"Drawn at random": drawn, "Best": ordered[:each], "Worst": ordered[::-1][:each]}


def _groups(section: Section, maps_for: MapsFor | None) -> str:
    """The chosen pictures, and buttons that show one group of them; by CSS, without a script."""
    per_image, wide = section.scores.per_image, " wide" if maps_for else ""
    name = html.escape(section.title)
    buttons = [f'<label><input type="radio" name="{name}" checked> All</label>']
    groups = []
    for i, (heading, pictures) in enumerate(choose(section).items()):
        buttons.append(
            f'<label><input type="radio" name="{name}" class="only-{i}"> {heading}</label>'
        )
        figures = "".join(_figure(p, per_image[p.id]["CIDEr-D"], maps_for) for p in pictures)
        grid = f'<div class="grid{wide}">{figures}</div>'
        groups.append(f'<div class="group-{i}"><h3>{heading}</h3>{grid}</div>')
    return f'<section><p class="show">Show: {" ".join(buttons)}</p>{"".join(groups)}</section>'


def write_report(
    path: str | Path,
    title: str,
    text: str,
    sections: Sequence[Section],
    history: History = (),
    maps_for: MapsFor | None = None,
) -> None:
    """Write one HTML file that needs no other file.

    Args:
        path: the file.
        title: its heading.
        text: the paragraph below it.
        sections: the splits.
        history: the epochs of training, for the curves.
        maps_for: makes the attention maps of the pictures that are shown.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{ATTENTION_STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(text)}</p>',
        _table("captions of", {s.title: s.scores.overall for s in sections}),
    ]
    notes = {note: s.title for s in sections for note in s.scores.notes}
    parts += [f'<p class="note">{html.escape(f"{t}: {n}")}</p>' for n, t in notes.items()]
    if any(s.facts for s in sections):
        parts.append("<h3>Share of pictures whose caption states the fact correctly</h3>")
        parts.append(_table("facts of", {s.title: s.facts for s in sections if s.facts}))
    plots = []
    if history:
        plots.append(_svg(lambda axes: _draw_training(axes, history), (4.8, 2.9)))
        if any("CIDEr-D" in e for e in history):
            plots.append(_svg(lambda axes: _draw_cider(axes, history), (4.8, 2.9)))
    if plots:
        parts.append(f'<h2>Training</h2><div class="plots">{"".join(plots)}</div>')
    for section in sections:
        per_image = section.scores.per_image
        values = [per_image[p.id]["CIDEr-D"] for p in section.pictures]

        def histogram(axes: Any, values: list[float] = values) -> None:
            axes.hist(values, bins=30, color=ACCENT)
            axes.set(xlabel="CIDEr-D of a picture", ylabel="pictures")

        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        parts.append(f'<div class="plots">{_svg(histogram, (4.8, 2.2))}</div>')
        parts.append(_groups(section, maps_for))
    parts.append("</body></html>")
    write_text(path, "\n".join(parts))


# Contact sheet ----------------------------------------------------------------------------------


def write_contact_sheet(
    path: str | Path, title: str, sections: Sequence[Section], history: History, each: int = 8
) -> None:
    """Write a PNG: random pictures of each section with captions and a reference, and curves."""
    plt = _plt()
    columns, rows = 4, each // 4
    height = 0.7 + len(sections) * (rows * 2.75 + 0.35) + (2.9 if history else 0.0)
    figure = plt.figure(figsize=(11, height), facecolor="white")
    figure.text(0.03, 1 - 0.35 / height, title, fontsize=17, fontweight="bold", va="center")
    top = height - 0.75
    for section in sections:
        facts = section.facts.get("all")
        right = "" if facts is None else f"   all facts right: {facts:.0%}"
        text = f"{section.title}   CIDEr-D {section.scores.overall['CIDEr-D']:.2f}{right}"
        figure.text(0.03, (top - 0.1) / height, text, fontsize=12, color="#5c6b77")
        top -= 0.3
        for i, picture in enumerate(choose(section, each)["Drawn at random"]):
            x, y = i % columns, i // columns
            box = (0.03 + 0.2425 * x, (top - 2.75 * y - 1.75) / height, 0.225, 1.7 / height)
            axes = figure.add_axes(box)
            axes.imshow(_picture(picture.path), interpolation="lanczos")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(visible=True, color="#d5dbe0", linewidth=0.8)
            color = {True: GOOD, False: BAD, None: INK}[picture.right]
            reference = _fill("ref: " + picture.references[0], 44)
            style = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.04, _fill(picture.caption, 36), fontsize=9.5, color=color, **style)
            axes.text(0.5, -0.29, reference, fontsize=7.5, color="#7a8791", **style)
        top -= rows * 2.75 + 0.05
    if history:
        axes = figure.add_axes((0.08, 0.55 / height, 0.39, 2.0 / height))
        _draw_training(axes, history)
        if any("CIDEr-D" in e for e in history):
            axes = figure.add_axes((0.57, 0.55 / height, 0.39, 2.0 / height))
            _draw_cider(axes, history)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)


MAX_SHEET = 300  # matplotlib draws at most 65,536 pixels


def write_sheet(path: str | Path, captions: Mapping[Path, str], columns: int = 3) -> None:
    """Write a PNG: at most `MAX_SHEET` pictures in their own proportions, captions below."""
    plt = _plt()
    rows = math.ceil(len(captions) / columns)
    size = (3.6 * columns, 3.4 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, (picture, caption) in zip(grid.flat, captions.items(), strict=False):
        axes.imshow(_picture(picture), interpolation="lanczos")
        title = _fill(caption, 38)
        axes.set_title(title, y=-0.04, pad=0, va="top", fontsize=11, parse_math=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=90))
    plt.close(figure)


def _fill(caption: str, width: int) -> str:
    return textwrap.fill(printable(caption) or "(nothing)", width)


def _picture(path: Path) -> Image.Image:
    image = load_image(path, 480)
    image.thumbnail((480, 480))
    return image
