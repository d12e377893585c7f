"""What is drawn by matplotlib: curves, sheets of captioned pictures, and panels of attention."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from captioning.console import printable
from captioning.data.images import load_image
from captioning.files import write_atomically
from captioning.results.attention_maps import Maps

History = Sequence[Mapping[str, float]]
INK, ACCENT = "#22303c", "#2a6f97"
MAX_SHEET = 300  # pictures; matplotlib draws at most 65,536 pixels


# By the label of their axis; they are drawn if a history has the first of them.
CURVES = {
    "loss (nats per word)": ("loss", "val_loss"),
    "reward (CIDEr-D of samples)": ("reward",),
    "CIDEr-D (validation)": ("CIDEr-D",),
}


def draw_curves(axes: Any, history: History, label: str) -> None:
    """Draws the curves of an axis, of `CURVES`."""
    for name in CURVES[label]:
        color, kind = (INK, "training") if name in ("loss", "reward") else (ACCENT, "validation")
        points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=kind)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of a size in inches, whose parts find their places themselves."""
    import matplotlib
    from matplotlib.figure import Figure

    text, ticks = ("axes.labelcolor", "text.color"), ("xtick.color", "ytick.color")
    colors: dict[Any, Any] = dict.fromkeys(text, INK) | dict.fromkeys(ticks, "#5c6b77")
    matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, **colors}
    return Figure(size, layout="constrained")


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """What ``draw(axes)`` draws, for an HTML page; the size is in inches."""
    figure, buffer = new_figure(size), io.StringIO()
    draw(figure.subplots())
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def small(path: Path) -> Image.Image:
    """A picture of at most 480 x 480 pixels."""
    image = load_image(path, 480)
    image.thumbnail((480, 480))
    return image


def fill(caption: str, width: int) -> str:
    """A caption in lines of at most `width` characters."""
    return textwrap.fill(printable(caption) or "(nothing)", width)


def write_sheet(path: str | Path, captions: Mapping[Path, str]) -> None:
    """Write a PNG: at most `MAX_SHEET` pictures in their own proportions, captions below."""
    pictures = [(small(picture), fill(caption, 38)) for picture, caption in captions.items()]
    below = {"y": -0.04, "pad": 0, "va": "top", "fontsize": 11}
    _write_grid(path, pictures, 3, (3.6, 3.4), 90, below)


def write_panels(path: str | Path, maps: Maps) -> None:
    """Write a PNG with a panel for each of `file_maps`."""
    _write_grid(path, maps, 6, (1.8, 2.05), 100, {"fontsize": 13})


def _write_grid(
    path: str | Path,
    pictures: Sequence[tuple[Image.Image, str]],
    columns: int,
    size: tuple[float, float],
    dpi: int,
    style: Mapping[str, Any],
) -> None:
    """Write a PNG of titled pictures, each of a size in inches."""
    rows = -(-len(pictures) // columns)
    figure = new_figure((size[0] * columns, size[1] * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, title) in zip(grid.flat, pictures, strict=False):
        axes.imshow(image, interpolation="lanczos")
        axes.set_title(title, parse_math=False, **style)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
