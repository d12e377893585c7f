"""Pretrains the tiny CNN that the demo of captioning uses.

The CNN learns from pictures of scattered shapes. Each shape has a random color, shape and size, and
an attribute grid labels every cell of the picture. The CNN never sees a caption or a scene of the
demo's data set. This command made the weights in the package::

    python benchmarks/pretrain_scenes_cnn.py
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import trange

from captioning.cnn.pretrained import SCENES_WEIGHTS, SceneCNN
from captioning.console import say
from captioning.data import scenes
from captioning.files import write_atomically


def to_input(pictures: np.ndarray) -> Tensor:
    """Converts uint8 pictures [B,H,W,3] to the floats [B,3,H,W] in -1..1 that the CNN expects."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


GRID = 16  # cells per side of the CNN's feature map
ATTRIBUTES = [*scenes.COLORS, *scenes.SHAPES, *scenes.SIZES]
BACKGROUNDS = list(scenes.BACKGROUNDS)
KIND_SIZES = [len(scenes.COLORS), len(scenes.SHAPES), len(scenes.SIZES)]


def draw_grid(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Draws a picture of one to six scattered shapes.

    Returns:
        The picture [H,W,3] and its attribute grid [attributes + 1,GRID,GRID]. In the plane of an
        attribute, 1 marks a cell with the center of a shape that has the attribute. The last plane
        is the index of the background in every cell.
    """
    background = rng.choice(BACKGROUNDS)
    canvas, draw = scenes.new_canvas(rng, background)
    grid = np.zeros((len(ATTRIBUTES) + 1, GRID, GRID), dtype=np.float32)
    grid[-1] = BACKGROUNDS.index(background)
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.randint(1, 6)):
        color, shape, size = (
            rng.choice(list(kind)) for kind in (scenes.COLORS, scenes.SHAPES, scenes.SIZES)
        )
        radius = scenes.SIZES[size] * rng.uniform(0.92, 1.08)
        margin = 1.15 * radius + 1
        x, y = (rng.uniform(margin, scenes.IMAGE_SIZE - margin) for _ in range(2))
        if any((x - a) ** 2 + (y - b) ** 2 < (1.1 * (radius + r)) ** 2 for a, b, r in placed):
            continue
        placed.append((x, y, radius))
        fill = scenes.jitter(rng, scenes.COLORS[color], 12)
        scenes.draw_shape(draw, shape, 2 * x, 2 * y, 2 * radius, fill)
        cell = scenes.IMAGE_SIZE // GRID
        for attribute in (color, shape, size):
            grid[ATTRIBUTES.index(attribute), int(y) // cell, int(x) // cell] = 1
    return np.asarray(canvas.reduce(2)), grid


class Heads(nn.Module):
    """The layers that predict the attributes from the feature map; only pretraining needs them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell = nn.Conv2d(channels, len(ATTRIBUTES) + 1 + len(BACKGROUNDS), 1)
        self.count = nn.Linear(channels, len(ATTRIBUTES))

    def losses(self, features: Tensor, grid: Tensor) -> dict[str, Tensor]:
        """Returns the losses by name.

        For each cell, the heads predict whether a shape is there, its color, shape and size, and
        the background. For each quarter of the picture, they predict how many shapes have each
        attribute, as a linear function of the sum of the features. So the counts can be computed
        from the means of the quarters, which are features of a captioner (pooling "2x2").

        `features` are the feature maps [B,channels,GRID,GRID], and `grid` the attribute grids
        [B,attributes + 1,GRID,GRID].
        """
        attributes, background = grid[:, :-1], grid[:, -1].long()
        scores = self.cell(features)
        *kinds, presence, backgrounds = scores.split([*KIND_SIZES, 1, len(BACKGROUNDS)], 1)
        shape_there = attributes[:, : KIND_SIZES[0]].sum(1)
        losses = {"background": F.cross_entropy(backgrounds, background)}
        for name, kind, target in zip(
            ("color", "shape", "size"), kinds, attributes.split(KIND_SIZES, 1), strict=True
        ):
            cell_losses = F.cross_entropy(kind, target.argmax(1), reduction="none")
            losses[name] = (cell_losses * shape_there).sum() / shape_there.sum()
        losses["there"] = 10 * F.binary_cross_entropy_with_logits(presence[:, 0], shape_there)

        def quarters(map_: Tensor) -> Tensor:
            return F.avg_pool2d(map_, GRID // 2, divisor_override=1).flatten(2).transpose(1, 2)

        counts = self.count(quarters(features))
        losses["count"] = 10 * F.mse_loss(counts, quarters(attributes))
        return losses


def pretrain(steps: int, batch_size: int, learning_rate: float, seed: int) -> SceneCNN:
    """Trains a new CNN on random attribute grids and returns it in evaluation mode."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    cnn = SceneCNN()
    heads = Heads(cnn.channels)
    heads.count.weight.data /= 10  # small, because its inputs are sums over 64 cells
    parameters = [*cnn.parameters(), *heads.parameters()]
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    progress = trange(steps, desc="pretrain")
    for step in progress:
        pictures, grids = zip(*(draw_grid(rng) for _ in range(batch_size)), strict=True)
        losses = heads.losses(cnn(to_input(np.stack(pictures))), torch.from_numpy(np.stack(grids)))
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
    return cnn.eval()


def main() -> None:
    """Pretrains the CNN and writes its weights."""
    parser = argparse.ArgumentParser(description="Pretrain the CNN of the drawn scenes.")
    parser.add_argument("--output", type=Path, default=SCENES_WEIGHTS, help="the file to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cnn = pretrain(args.steps, args.batch_size, args.learning_rate, args.seed)
    weights = {name: tensor.contiguous() for name, tensor in cnn.state_dict().items()}
    write_atomically(args.output, lambda file: file.write(save(weights)))
    say(f"{args.output}: {sum(p.numel() for p in cnn.parameters()):,} parameters")


if __name__ == "__main__":
    main()
