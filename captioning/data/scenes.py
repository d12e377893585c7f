"""The embedded data set: drawn scenes with captions that cannot be guessed.

A scene is a group of one to three equal shapes on a plain background. Six facts describe it
(432 combinations of the first five, each at one of five places). Five captions state all six facts,
each in another order, so a caption can be parsed back into facts and scored exactly.

There are 2,000 scenes to train on, 300 new ones of the same combinations (val), and 300 of
combinations that train never shows (unseen). They are written as ROOT/train/000001.png ..., with
the COCO files ROOT/annotations/captions_{train,val,unseen}.json.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from captioning.cnn.pretrained import IMAGE_SIZE
from captioning.console import progress
from captioning.files import write_json

COLORS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (50, 90, 210),
    "yellow": (240, 200, 40),
    "purple": (140, 70, 180),
    "orange": (240, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = {1: "a", 2: "two", 3: "three"}
SIZES = {"small": 6.5, "large": 10.4}  # radius in pixels
BACKGROUNDS = {"white": (247, 247, 247), "gray": (150, 150, 150), "black": (25, 25, 25)}
PLACES = {  # where the middle of the group is, as a fraction of the picture
    "in the top left": (0.25, 0.25),
    "in the top right": (0.75, 0.25),
    "in the bottom left": (0.25, 0.75),
    "in the bottom right": (0.75, 0.75),
    "in the middle": (0.5, 0.5),
}
SPLITS = {"train": 2000, "val": 300, "unseen": 300}
HELD_OUT = 72  # of the 432 combinations


class Facts(NamedTuple):
    """What a drawn scene shows; its captions say it in words."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    size: str
    color: str
    shape: str
    background: str
    place: str


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, color: tuple[int, ...]
) -> None:
    """Draw one shape around (x, y); all four cover about the same area for one radius."""
    r = radius
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    elif shape == "square":
        r *= 0.88
        draw.rectangle([x - r, y - r, x + r, y + r], fill=color)
    elif shape == "triangle":
        draw.polygon([(x, y - 1.05 * r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=color)
    else:  # star: ten corners, every other one far out
        corners = []
        for i in range(10):
            reach, angle = (1.15 * r, 0.48 * r)[i % 2], i * math.pi / 5
            corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        draw.polygon(corners, fill=color)


def jitter(rng: random.Random, color: tuple[int, ...], amount: int) -> tuple[int, ...]:
    """A random color whose channels differ from the given ones by at most `amount`."""
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in color)


def new_canvas(rng: random.Random, background: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A canvas of twice the picture's size; `Image.reduce(2)` then smooths the edges."""
    color = jitter(rng, BACKGROUNDS[background], 8)
    canvas = Image.new("RGB", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), color)
    return canvas, ImageDraw.Draw(canvas)


def draw_scene(rng: random.Random, facts: Facts) -> Image.Image:
    """A picture of these facts; the rest of it is random."""
    canvas, draw = new_canvas(rng, facts.background)
    radius = SIZES[facts.size] * rng.uniform(0.92, 1.08)
    # The members stand on a circle around the group's middle, about a quarter of their width apart.
    circle = {1: 0.0, 2: 1.5, 3: 1.6}[facts.count] * radius
    free = IMAGE_SIZE / 4 - 1 - circle - 1.15 * radius
    reach = min(7.0 if facts.place == "in the middle" else 14.0, free)
    x, y = (IMAGE_SIZE * p + rng.uniform(-reach, reach) for p in PLACES[facts.place])
    turn = rng.uniform(0, 2 * math.pi)
    for i in range(facts.count):
        angle = turn + 2 * math.pi * i / facts.count
        middle = 2 * (x + circle * math.sin(angle)), 2 * (y - circle * math.cos(angle))
        color = jitter(rng, COLORS[facts.color], 12)
        draw_shape(draw, facts.shape, *middle, 2 * radius, color)
    return canvas.reduce(2)


def captions(facts: Facts) -> list[str]:
    """Five captions, each with the group, the place and the background in another order."""
    plural, verb = ("", "is") if facts.count == 1 else ("s", "are")
    group = f"{COUNTS[facts.count]} {facts.size} {facts.color} {facts.shape}{plural}"
    background, place = facts.background, facts.place
    return [
        f"{group} {place} of a {background} picture",
        f"{group} on a {background} background {place}",
        f"{place} there {verb} {group} on {background}",
        f"a {background} picture with {group} {place}",
        f"on a {background} background {place} there {verb} {group}",
    ]


def _one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(words)})"


_WORDS: tuple[Iterable[str], ...] = (COUNTS.values(), SIZES, COLORS, SHAPES)
_GROUP = re.compile(rf"\b{' '.join(map(_one_of, _WORDS))}s?\b")
_BACKGROUND = re.compile(rf"\b{_one_of(BACKGROUNDS)}\b")
_PLACE = re.compile(_one_of(PLACES))
_NUMBER = {word: number for number, word in COUNTS.items()}


def parse(caption: str) -> Facts | None:
    """The facts that a caption states; None unless it states each exactly once."""
    found = [pattern.findall(caption) for pattern in (_GROUP, _BACKGROUND, _PLACE)]
    if any(len(f) != 1 for f in found):
        return None
    (count, size, color, shape), background, place = (f[0] for f in found)
    return Facts(_NUMBER[count], size, color, shape, background, place)


def fact_scores(written: Mapping[int, str], truth: Mapping[int, Facts | None]) -> dict[str, float]:
    """The share of pictures for which each fact, and all six, are right in the caption."""
    right = dict.fromkeys((*Facts._fields, "all"), 0)
    for image_id, facts in truth.items():
        stated = parse(written[image_id])
        if stated is not None:
            for name in Facts._fields:
                right[name] += getattr(stated, name) == getattr(facts, name)
            right["all"] += stated == facts
    return {name: count / len(truth) for name, count in right.items()}


Combination = tuple[int, str, str, str, str]


def split_combinations(seed: int = 0) -> tuple[list[Combination], list[Combination]]:
    """All combinations of the first five facts as (seen, unseen); every color-shape pair is seen.

    Full combinations are held out, not pairs: a captioner that never saw a green star cannot name
    one, but one that saw small green stars and pairs of red stars should name two green stars.
    """
    combinations = list(itertools.product(COUNTS, SIZES, COLORS, SHAPES, BACKGROUNDS))
    unseen = set(random.Random(seed).sample(combinations, HELD_OUT))
    seen = [c for c in combinations if c not in unseen]
    return seen, sorted(unseen)


def generate(root: str | Path, splits: dict[str, int] = SPLITS, seed: int = 0) -> Path:
    """Write the data set to `root` and return it; the same arguments give the same pictures.

    `splits` is the number of pictures of each split; only "unseen" is drawn from unseen
    combinations.
    """
    root, first = Path(root), 1
    seen, unseen = split_combinations(seed)
    for split, count in splits.items():
        numbers = progress(range(first, first + count), f"draw {split}")
        rng = random.Random(f"{seed} {split}")
        _write_split(root, split, numbers, unseen if split == "unseen" else seen, rng)
        first += count
    return root


def _write_split(
    root: Path,
    split: str,
    numbers: Iterable[int],
    combinations: list[Combination],
    rng: random.Random,
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        facts = Facts(*rng.choice(combinations), place=rng.choice(list(PLACES)))
        name = f"{number:06d}.png"
        draw_scene(rng, facts).save(folder / name, compress_level=1)
        images.append({"id": number, "file_name": name})
        for k, caption in enumerate(captions(facts), 5 * (number - 1) + 1):
            annotations.append({"id": k, "image_id": number, "caption": caption})
    data = {"info": {"image_folder": f"../{split}"}, "images": images, "annotations": annotations}
    write_json(root / "annotations" / f"captions_{split}.json", data)
