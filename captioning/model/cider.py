"""CIDEr-D (Vedantam et al., 2015) on tokens.

CIDEr-D compares the n-grams of two captions, n = 1 to 4, by the cosine of their tf-idf weights. The
results are those of pycocoevalcap's scorer. But that scorer counts the document frequencies anew
for every set of captions, and this one counts them once.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

N = 4  # the largest n
SIGMA = 6.0  # of the Gaussian penalty for a difference in length
Ngram = tuple[int, ...]


class _Captions(NamedTuple):
    """The n-grams of C captions in arrays of E entries, one caption after the other.

    An entry is an n-gram that occurs in a caption, with its count there.
    """

    ids: np.ndarray  # [E], the n-gram's index in `CiderD.index`
    counts: np.ndarray  # [E], how often the n-gram occurs in its caption
    sizes: np.ndarray  # [E], the n-gram's length n, minus 1
    ends: np.ndarray  # [C], the end of each caption's entries
    lengths: np.ndarray  # [C], the number of tokens of each caption


class CiderD:
    """Scores captions against the `references` of pictures, all as lists of tokens."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        self.index: dict[Ngram, int] = {}
        added: dict[Ngram, int] = {}
        self.encoded = self._encode([c for captions in references for c in captions], added)
        self.index = added
        # Picture i has the references first[i] to first[i + 1] - 1.
        self.first = np.cumsum([0, *map(len, references)])
        picture_of_caption = np.repeat(np.arange(len(references)), np.diff(self.first))
        picture_of_entry = np.repeat(picture_of_caption, np.diff(self.encoded.ends, prepend=0))
        # A number for each distinct pair of an n-gram and a picture whose references have it.
        pairs = np.unique(self.encoded.ids.astype(np.int64) * len(references) + picture_of_entry)
        frequency = np.bincount(pairs // len(references), minlength=len(self.index))
        # The inverse document frequency of each n-gram. The last entry is for n-grams that no
        # reference has. They count as if one picture had them, as in pycocoevalcap.
        self.idf = math.log(len(references)) - np.log(np.append(frequency, 1))

    def scores(self, picture: int, captions: Sequence[Sequence[int]]) -> list[float]:
        """Returns the CIDEr-D, 0 to 10, of each caption against the references of a picture."""
        return self.weighted_scores(captions, {picture: 1.0})

    def weighted_scores(
        self, captions: Sequence[Sequence[int]], factors: Mapping[int, float]
    ) -> list[float]:
        """Returns for each caption the sum over pictures i of factors[i] * CIDEr-D against i."""
        spans = [(self.first[i], self.first[i + 1], factor) for i, factor in factors.items()]
        rows = np.concatenate([np.arange(a, b) for a, b, _ in spans])
        shares = np.concatenate([np.full(b - a, factor / max(1, b - a)) for a, b, factor in spans])
        return self._compare(self._encode(captions, {}), _select(self.encoded, rows), shares)

    def consensus(self, captions: Sequence[Sequence[int]]) -> list[float]:
        """Returns the CIDEr-D of each caption against the others, or 0 if it is the only one."""
        encoded, other_count = self._encode(captions, {}), max(1, len(captions) - 1)
        totals = self._compare(encoded, encoded, np.full(len(captions), 1 / other_count))
        # `totals` include the comparison of each caption with itself, which is subtracted. Its
        # cosine is 1 for each n for which the norm of the caption's weights is not 0.
        self_scores = (self._norms(encoded) > 0).sum(1) * 10 / N / other_count
        return [*map(float, np.array(totals) - self_scores)]

    def _encode(self, captions: Sequence[Sequence[int]], added: dict[Ngram, int]) -> _Captions:
        """Returns the n-grams of captions; puts those that `self.index` lacks into `added`."""
        known, ids, counts, sizes, ends = self.index, [], [], [], []
        for tokens in captions:
            spans = ((i, i + n) for n in range(1, N + 1) for i in range(len(tokens) - n + 1))
            for ngram, count in Counter(tuple(tokens[i:j]) for i, j in spans).items():
                old = known.get(ngram)
                ids.append(added.setdefault(ngram, len(known) + len(added)) if old is None else old)
                counts.append(count)
                sizes.append(len(ngram) - 1)
            ends.append(len(ids))
        lengths = np.array([len(tokens) for tokens in captions], np.int64)
        small = np.array(counts, np.uint16), np.array(sizes, np.uint8)
        return _Captions(np.array(ids, np.int32), *small, np.array(ends, np.int64), lengths)

    def _weights(self, captions: _Captions) -> np.ndarray:
        """Returns the tf-idf weight [E] of each entry."""
        return np.asarray(captions.counts * self.idf[captions.ids.clip(max=len(self.index))])

    def _norms(self, captions: _Captions) -> np.ndarray:
        """Returns the norm [C,N] of each caption's weights, for each n."""
        bins = _bins(captions)
        squares = np.bincount(bins, self._weights(captions) ** 2, N * len(captions.ends))
        return np.asarray(np.sqrt(squares).reshape(-1, N))

    def _compare(
        self, captions: _Captions, references: _Captions, shares: np.ndarray
    ) -> list[float]:
        """Returns for each caption the sum over references r of shares[r] * CIDEr-D against r."""
        ids, inverse = np.unique(references.ids, return_inverse=True)
        ids = np.append(ids, np.iinfo(ids.dtype).max)  # the search below always finds an entry
        bins, reference_weights = _bins(references), self._weights(references)
        caption_weights, reference_norms = self._weights(captions), self._norms(references)
        norms, begin, totals = self._norms(captions), 0, []
        for i, end in enumerate(captions.ends.tolist()):
            caption_ids = captions.ids[begin:end]
            # values[k] is the weight of the n-gram ids[k] in this caption, 0 if it does not occur.
            values, positions = np.zeros(len(ids)), np.searchsorted(ids, caption_ids)
            hits = ids[positions] == caption_ids
            values[positions[hits]] = caption_weights[begin:end][hits]
            products = np.minimum(values[inverse], reference_weights) * reference_weights
            sums = np.bincount(bins, products, N * len(references.ends)).reshape(-1, N)
            begin, norm_products = end, reference_norms * norms[i]
            cosines = np.divide(sums, norm_products, out=np.zeros_like(sums), where=sums > 0).sum(1)
            exponents = (captions.lengths[i] - references.lengths) ** 2 / (2 * SIGMA**2)
            totals.append(float(10 / N * (cosines * np.exp(-exponents)) @ shares))
        return totals


def _bins(captions: _Captions) -> np.ndarray:
    """Returns N * caption + n - 1 for each entry [E], to sum the entries by caption and n."""
    rows = np.repeat(np.arange(len(captions.ends)), np.diff(captions.ends, prepend=0))
    return np.asarray(N * rows + captions.sizes)


def _select(captions: _Captions, rows: np.ndarray) -> _Captions:
    begins = np.concatenate([[0], captions.ends])[rows]
    counts = captions.ends[rows] - begins
    ends = np.cumsum(counts)
    entries = np.arange(counts.sum()) + np.repeat(begins - (ends - counts), counts)
    parts = (captions.ids[entries], captions.counts[entries], captions.sizes[entries])
    return _Captions(*parts, ends, captions.lengths[rows])
