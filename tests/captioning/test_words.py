import json
from pathlib import Path

import pytest

from captioning.data.tokenizer import detokenize, ptb_tokenize, tokenize
from captioning.data.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary
from captioning.errors import CaptioningError

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def test_ptb_tokenize_equals_the_java_tokenizer():
    for key, captions in GOLDEN["references"].items():
        assert [" ".join(ptb_tokenize(c)) for c in captions] == GOLDEN["tokens"][key]


def test_metrics_keep_brackets_and_straighten_quotes_as_coco_caption_does():
    """coco-caption drops -LRB-, but its Java tokenizer writes -lrb-."""
    assert ptb_tokenize("a man’s “new” ‘hat’") == ptb_tokenize("a man's new hat")
    text = " ".join(" ".join(ptb_tokenize(c)) for c in ("a (b) {c}", "[d]"))
    assert text == "a -lrb- b -rrb- -lcb- c -rcb- -lsb- d -rsb-"


@pytest.mark.parametrize("caption, words", [
    ("A Man's dog.", ["a", "man", "'s", "dog"]),
    ("it can't be -- 3.5 feet, no!", ["it", "ca", "n't", "be", "3.5", "feet", "no"]),
    ("(a) well-kept [garden] {green} ...", ["a", "well-kept", "garden", "green"]),
    ("A man -LRB- left -RRB-", ["a", "man", "left"]),
    ("a man’s “new” ‘hat’, it isn’t", ["a", "man", "'s", "new", "hat", "it", "is", "n't"]),
    ("a dog. mrs. fox, dr. of the u.s. ave. a", "a dog mrs. fox dr. of the u.s. ave. a".split()),
    ("on tv. a tvs. a", "on tv. a tvs a".split()),  # a word of two letters may be an abbreviation
    ("...", []),
    ("", []),
    ("日本 café", ["日本", "café"]),
])  # fmt: skip
def test_tokenize(caption, words):
    assert list(tokenize(caption)) == words


def test_detokenize_joins_what_the_tokenizer_cut():
    assert detokenize(["a", "man", "'s", "dog", "ca", "n't", "run"]) == "a man's dog can't run"


def test_vocabulary_counts_and_orders():
    vocabulary = Vocabulary.build(["A dog.", "a cat", "a dog, a bird"], min_count=2)
    assert vocabulary.words == ["<pad>", "<start>", "<end>", "<unk>", "a", "dog"]
    assert vocabulary.encode("A cat saw a dog!") == [START, 4, UNK, UNK, 4, 5, END]
    assert vocabulary.decode([START, 4, 5, END, 4, PAD]) == "a dog"
    captions = ["b a c", "c a", "d"]
    assert Vocabulary.build(captions).words == Vocabulary.build(captions[::-1]).words


@pytest.mark.parametrize("make, message", [
    (lambda: Vocabulary(["a", "b", "c", "d"]), "expected .*, then words, each once"),
    (lambda: Vocabulary([*SPECIAL, "a", "a"]), "expected .*, then words, each once"),
    (lambda: Vocabulary.build(["a b", "a"], min_count=3), "no word occurs 3 times"),
])  # fmt: skip
def test_bad_vocabularies_are_refused(make, message):
    with pytest.raises(CaptioningError, match=f"vocabulary: {message}"):
        make()
