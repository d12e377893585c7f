"""CIDEr-D (Vedantam et al., 2015) on tokens, with document frequencies counted once.

Agrees with pycocoevalcap's scorer, which recomputes them for every set of captions.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

N, SIGMA = 4, 6.0
Ngram = tuple[int, ...]


def _ngrams(tokens: Sequence[int]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, N + 1) for i in range(len(tokens) - n + 1)
    )


class _Weighed(NamedTuple):
    """A caption: its length, tf-idf of each n-gram, and the norm over those of each n."""

    length: int
    vector: dict[Ngram, float]
    norms: list[float]


class CiderD:
    """Scores captions against references, given once: for each picture, lists of tokens."""

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        self.references = references
        pictures: Counter[Ngram] = Counter()
        for captions in references:
            pictures.update({ngram for caption in captions for ngram in _ngrams(caption)})
        self.unseen = math.log(len(references))  # also the weight of an n-gram of one picture
        self.weights = {g: self.unseen - math.log(n) for g, n in pictures.items() if n > 1}

    def scores(self, picture: int, captions: Sequence[Sequence[int]]) -> list[float]:
        """CIDEr-D, 0 to 10, of each of several captions of one picture."""
        return self.agreement(captions, {picture: 1.0})

    def agreement(
        self, captions: Sequence[Sequence[int]], pictures: Mapping[int, float]
    ) -> list[float]:
        """The sum over pictures of a factor times the CIDEr-D of each caption against them."""
        weighed = [self._weigh(caption) for caption in captions]
        totals = [0.0] * len(weighed)
        for picture, factor in pictures.items():
            references = [self._weigh(reference) for reference in self.references[picture]]
            for i, caption in enumerate(weighed):
                totals[i] += factor * _score(caption, references)
        return totals

    def consensus(self, captions: Sequence[Sequence[int]]) -> list[float]:
        """CIDEr-D of each of several captions of one picture against the others; 0 without any."""
        found = [self._weigh(caption) for caption in captions]
        return [_score(one, found[:k] + found[k + 1 :]) for k, one in enumerate(found)]

    def _weigh(self, tokens: Sequence[int]) -> _Weighed:
        counts = _ngrams(tokens)
        vector = {g: count * self.weights.get(g, self.unseen) for g, count in counts.items()}
        squares = [0.0] * N
        for ngram, value in vector.items():
            squares[len(ngram) - 1] += value * value
        return _Weighed(len(tokens), vector, [math.sqrt(square) for square in squares])


def _score(caption: _Weighed, references: Sequence[_Weighed]) -> float:
    total = 0.0
    for reference in references:
        products = [0.0] * N
        for ngram in caption.vector.keys() & reference.vector.keys():
            weight = reference.vector[ngram]
            products[len(ngram) - 1] += min(caption.vector[ngram], weight) * weight
        cosines = sum(
            product / (a * b)
            for product, a, b in zip(products, caption.norms, reference.norms, strict=True)
            if product
        )
        total += cosines * math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
    return 10 * total / (N * max(1, len(references)))
