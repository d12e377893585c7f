"""Where a decoder looked for each word, over the picture (Xu et al., 2015, figure 2)."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from captioning.cnn import FrozenCNN
from captioning.console import printable
from captioning.data import END, UNK, ImageError, data_uri, load_image, tokenize
from captioning.files import write_atomically
from captioning.model import Attentive, Checkpoint

ATTENTION_STYLE = """
.attention { display: flex; flex-wrap: wrap; gap: .4rem; }
.attention span { width: 92px; font-size: .8rem; text-align: center; overflow-wrap: anywhere; }
.attention i { display: block; width: 92px; height: 92px; border-radius: 6px; overflow: hidden;
               background: var(--picture) center / cover; }
.attention img { width: 100%; height: 100%; display: block; object-fit: fill; background: none; }
"""


@dataclass(frozen=True)
class AttentionMaps:
    """Where a decoder looked in one picture, word by word.

    Args:
        view: the square part of the picture that the CNN saw.
        words: the words that were written.
        weights: float32 [len(words),side,side]; the weights of the cells for each word sum to 1.
    """

    view: Image.Image
    words: Sequence[str]
    weights: Tensor


def compute_maps(
    checkpoint: Checkpoint, cnn: FrozenCNN, image: Image.Image, words: Sequence[str]
) -> AttentionMaps | None:
    """The attention of a captioner when it wrote `words` about a picture.

    Args:
        checkpoint: the captioner, in eval mode.
        cnn: its CNN, ``checkpoint.cnn.load()``.
        image: an RGB picture.
        words: a caption, without <end>.

    Returns:
        One map for each word; None if its decoder has no attention.
    """
    model, index = checkpoint.model, checkpoint.vocabulary.index
    if not isinstance(model.decoder, Attentive):
        return None
    device = next(model.parameters()).device
    tokens = torch.tensor([[*(index.get(word, UNK) for word in words), END]], device=device)
    with torch.no_grad():
        cells = model.encoder.embed(cnn.encode(image).to(device))
        weights = model.decoder.attention(cells, tokens)[0, :-1].float().cpu()
    side = math.isqrt(weights.size(1))  # the CNN's input is a square, so its feature map is
    return AttentionMaps(cnn.transform.view(image), words, weights.unflatten(1, (side, side)))


def file_maps(
    checkpoint: Checkpoint, cnn: FrozenCNN | None = None
) -> Callable[[Path, str], AttentionMaps | None] | None:
    """Returns a function that makes the maps of a picture, given its file and its caption.

    It returns None for a picture that cannot be read. If the decoder has no attention, there is no
    such function, and None is returned. The CNN is loaded if it is not given.
    """
    if not isinstance(checkpoint.model.decoder, Attentive):
        return None
    frozen = cnn or checkpoint.cnn.load()

    def maps_for(path: Path, caption: str) -> AttentionMaps | None:
        try:
            image = load_image(path, 2 * frozen.transform.resize_size)
        except ImageError:
            return None  # the report says so in place of the picture
        return compute_maps(checkpoint, frozen, image, tokenize(caption))

    return maps_for


def shade(weights: Tensor, size: tuple[int, int]) -> Image.Image:
    """A mask that is transparent at the largest weight and 80 % opaque at weight 0."""
    dark = 204 * (1 - weights / weights.max())
    return Image.fromarray(dark.byte().numpy()).resize(size, Image.Resampling.BICUBIC)


def panels_html(maps: AttentionMaps) -> str:
    """A small panel for each word, for `ATTENTION_STYLE`; it holds the picture once."""
    panels = []
    for word, weights in zip(maps.words, maps.weights, strict=True):
        mask = Image.new("LA", (64, 64))
        mask.putalpha(shade(weights, mask.size))
        word = html.escape(word)
        label = f"where it looked for &quot;{word}&quot;"
        panels.append(f'<span><i><img alt="{label}" src="{data_uri(mask)}"></i>{word}</span>')
    picture = f"--picture: url({data_uri(maps.view)})"
    return f'<div class="attention" style="{picture}">{"".join(panels)}</div>'


def write_panels(path: str | Path, maps: AttentionMaps, columns: int = 6) -> None:
    """Write a PNG: the picture, then one panel for each word."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("", maps.view)]
    for word, weights in zip(maps.words, maps.weights, strict=True):
        panel = maps.view.copy()
        panel.paste("black", mask=shade(weights, panel.size))
        panels.append((word, panel))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.8 * columns, 2.05 * rows), squeeze=False, layout="constrained"
    )
    for place in axes.flat:
        place.axis("off")
    for (word, panel), place in zip(panels, axes.flat, strict=False):
        place.imshow(panel)
        place.set_title(printable(word), fontsize=13, parse_math=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)
