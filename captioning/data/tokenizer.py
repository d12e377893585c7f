"""Words of a caption, by nltk's Treebank rules (regular expressions: nothing is downloaded).

The vocabulary (`tokenize`) and the metrics (`ptb_tokenize`, which imitates coco-caption's Java
PTBTokenizer) need slightly different words.
"""

import re
import sys
from collections.abc import Callable
from functools import cache, lru_cache

# Dropped by coco-caption before scoring; ";" because its PTBTokenizer call ends up without it.
_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_NOT_LEARNED = frozenset(_BRACKETS.values())
_STRAIGHT = str.maketrans({"‘": "`", "’": "'", "“": "``", "”": "''"})  # as Java does
_ABBREVIATIONS = set("st ave blvd dr mr mrs ms jr sr rd vs etc no ft mt".split())


@cache
def _treebank() -> Callable[[str], list[str]]:
    # Imported late because it imports scipy.stats, which takes more than a second.
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


@lru_cache(2**20)  # the same captions are read, counted, encoded and scored; COCO has 620,000
def ptb_tokenize(caption: str) -> tuple[str, ...]:
    """The words that coco-caption scores: lower case, no punctuation, brackets spelled -lrb-.

    coco-caption intends to drop round and curly brackets too, but compares -LRB- with -lrb-.
    Equal to the Java PTBTokenizer on 99.9 % of 65,014 captions of COCO.
    """
    words = []
    for word in _treebank()(caption.lower().translate(_STRAIGHT)):
        word = _BRACKETS.get(word, word)
        if re.fullmatch(r"\.{2,}", word):
            continue
        word = re.sub(r"(?<=\w)\.{2,}$", "", word)
        sentence_end = len(word) > 3 and word.endswith(".") and word.count(".") == 1
        if sentence_end and word[:-1] not in _ABBREVIATIONS:
            word = word[:-1]
        if word not in _PUNCTUATION:
            words.append(sys.intern(word))  # each word is in memory once
    return tuple(words)


def tokenize(caption: str) -> tuple[str, ...]:
    """The words that a captioner learns: those of `ptb_tokenize` that hold a letter or a digit.

    Punctuation is left out because the metrics ignore it and it would cost decoding steps.
    Brackets, which the metrics count, are left out because -lrb- is not readable.
    """
    return tuple(
        word
        for word in ptb_tokenize(caption)
        if word not in _NOT_LEARNED and any(c.isalnum() for c in word)
    )


def detokenize(words: list[str]) -> str:
    """Words to a readable caption: "a man 's hat" becomes "a man's hat"."""
    return re.sub(r" (?=n't\b|'(?:s|re|ve|ll|d|m)\b)", "", " ".join(words))
