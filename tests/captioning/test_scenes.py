"""The embedded data set: captions state all facts, splits differ, captions cannot be guessed."""

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from unittest.mock import Mock

import pytest

from captioning.data import scenes
from captioning.data.coco import load_coco

WORDS = [getattr(scenes, name) for name in "COUNTS SIZES COLORS SHAPES BACKGROUNDS PLACES".split()]
DIGEST = "980f7d9818939ba86dcba38333aa7282ef129ebe05eeea929dfb50a5547134f6"
EVERY_SCENE = [scenes.Facts(*words) for words in itertools.product(*WORDS)]


def test_every_caption_of_every_scene_parses_back_to_its_facts():
    assert len(EVERY_SCENE) == 6 * 4 * 3 * 2 * 3 * 5
    for facts in EVERY_SCENE:
        five = scenes.captions(facts)
        assert len(set(five)) == 5 and all(scenes.parse(caption) == facts for caption in five)


def test_the_captions_state_the_facts_in_different_orders():
    facts = scenes.Facts(2, "small", "red", "star", "gray", "in the middle")
    words = "two", "gray", "in the middle"
    orders = {tuple(sorted(words, key=c.index)) for c in scenes.captions(facts)}
    assert len(orders) == 5


@pytest.mark.parametrize("caption", [
    "",
    "a small red star",
    "a small red star in the middle of a white gray picture",
    "a small red star in the middle in the top left of a white picture",
    "a red small star in the middle of a white picture",
    "three small red star a small red star in the middle of a white picture",
])  # fmt: skip
def test_captions_that_state_too_little_or_too_much_have_no_facts(caption):
    assert scenes.parse(caption) is None


def test_unseen_combinations_are_unseen_and_every_pair_is_seen():
    seen, unseen = scenes.split_combinations()
    assert len(seen) + len(unseen) == 432 and not set(seen) & set(unseen)
    for i, j in itertools.combinations(range(5), 2):
        assert {(c[i], c[j]) for c in unseen} <= {(c[i], c[j]) for c in seen}


def test_the_data_set_is_coco_and_keeps_its_splits_apart(scenes_root):
    seen, unseen = (set(c) for c in scenes.split_combinations())
    ids = Counter()
    for split, number in {"train": 96, "val": 12, "unseen": 12}.items():
        annotations = scenes_root / "annotations" / f"captions_{split}.json"
        dataset = load_coco(annotations, scenes_root / split)
        assert len(dataset.images) == number
        ids.update(image.id for image in dataset.images)
        for image in dataset.images:
            facts = scenes.parse(image.captions[0])
            assert image.captions == scenes.captions(facts)
            assert facts[:5] in (unseen if split == "unseen" else seen)
        numbers = [a["id"] for a in json.loads(annotations.read_text())["annotations"]]
        assert len(set(numbers)) == 5 * number
    assert set(ids.values()) == {1}


def test_pictures_are_reproducible_and_differ(tmp_path, scenes_root):
    again = scenes.generate(tmp_path, {"train": 8})
    pictures = [path.read_bytes() for path in sorted((again / "train").iterdir())]
    first = sorted((scenes_root / "train").iterdir())[:8]
    assert pictures == [path.read_bytes() for path in first] and len(set(pictures)) == 8


def test_the_same_arguments_give_the_same_pictures(tmp_path, monkeypatch):
    """Compares the calls of Pillow, to 4 digits, since its versions may draw other edges."""
    pillow = Mock()
    monkeypatch.setattr(scenes, "Image", pillow.Image)
    monkeypatch.setattr(scenes, "ImageDraw", pillow.ImageDraw)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()  # as after a run that was interrupted
    scenes.generate("")
    drawn = re.sub(r"(\.\d{4})\d*|id='\d+'", r"\1", "".join(map(str, pillow.mock_calls)))
    stated = "".join(path.read_text() for path in sorted(tmp_path.rglob("*.json")))
    assert hashlib.sha256((drawn + stated).encode()).hexdigest() == DIGEST


def test_every_shape_lies_inside_its_picture():
    rng, size = random.Random(0), scenes.IMAGE_SIZE
    edges = (0, 0, size, 1), (0, size - 1, size, size), (0, 0, 1, size), (size - 1, 0, size, size)
    for facts in rng.sample(EVERY_SCENE, 400):
        picture = scenes.draw_scene(rng, facts)
        background = [(size, picture.getpixel((0, 0)))]
        assert all(picture.crop(edge).getcolors() == background for edge in edges), facts


def test_scores_are_shares_of_all_pictures():
    facts = EVERY_SCENE[0]
    stated = [scenes.captions(each)[0] for each in (facts, facts._replace(color="blue"))]
    written = dict(enumerate([*stated, "", "a star"]))
    scores = scenes.fact_scores(written, dict.fromkeys(range(4), facts))
    assert scores == {**dict.fromkeys(facts._fields, 0.5), "color": 0.25, "all": 0.25}


def test_captions_cannot_be_guessed_without_looking():
    seen, _ = scenes.split_combinations()
    rng = random.Random(1)
    split = [scenes.Facts(*rng.choice(seen), rng.choice(list(scenes.PLACES))) for _ in range(3000)]
    truth = dict(enumerate(split))
    favorite = scenes.Facts(*(Counter(column).most_common(1)[0][0] for column in zip(*split)))  # noqa: B905
    most_common = Counter(split).most_common(1)[0][0]
    for facts in (favorite, most_common):
        guess = dict.fromkeys(truth, scenes.captions(facts)[0])
        assert scenes.fact_scores(guess, truth)["all"] <= 0.01
