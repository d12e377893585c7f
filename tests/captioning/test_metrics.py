"""Scores: they equal those of pycocoevalcap with its Java tokenizer, and notes explain them."""

import json
import shutil
from pathlib import Path

import pytest

from captioning.errors import CaptioningError
from captioning.results.metrics import score_captions

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
REFERENCES = {int(i): r for i, r in GOLDEN["references"].items()}
CAPTIONS = {int(i): c for i, c in GOLDEN["captions"].items()}


def test_scores_are_those_of_the_reference_implementation():
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.overall == pytest.approx(GOLDEN["scores"], abs=1e-12)
    assert [scores.per_image[i]["CIDEr-D"] for i in CAPTIONS] == pytest.approx(GOLDEN["cider"])
    assert "6 pictures are few" in str(scores)


def test_perfect_captions_and_the_order_of_pictures():
    perfect = {i: r[0] for i, r in REFERENCES.items()}
    assert score_captions(perfect, REFERENCES).overall["BLEU-4"] == pytest.approx(1)
    backwards = dict(reversed(CAPTIONS.items()))
    assert score_captions(backwards, REFERENCES).overall == pytest.approx(GOLDEN["scores"])


def test_a_note_says_if_a_score_means_little():
    one = score_captions({1: REFERENCES[1][0]}, REFERENCES)
    assert one.overall["CIDEr-D"] == 0 and "CIDEr-D of a single picture is 0" in str(one)
    blind = score_captions(dict.fromkeys(REFERENCES, "a dog"), REFERENCES)
    assert "every picture got the same caption" in str(blind)


def test_a_note_says_if_meteor_needs_java(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    scores = score_captions(CAPTIONS, REFERENCES, meteor=True)
    assert "METEOR" not in scores.overall
    assert "note: METEOR needs Java, which was not found" in str(scores)
    assert "METEOR" not in str(score_captions(CAPTIONS, REFERENCES))


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java: no java in PATH")
def test_meteor_tells_right_words_from_wrong_ones():
    perfect, strange, *_ = CAPTIONS
    captions = {**CAPTIONS, perfect: REFERENCES[perfect][0], strange: "xyz"}
    scores = score_captions(captions, REFERENCES, meteor=True)
    found = {i: score["METEOR"] for i, score in scores.per_image.items()}
    assert set(found) == set(CAPTIONS)
    assert found[perfect] == pytest.approx(1, abs=0.01) and found[strange] < 0.01
    assert 0.05 < scores.overall["METEOR"] < found[perfect]


def test_unknown_pictures_and_no_captions_are_refused():
    with pytest.raises(CaptioningError, match="without a reference, by their id: .99."):
        score_captions({99: "a"}, REFERENCES)
    with pytest.raises(CaptioningError, match="no caption to score"):
        score_captions({}, REFERENCES)
