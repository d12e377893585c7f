"""Draws curves, sheets of captioned pictures, and attention maps with matplotlib."""

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
MAX_SHEET = 300  # pictures in a sheet; matplotlib draws at most 65,536 pixels along a side

# The curves of each plot, by the label of its y axis. If the first is missing, there is no plot.
CURVES = {
    "loss (nats per word)": ("loss", "val_loss"),
    "reward (CIDEr-D of samples)": ("reward",),
    "CIDEr-D (validation)": ("CIDEr-D",),
}


def draw_curves(axes: Any, history: History, label: str) -> None:
    """Draws the plot of `CURVES` that has this label."""
    for name in CURVES[label]:
        color, legend = (INK, "training") if name in ("loss", "reward") else (ACCENT, "validation")
        points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=legend)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)


def new_figure(size: tuple[float, float]) -> Any:
    """Makes an empty figure of a size in inches, with an automatic layout."""
    import matplotlib
    from matplotlib.figure import Figure

    text, ticks = ("axes.labelcolor", "text.color"), ("xtick.color", "ytick.color")
    colors: dict[Any, Any] = dict.fromkeys(text, INK) | dict.fromkeys(ticks, "#5c6b77")
    matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, **colors}
    return Figure(size, layout="constrained")


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """Returns the SVG of what ``draw(axes)`` draws, for an HTML page. The size is in inches."""
    figure, buffer = new_figure(size), io.StringIO()
    draw(figure.subplots())
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def thumbnail(path: Path) -> Image.Image:
    """Reads a picture and shrinks it to at most 480 x 480 pixels."""
    image = load_image(path, 480)
    image.thumbnail((480, 480))
    return image


def write_sheet(path: str | Path, captions: Mapping[Path, str]) -> None:
    """Writes a PNG of at most `MAX_SHEET` picture files with captions below."""
    wrap = lambda caption: textwrap.fill(printable(caption) or "(nothing)", 38)
    pictures = [(thumbnail(picture), wrap(caption)) for picture, caption in captions.items()]
    _write_grid(path, pictures, 3, (3.6, 3.4), 90, y=-0.04, pad=0, va="top", fontsize=11)


def write_panels(path: str | Path, maps: Maps) -> None:
    """Writes a PNG with a panel for each picture of `file_maps`."""
    _write_grid(path, maps, 6, (1.8, 2.05), 100, fontsize=13)


def _write_grid(
    path: str | Path, panels: Maps, columns: int, size: tuple[float, float], dpi: int, **style: Any
) -> None:
    """Writes a PNG of panels with titles in a grid. `size` is that of a panel, in inches."""
    rows = -(-len(panels) // columns)
    figure = new_figure((size[0] * columns, size[1] * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, title) in zip(grid.flat, panels, strict=False):
        axes.imshow(image, interpolation="lanczos")
        axes.set_title(title, parse_math=False, **style)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
