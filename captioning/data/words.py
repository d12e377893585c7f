"""Words of a caption, by nltk's Treebank rules, their indices, and batches of captions.

The rules are regular expressions: nothing is downloaded. The vocabulary (`tokenize`) and the
metrics (`ptb_tokenize`, which imitates coco-caption's Java PTBTokenizer) need slightly different
words.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.errors import CaptioningError

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

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


class Vocabulary:
    """The words of a captioner: <pad> <start> <end> <unk>, then the most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[:4]) != SPECIAL or len(self.index) < len(self.words):
            raise CaptioningError(f"vocabulary: expected {SPECIAL}, then words, each once")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Every word that occurs at least `min_count` times in `captions`."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        if not kept:
            raise CaptioningError(f"vocabulary: no word occurs {min_count} times in the captions")
        # Sorted, so that the order of the captions does not matter.
        return cls([*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str, max_words: int | None = None) -> list[int]:
        """Indices of <start>, the words of the caption (at most `max_words`), <end>."""
        words = tokenize(caption)[:max_words]
        return [START, *(self.index.get(word, UNK) for word in words), END]

    def decode(self, indices: Iterable[int]) -> str:
        """The caption up to <end>, without special words except <unk>."""
        written = takewhile(lambda i: i != END, indices)
        return detokenize([self.words[i] for i in written if i not in (PAD, START)])


@dataclass(frozen=True)
class Batch:
    """Captions to train on, longest first; all tensors are int64."""

    indices: Tensor  # [B], which captions of the set they are
    images: Tensor  # [M], rows of the feature table, each picture once
    rows: Tensor  # [B], which of `images` each caption describes
    captions: Tensor  # [B,T], <start>, the words, <end>, <pad>
    lengths: Tensor  # [B], tokens of each caption with <start> and <end>, decreasing


class EncodedCaptions:
    """The captions of pictures as one table of tokens; `cut` had more than `max_words` words."""

    def __init__(
        self, images: list[list[str]], vocabulary: Vocabulary, max_words: int = 50
    ) -> None:
        captions = [(row, caption) for row, group in enumerate(images) for caption in group]
        if not captions:
            raise CaptioningError("there is no caption to train on")
        self.cut = sum(len(tokenize(caption)) > max_words for _, caption in captions)
        self.image = torch.tensor([row for row, _ in captions])
        tokens = [torch.tensor(vocabulary.encode(caption, max_words)) for _, caption in captions]
        self.lengths = torch.tensor([len(row) for row in tokens])
        self.tokens = pad_sequence(tokens, batch_first=True, padding_value=PAD).int()

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Tensor) -> Batch:
        """The captions with these indices, the longest first."""
        indices = indices[self.lengths[indices].argsort(descending=True, stable=True)]
        lengths = self.lengths[indices]
        images, rows = self.image[indices].unique(return_inverse=True)
        captions = self.tokens[indices, : int(lengths[0])].long()
        return Batch(indices, images, rows, captions, lengths)

    def epoch(
        self, batch_size: int, seed: int, epoch: int, by_picture: bool = False
    ) -> list[Tensor]:
        """The caption indices of each batch, see `shuffled`.

        With `by_picture` all captions of a picture are in one batch, and batches differ in size.
        There are as many of them as without, but no more than pictures.
        """
        if not by_picture:
            return shuffled(len(self), batch_size, seed, epoch)
        counts = self.image.unique_consecutive(return_counts=True)[1]
        of_picture = torch.arange(len(self)).split(counts.tolist())
        per_batch = max(1.0, batch_size * len(counts) / len(self))
        pictures = shuffled(len(counts), per_batch, seed, epoch)
        return [torch.cat([of_picture[i] for i in part.tolist()]) for part in pictures]


def shuffled(count: int, batch_size: float, seed: int, epoch: int) -> list[Tensor]:
    """The indices below `count` in random batches, the same for the same arguments.

    The batches are of about equal size, so that none is too small for BatchNorm.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=generator)
    return list(order.tensor_split(max(1, round(count / batch_size))))
