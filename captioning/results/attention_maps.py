"""Draws where a decoder looked before each word, as in figure 2 of Xu et al. (2015)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captioning.cnn.pretrained import FrozenCNN
from captioning.console import printable
from captioning.data.images import load_image
from captioning.data.tokenizer import tokenize
from captioning.data.vocabulary import END, UNK
from captioning.model.checkpoint import Checkpoint

Maps = list[tuple[Image.Image, str]]  # for each word, a picture and the word


def attends(checkpoint: Checkpoint) -> bool:
    """Returns whether all captioners of a checkpoint can show where they looked."""
    return all(hasattr(model.decoder, "attention") for model in checkpoint.models)


@torch.no_grad()
def attention_weights(checkpoint: Checkpoint, features: Tensor, words: Sequence[str]) -> Tensor:
    """Returns the weights [words,side,side] of a picture's cells before each word of a caption.

    The weights sum to 1 for each word. Those of several captioners are averaged. `features` are
    [1,cells,C].
    """
    index, device = checkpoint.vocabulary.index, next(checkpoint.model.parameters()).device
    tokens = torch.tensor([[*(index.get(word, UNK) for word in words), END]], device=device)
    images = [model.encoder.embed(features.to(device)) for model in checkpoint.models]
    decoders: Any = [model.decoder for model in checkpoint.models]
    weights = [d.attention(x, tokens)[0, :-1] for d, x in zip(decoders, images, strict=True)]
    mean = torch.stack(weights).float().mean(0).cpu()
    side = math.isqrt(mean.size(1))  # the feature map is a square, like the CNN's input
    return mean.unflatten(1, (side, side))


def attention_maps(
    checkpoint: Checkpoint, view: Image.Image, features: Tensor, words: Sequence[str]
) -> Maps:
    """Returns for each word the picture that the CNN saw, dark where the captioner did not look.

    `view` is the picture as the CNN sees it (`Transform.view`), and `features` [1,cells,C].
    """
    black, weights = Image.new("RGB", view.size), attention_weights(checkpoint, features, words)
    maps = [Image.composite(black, view, shade(w, view.size)) for w in weights]
    return [*zip(maps, map(printable, words), strict=True)]


def file_maps(checkpoint: Checkpoint, cnn: FrozenCNN, path: Path, caption: str) -> Maps:
    """Returns the picture that the CNN sees, with an empty word, and then a map for each word."""
    image = load_image(path, 2 * cnn.transform.resize_size)
    view, features = cnn.transform.view(image), cnn.encode(image)
    return [(view, ""), *attention_maps(checkpoint, view, features, tokenize(caption))]


def shade(weights: Tensor, size: tuple[int, int]) -> Image.Image:
    """Returns a mask that is transparent at the largest weight, and 80 % opaque at weight 0."""
    dark = 204 * (1 - weights / weights.max())
    return Image.fromarray(dark.byte().numpy()).resize(size, Image.Resampling.BICUBIC)
