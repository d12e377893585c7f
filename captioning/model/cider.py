"""CIDEr-D (Vedantam et al., 2015) on tokens, with document frequencies counted once.

Agrees with pycocoevalcap's scorer, which recomputes them for every set of captions.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

N, SIGMA = 4, 6.0
Ngram = tuple[int, ...]


class _Captions(NamedTuple):
    """The n-grams of captions, one caption after the other."""

    ids: np.ndarray  # of each n-gram
    counts: np.ndarray  # how often it occurs in its caption
    sizes: np.ndarray  # its n - 1
    ends: np.ndarray  # where the n-grams of each caption end
    lengths: np.ndarray  # tokens of each caption


class CiderD:
    """Scores captions against references, given once: for each picture, lists of tokens."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        self.index: dict[Ngram, int] = {}
        self.table = self._encode([c for captions in references for c in captions], self.index)
        # The captions of picture i are those from first[i] to first[i + 1].
        self.first = np.cumsum([0, *map(len, references)])
        pictures = np.repeat(np.arange(len(references)), np.diff(self.first))
        entries = np.repeat(pictures, np.diff(self.table.ends, prepend=0))
        pairs = np.unique(self.table.ids.astype(np.int64) * len(references) + entries)
        frequency = np.bincount(pairs // len(references), minlength=len(self.index))
        self.unseen = math.log(len(references))  # also the weight of an n-gram of one picture
        self.idf = self.unseen - np.log(frequency)

    def scores(self, picture: int, captions: Sequence[Sequence[int]]) -> list[float]:
        """CIDEr-D, 0 to 10, of each of several captions of one picture."""
        return self.agreement(captions, {picture: 1.0})

    def agreement(
        self, captions: Sequence[Sequence[int]], pictures: Mapping[int, float]
    ) -> list[float]:
        """The sum over pictures of a factor times the CIDEr-D of each caption against them."""
        spans = [(self.first[i], self.first[i + 1], factor) for i, factor in pictures.items()]
        rows = np.concatenate([np.arange(a, b) for a, b, _ in spans])
        shares = np.concatenate([np.full(b - a, factor / max(1, b - a)) for a, b, factor in spans])
        return self._compare(self._encode(captions), _select(self.table, rows), shares)

    def consensus(self, captions: Sequence[Sequence[int]]) -> list[float]:
        """CIDEr-D of each of several captions of one picture against the others; 0 without any."""
        found, others = self._encode(captions), max(1, len(captions) - 1)
        totals = self._compare(found, found, np.full(len(captions), 1 / others))
        own = (self._norms(found) > 0).sum(1) * 10 / N / others  # each agrees with itself
        return [total - itself for total, itself in zip(totals, own.tolist(), strict=True)]

    def _encode(
        self, captions: Sequence[Sequence[int]], index: dict[Ngram, int] | None = None
    ) -> _Captions:
        """The n-grams of captions, new ones added to `index`, or counted from its end."""
        new = {} if index is None else index
        known = self.index if index is None else {}
        ids, counts, sizes, ends = [], [], [], []
        for tokens in captions:
            ngrams = Counter(
                tuple(tokens[i : i + n])
                for n in range(1, N + 1)
                for i in range(len(tokens) - n + 1)
            )
            for ngram, count in ngrams.items():
                found = known.get(ngram)
                ids.append(new.setdefault(ngram, len(known) + len(new)) if found is None else found)
                counts.append(count)
                sizes.append(len(ngram) - 1)
            ends.append(len(ids))
        lengths = np.array([len(tokens) for tokens in captions], np.int64)
        small = np.array(counts, np.uint16), np.array(sizes, np.uint8)
        return _Captions(np.array(ids, np.int32), *small, np.array(ends, np.int64), lengths)

    def _weights(self, captions: _Captions) -> np.ndarray:
        """The tf-idf of each n-gram."""
        known = captions.ids < len(self.idf)
        idf = np.where(known, self.idf[np.where(known, captions.ids, 0)], self.unseen)
        return np.asarray(captions.counts * idf)

    def _norms(self, captions: _Captions) -> np.ndarray:
        """The norm of the n-grams of each n, for each caption [captions,N]."""
        squares = np.bincount(_cells(captions), self._weights(captions) ** 2, _count(captions))
        return np.asarray(np.sqrt(squares).reshape(-1, N))

    def _compare(
        self, captions: _Captions, references: _Captions, shares: np.ndarray
    ) -> list[float]:
        """The sum over references of a share times the CIDEr-D of each caption."""
        ids, places = np.unique(references.ids, return_inverse=True)
        cells, weights = _cells(references), self._weights(references)
        own, scale = self._weights(captions), self._norms(references)
        norms, begin, totals = self._norms(captions), 0, []
        for i, end in enumerate(captions.ends.tolist()):
            mine = dict(zip(captions.ids[begin:end].tolist(), own[begin:end].tolist(), strict=True))
            begin, values = end, np.zeros(len(ids))
            where = np.searchsorted(ids, list(mine)).clip(max=max(0, len(ids) - 1))
            hits = ids[where] == list(mine) if len(ids) else np.zeros(len(mine), bool)
            values[where[hits]] = np.array(list(mine.values()))[hits]
            products = np.minimum(values[places], weights) * weights
            sums = np.bincount(cells, products, _count(references)).reshape(-1, N)
            both = scale * norms[i]
            cosines = np.divide(sums, both, out=np.zeros_like(sums), where=sums > 0).sum(1)
            apart = (captions.lengths[i] - references.lengths) ** 2 / (2 * SIGMA**2)
            totals.append(float(10 / N * (cosines * np.exp(-apart)) @ shares))
        return totals


def _count(captions: _Captions) -> int:
    return N * len(captions.ends)


def _cells(captions: _Captions) -> np.ndarray:
    """Of each n-gram, N times its caption plus its n - 1."""
    rows = np.repeat(np.arange(len(captions.ends)), np.diff(captions.ends, prepend=0))
    return np.asarray(N * rows + captions.sizes)


def _select(captions: _Captions, rows: np.ndarray) -> _Captions:
    """Some of the captions."""
    begins = np.concatenate([[0], captions.ends])[rows]
    counts = captions.ends[rows] - begins
    ends = np.cumsum(counts)
    entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - counts), counts)
    parts = (captions.ids[entries], captions.counts[entries], captions.sizes[entries])
    return _Captions(*parts, ends, captions.lengths[rows])
