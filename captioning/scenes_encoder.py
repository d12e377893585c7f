"""The tiny pretrained CNN of the embedded data set, and the script that pretrains it.

What ImageNet is to ResNet, attribute grids are to this one: pictures of scattered shapes, each
with its own colour, shape and size, labelled cell by cell. It never sees a group, a place in words
or a caption. The weights are shipped in `captioning/weights/scenes_cnn.safetensors`, made by::

    python -m captioning.scenes_encoder --output captioning/weights/scenes_cnn.safetensors
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import trange

from captioning import scenes
from captioning.files import write_atomically

WEIGHTS = Path(__file__).parent / "weights" / "scenes_cnn.safetensors"
GRID = 16  # cells per side of the feature map of a 128-pixel picture
COLORS, SHAPES = list(scenes.COLORS), list(scenes.SHAPES)
SIZES, BACKGROUNDS = list(scenes.SIZES), list(scenes.BACKGROUNDS)


class SceneCNN(nn.Sequential):
    """Four 3x3 convolutions (39,888 parameters): [B,3,128,128] in -1..1 to [B,48,16,16]."""

    channels = 48

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        in_channels = 3
        for out_channels, stride in ((16, 2), (32, 2), (48, 2), (48, 1)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels = out_channels
        super().__init__(*layers)


def load_scene_cnn() -> SceneCNN:
    cnn = SceneCNN()
    cnn.load_state_dict(load_file(WEIGHTS))
    return cnn


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 [B,H,W,3] to the [B,3,H,W] in -1..1 that the CNN expects."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


# Pretraining ------------------------------------------------------------------------------------


def draw_grid(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A picture of one to six scattered shapes and its labels [4,GRID,GRID].

    The label planes are colour, shape and size (-1 where no shape is centred in the cell, and
    for size the extra class len(SIZES): nothing here), and the background.
    """
    background = rng.choice(BACKGROUNDS)
    canvas, draw = scenes.new_canvas(rng, background)
    labels = np.full((4, GRID, GRID), -1)
    labels[2], labels[3] = len(SIZES), BACKGROUNDS.index(background)
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.randint(1, 6)):
        color, shape, size = rng.choice(COLORS), rng.choice(SHAPES), rng.choice(SIZES)
        radius = scenes.SIZES[size] * rng.uniform(0.92, 1.08)
        margin = 1.15 * radius + 1
        x, y = (rng.uniform(margin, scenes.IMAGE_SIZE - margin) for _ in range(2))
        if any((x - a) ** 2 + (y - b) ** 2 < (1.1 * (radius + r)) ** 2 for a, b, r in placed):
            continue
        placed.append((x, y, radius))
        fill = scenes.jitter(rng, scenes.COLORS[color], 12)
        scenes.draw_shape(draw, shape, 2 * x, 2 * y, 2 * radius, fill)
        cell = scenes.IMAGE_SIZE // GRID
        labels[:3, int(y) // cell, int(x) // cell] = (
            COLORS.index(color),
            SHAPES.index(shape),
            SIZES.index(size),
        )
    return np.asarray(canvas.reduce(2)), labels


def pretrain(steps: int, batch_size: int, learning_rate: float, seed: int) -> SceneCNN:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    cnn, classes = SceneCNN(), [len(COLORS), len(SHAPES), len(SIZES) + 1, len(BACKGROUNDS)]
    head = nn.Conv2d(cnn.channels, sum(classes), 1)
    parameters = [*cnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    rarely_empty = torch.tensor([1.0] * len(SIZES) + [0.1])  # almost every cell is empty
    progress = trange(steps, desc="pretrain")
    for step in progress:
        pictures, labels = zip(*(draw_grid(rng) for _ in range(batch_size)), strict=True)
        target = torch.from_numpy(np.stack(labels))
        predictions = head(cnn(to_input(np.stack(pictures)))).split(classes, dim=1)
        losses = [
            F.cross_entropy(
                prediction,
                target[:, i],
                weight=rarely_empty if i == 2 else None,
                ignore_index=-1,
            )
            for i, prediction in enumerate(predictions)
        ]
        optimizer.zero_grad()
        sum(losses, torch.zeros(())).backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            names = ("color", "shape", "size", "background")
            progress.set_postfix({n: f"{v:.3f}" for n, v in zip(names, losses, strict=True)})
    return cnn.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="weights file to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cnn = pretrain(args.steps, args.batch_size, args.learning_rate, args.seed)
    weights = {name: tensor.contiguous() for name, tensor in cnn.state_dict().items()}
    write_atomically(args.output, lambda file: file.write(save(weights)))
    print(f"{args.output}: {sum(p.numel() for p in cnn.parameters()):,} parameters")


if __name__ == "__main__":
    main()
