"""Where a decoder looked for each word, over the picture (Xu et al., 2015, figure 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from captioning.cnn import FrozenCNN
from captioning.console import printable
from captioning.data import END, UNK, data_uri, load_image, tokenize
from captioning.model import Attentive, Checkpoint


@dataclass(frozen=True)
class AttentionMaps:
    """Where a decoder looked, word by word, in the square part of a picture that the CNN saw.

    The weights [len(words),side,side] of the cells for each word sum to 1.
    """

    view: Image.Image
    words: Sequence[str]
    weights: Tensor

    def pictures(self) -> list[tuple[Image.Image, str]]:
        """For each word, the picture, dark where the decoder did not look before it wrote it."""
        found = []
        for word, weights in zip(self.words, self.weights, strict=True):
            picture = self.view.copy()
            picture.paste("black", mask=shade(weights, picture.size))
            found.append((picture, printable(word)))
        return found

    def panels(self) -> dict[str, Any]:
        """The picture, and a mask for each word, as data URIs; a page lays them over each other."""
        masks = []
        for word, weights in zip(self.words, self.weights, strict=True):
            mask = Image.new("LA", (64, 64))
            mask.putalpha(shade(weights, mask.size))
            masks.append((word, data_uri(mask)))
        return {"picture": data_uri(self.view), "words": masks}


def attends(checkpoint: Checkpoint) -> bool:
    """Whether all captioners of a checkpoint can show where they looked."""
    return all(isinstance(model.decoder, Attentive) for model in checkpoint.models)


def compute_maps(
    checkpoint: Checkpoint, view: Image.Image, features: Tensor, words: Sequence[str]
) -> AttentionMaps:
    """Where captioners that attend looked on average when they wrote `words`, without <end>.

    `view` is what the CNN saw, `features` [1,cells,C] what it made of it.
    """
    index, model = checkpoint.vocabulary.index, checkpoint.model
    device = next(model.parameters()).device
    tokens = torch.tensor([[*(index.get(word, UNK) for word in words), END]], device=device)
    found = []
    with torch.no_grad():
        for model in checkpoint.models:
            cells = model.encoder.embed(features.to(device))
            found.append(cast(Attentive, model.decoder).attention(cells, tokens)[0, :-1])
    weights = torch.stack(found).float().mean(0).cpu()
    side = math.isqrt(weights.size(1))  # the CNN's input is a square, so its feature map is
    return AttentionMaps(view, words, weights.unflatten(1, (side, side)))


def file_maps(checkpoint: Checkpoint, cnn: FrozenCNN, path: Path, caption: str) -> AttentionMaps:
    """`compute_maps` for a picture's file and its caption."""
    image = load_image(path, 2 * cnn.transform.resize_size)
    view = cnn.transform.view(image)
    return compute_maps(checkpoint, view, cnn.encode(image), tokenize(caption))


def shade(weights: Tensor, size: tuple[int, int]) -> Image.Image:
    """A mask that is transparent at the largest weight and 80 % opaque at weight 0."""
    dark = 204 * (1 - weights / weights.max())
    return Image.fromarray(dark.byte().numpy()).resize(size, Image.Resampling.BICUBIC)
