"""Where a decoder looked for each word, over the picture (Xu et al., 2015, figure 2)."""

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

Maps = list[tuple[Image.Image, str]]  # pictures with their words


def attends(checkpoint: Checkpoint) -> bool:
    """Whether all captioners of a checkpoint can show where they looked."""
    return all(hasattr(model.decoder, "attention") for model in checkpoint.models)


def attention_weights(checkpoint: Checkpoint, features: Tensor, words: Sequence[str]) -> Tensor:
    """The weights [len(words),side,side] of the cells of a picture's features [1,cells,C].

    They are the means of captioners that attend, before each of the words, and sum to 1.
    """
    index, device = checkpoint.vocabulary.index, next(checkpoint.model.parameters()).device
    tokens = torch.tensor([[*(index.get(word, UNK) for word in words), END]], device=device)
    found = []
    with torch.no_grad():
        for model in checkpoint.models:
            cells = model.encoder.embed(features.to(device))
            decoder: Any = model.decoder
            found.append(decoder.attention(cells, tokens)[0, :-1])
    weights = torch.stack(found).float().mean(0).cpu()
    side = math.isqrt(weights.size(1))  # the CNN's input is a square, so its feature map is
    return weights.unflatten(1, (side, side))


def attention_maps(
    checkpoint: Checkpoint, view: Image.Image, features: Tensor, words: Sequence[str]
) -> Maps:
    """For each word, what the CNN saw, dark where captioners did not look before they wrote it."""
    found = []
    for word, weights in zip(words, attention_weights(checkpoint, features, words), strict=True):
        picture = view.copy()
        picture.paste("black", mask=shade(weights, picture.size))
        found.append((picture, printable(word)))
    return found


def file_maps(checkpoint: Checkpoint, cnn: FrozenCNN, path: Path, caption: str) -> Maps:
    """What the CNN sees of a picture's file, and its `attention_maps` for a caption."""
    image = load_image(path, 2 * cnn.transform.resize_size)
    view, features = cnn.transform.view(image), cnn.encode(image)
    return [(view, ""), *attention_maps(checkpoint, view, features, tokenize(caption))]


def shade(weights: Tensor, size: tuple[int, int]) -> Image.Image:
    """A mask that is transparent at the largest weight and 80 % opaque at weight 0."""
    dark = 204 * (1 - weights / weights.max())
    return Image.fromarray(dark.byte().numpy()).resize(size, Image.Resampling.BICUBIC)
