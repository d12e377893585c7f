"""The HTML report: one file, the right pictures, escaped text, curves."""

import os
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest
from PIL import Image

from captioning.data.coco import CaptionedImage
from captioning.results.metrics import Scores
from captioning.results.report import Section, examples, write_report

COUNT = 5000
HISTORY = [{"epoch": e, "loss": 2 / e, "val_loss": 3 / e, "CIDEr-D": e / 10} for e in (1, 2, 3)]
EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A section with captions of 5,000 pictures of noise, the best first."""
    folder = tmp_path_factory.mktemp("photographs")
    files = [folder / f"{EVIL.replace('/', '_')}{i}.jpg" for i in range(3)]
    for path in files:
        Image.frombytes("RGB", (1200, 900), os.urandom(1200 * 900 * 3)).save(path)
    pictures = [CaptionedImage(i, files[i % 3], [f"{EVIL} reference {i}"]) for i in range(COUNT)]
    captions = {i: f"{EVIL} caption {i}." for i in range(COUNT)}
    per_image = {i: {"CIDEr-D": (COUNT - i) / 1000} for i in range(COUNT)}
    scores = Scores({"CIDEr-D": 2.5}, per_image, [EVIL])
    return Section("test & more", EVIL, pictures, captions, scores)


@pytest.fixture(scope="module")
def report(section, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, f"Title {EVIL}", EVIL, [section], HISTORY)
    return path


def test_shows_the_best_the_worst_and_some_others(section, report):
    chosen = examples(section)
    assert [p.id for p in chosen["Best"]] == list(range(8))
    assert [p.id for p in chosen["Worst"]] == list(range(COUNT - 1, COUNT - 9, -1))
    drawn = {p.id for p in chosen["Drawn at random"]}
    assert len(drawn) == 8 and 500 < sum(drawn) / 8 < 4500
    text = report.read_text()
    for i in [*range(8), *range(COUNT - 8, COUNT), *drawn]:
        assert f"caption {i}." in text and f"reference {i}<" in text
    assert text.count("<figure>") == 24
    assert text.count("<svg") == 2  # the plots of the loss and of CIDEr-D


def test_equal_notes_of_two_sections_are_both_shown(section, tmp_path):
    write_report(tmp_path / "r.html", "", "", [section, replace(section, title="second")])
    text = (tmp_path / "r.html").read_text()
    assert text.count('<p class="note">') == 2 and '<p class="note">second: ' in text


def test_is_one_file_that_loads_nothing_and_runs_nothing(report):
    loaded, tags = [], set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.add(tag)
            loaded.extend(v for k, v in attributes if k in ("src", "href", "xlink:href"))

    text = report.read_text()
    Reader().feed(text)
    assert "script" not in tags and EVIL not in text and "&lt;script&gt;" in text
    assert loaded and all(value.startswith(("data:", "#")) for value in loaded)
    assert not re.search(r"@import|url\((?!data:|#)", text)


def test_each_group_has_a_button_that_hides_the_others(report):
    text = report.read_text()
    for i, heading in enumerate(("Drawn at random", "Best", "Worst")):
        assert f'class="only-{i}"> {heading}</label>' in text
        assert f'<div class="group-{i}"><h3>{heading}</h3>' in text
        assert f"section:has(.only-{i}:checked) > div:not(.group-{i})" in text


@pytest.fixture
def drawn_lines(section, tmp_path, monkeypatch):
    """A function that returns the lines which a report draws: [(label of y, x, y)]."""
    from captioning.results import figures as module

    def draw(history):
        lines, real = [], module.svg

        def keep(draw, axes):
            draw(axes)
            lines.extend((axes.get_ylabel(), *map(list, line.get_data())) for line in axes.lines)

        watch = lambda draw, size: real(partial(keep, draw), size)
        monkeypatch.setattr(module, "svg", watch)
        write_report(tmp_path / "r.html", "", "", [section], history)
        return lines

    return draw


def test_draws_the_losses_of_the_first_stage_and_the_reward_of_the_second(drawn_lines):
    loss, val_loss, cider = drawn_lines(HISTORY)
    assert loss == ("loss (nats per word)", [1, 2, 3], [2, 1, 2 / 3])
    assert val_loss == ("loss (nats per word)", [1, 2, 3], [3, 1.5, 1])
    assert cider == ("CIDEr-D (validation)", [1, 2, 3], [0.1, 0.2, 0.3])
    history = [{"epoch": e, "reward": e / 5, "val_loss": 2.0, "CIDEr-D": 0.1 * e} for e in (1, 2)]
    reward, cider = drawn_lines(history)
    assert reward == ("reward (CIDEr-D of samples)", [1, 2], [0.2, 0.4]) and cider[2] == [0.1, 0.2]
