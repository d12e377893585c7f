"""Draws the embedded data set: pictures of simple scenes with captions.

A scene is a group of one to three equal shapes on a plain background. Six facts describe it: the
count, size, color and shape, the background, and the place. The first five have 432 combinations,
and there are five places. A scene has five captions. Each states all six facts in another order.
The facts can be parsed from a caption, so the right facts of a written caption can be counted.

There are 2,000 scenes to train on, 300 other scenes with the same combinations (val), and 300
scenes with combinations that the training scenes do not have (unseen). They are written to
ROOT/train/000001.png and so on, with the COCO captions files
ROOT/annotations/captions_{train,val,unseen}.json.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from captioning.console import progress
from captioning.files import write_json

IMAGE_SIZE = 128  # side of a picture in pixels
COLORS = {"red": (220, 50, 47), "green": (60, 160, 60), "blue": (50, 90, 210)}
COLORS |= {"yellow": (240, 200, 40), "purple": (140, 70, 180), "orange": (240, 130, 30)}
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = {1: "a", 2: "two", 3: "three"}
SIZES = {"small": 6.5, "large": 10.4}  # radius in pixels
BACKGROUNDS = {"white": (247, 247, 247), "gray": (150, 150, 150), "black": (25, 25, 25)}
PLACES = {  # x and y of the middle of the group, as a fraction of the side
    "in the top left": (0.25, 0.25),
    "in the top right": (0.75, 0.25),
    "in the bottom left": (0.25, 0.75),
    "in the bottom right": (0.75, 0.75),
    "in the middle": (0.5, 0.5),
}
SPLIT_SIZES = {"train": 2000, "val": 300, "unseen": 300}
UNSEEN_COUNT = 72  # Any two facts of an unseen combination also occur together in a seen one.


class Facts(NamedTuple):
    """The six facts about a scene."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    size: str
    color: str
    shape: str
    background: str
    place: str


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, color: tuple[int, ...]
) -> None:
    """Draws one shape around (x, y). Shapes of the same radius have about the same width."""
    r = radius
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    elif shape == "square":
        r *= 0.88
        draw.rectangle([x - r, y - r, x + r, y + r], fill=color)
    elif shape == "triangle":
        draw.polygon([(x, y - 1.05 * r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=color)
    else:  # a star has ten corners, five far from the middle and five near it
        polar = [((1.15 * r, 0.48 * r)[i % 2], i * math.pi / 5) for i in range(10)]
        corners = [(x + reach * math.sin(a), y - reach * math.cos(a)) for reach, a in polar]
        draw.polygon(corners, fill=color)


def jitter(rng: random.Random, color: tuple[int, ...], amount: int) -> tuple[int, ...]:
    """Returns a random color whose channels differ from those of `color` by at most `amount`."""
    return tuple(c + rng.randint(-amount, amount) for c in color)


def new_canvas(rng: random.Random, background: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Makes a canvas of twice the picture's size; `Image.reduce(2)` later smooths the edges."""
    color = jitter(rng, BACKGROUNDS[background], 8)
    canvas = Image.new("RGB", (2 * IMAGE_SIZE, 2 * IMAGE_SIZE), color)
    return canvas, ImageDraw.Draw(canvas)


def draw_scene(rng: random.Random, facts: Facts) -> Image.Image:
    """Draws a picture of these facts. All that they do not determine is random."""
    canvas, draw = new_canvas(rng, facts.background)
    radius = SIZES[facts.size] * rng.uniform(0.92, 1.08)
    # The shapes stand on a circle of radius `ring` around the group's middle, and do not touch.
    ring = {1: 0.0, 2: 1.5, 3: 1.6}[facts.count] * radius
    max_shift = IMAGE_SIZE / 4 - 1 - ring - 1.15 * radius
    shift = min(7.0 if facts.place == "in the middle" else 14.0, max_shift)
    x, y = (IMAGE_SIZE * p + rng.uniform(-shift, shift) for p in PLACES[facts.place])
    turn = rng.uniform(0, 2 * math.pi)
    for i in range(facts.count):
        angle = turn + 2 * math.pi * i / facts.count
        middle = 2 * (x + ring * math.sin(angle)), 2 * (y - ring * math.cos(angle))
        draw_shape(draw, facts.shape, *middle, 2 * radius, jitter(rng, COLORS[facts.color], 12))
    return canvas.reduce(2)


def captions(facts: Facts) -> list[str]:
    """Returns five captions that state the facts, each in another order."""
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


_one_of = lambda words: f"({'|'.join(words)})"  # matches any of the words
_WORDS: tuple[Iterable[str], ...] = (COUNTS.values(), SIZES, COLORS, SHAPES)
_GROUP = re.compile(rf"\b{' '.join(map(_one_of, _WORDS))}s?\b")
_BACKGROUND = re.compile(rf"\b{_one_of(BACKGROUNDS)}\b")
_PLACE = re.compile(_one_of(PLACES))
_NUMBER = {word: number for number, word in COUNTS.items()}


def parse(caption: str) -> Facts | None:
    """Returns the facts that a caption states, or None if one is missing or stated twice."""
    matches = [pattern.findall(caption) for pattern in (_GROUP, _BACKGROUND, _PLACE)]
    if any(len(f) != 1 for f in matches):
        return None
    (count, size, color, shape), background, place = (f[0] for f in matches)
    return Facts(_NUMBER[count], size, color, shape, background, place)


def fact_scores(written: Mapping[int, str], truth: Mapping[int, Facts | None]) -> dict[str, float]:
    """Returns the share of captions in which a fact is right, for each fact, and for "all" six.

    `written` has a caption for each picture, and `truth` the facts, both by the picture's id.
    """
    pairs = [(stated, truth[i]) for i in truth if (stated := parse(written[i]))]
    share = lambda right: sum(right) / len(truth)
    facts = Facts._fields
    shares = {fact: share(getattr(a, fact) == getattr(b, fact) for a, b in pairs) for fact in facts}
    return shares | {"all": share(a == b for a, b in pairs)}


Combination = tuple[int, str, str, str, str]  # the facts without the place


def split_combinations(seed: int = 0) -> tuple[list[Combination], list[Combination]]:
    """Divides all combinations of the first five facts into seen and unseen ones."""
    combinations = list(itertools.product(COUNTS, SIZES, COLORS, SHAPES, BACKGROUNDS))
    unseen = set(random.Random(seed).sample(combinations, UNSEEN_COUNT))
    return [c for c in combinations if c not in unseen], sorted(unseen)


def generate(root: str | Path, split_sizes: dict[str, int] = SPLIT_SIZES, seed: int = 0) -> Path:
    """Draws the data set into the folder `root`, and returns the folder.

    `split_sizes` is the number of pictures of each split. Only "unseen" has unseen combinations.
    The same arguments give the same pictures.
    """
    root, first_id = Path(root), 1
    seen, unseen = split_combinations(seed)
    for split, count in split_sizes.items():
        rng, combinations = random.Random(f"{seed} {split}"), unseen if split == "unseen" else seen
        data: dict[str, Any] = {"info": {"image_folder": f"../{split}"}}
        data |= {"images": [], "annotations": []}
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in progress(range(first_id, first_id + count), f"draw {split}"):
            facts = Facts(*rng.choice(combinations), place=rng.choice(list(PLACES)))
            name = f"{number:06d}.png"
            draw_scene(rng, facts).save(root / split / name, compress_level=1)
            data["images"].append({"id": number, "file_name": name})
            for k, caption in enumerate(captions(facts), 5 * (number - 1) + 1):
                data["annotations"].append({"id": k, "image_id": number, "caption": caption})
        write_json(root / "annotations" / f"captions_{split}.json", data)
        first_id += count
    return root
