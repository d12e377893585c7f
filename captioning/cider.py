"""CIDEr-D (Vedantam et al., 2015) as a reward: on tokens, with document frequencies counted once.

Agrees with pycocoevalcap's scorer, which recomputes them for every set of captions.
"""

import math
from collections import Counter
from collections.abc import Sequence

N, SIGMA = 4, 6.0
Ngram = tuple[int, ...]


def _ngrams(tokens: Sequence[int]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, N + 1) for i in range(len(tokens) - n + 1)
    )


class CiderD:
    """Scores captions against references that are given once.

    Args:
        references: for each picture its references, each a list of tokens.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[int]]]) -> None:
        self.references = references
        pictures: Counter[Ngram] = Counter()
        for captions in references:
            pictures.update({ngram for caption in captions for ngram in _ngrams(caption)})
        self.unseen = math.log(len(references))  # also the weight of an n-gram of one picture
        self.weights = {g: self.unseen - math.log(n) for g, n in pictures.items() if n > 1}

    def _vector(self, tokens: Sequence[int]) -> tuple[dict[Ngram, float], list[float]]:
        """tf-idf of each n-gram, and the norm over those of each n."""
        counts = _ngrams(tokens)
        vector = {g: count * self.weights.get(g, self.unseen) for g, count in counts.items()}
        squares = [0.0] * N
        for ngram, value in vector.items():
            squares[len(ngram) - 1] += value * value
        return vector, [math.sqrt(square) for square in squares]

    def scores(self, picture: int, captions: Sequence[Sequence[int]]) -> list[float]:
        """CIDEr-D, 0 to 10, of each of several captions of one picture."""
        references = [(len(r), *self._vector(r)) for r in self.references[picture]]
        totals = []
        for caption in captions:
            vector, norms = self._vector(caption)
            total = 0.0
            for length, reference, reference_norms in references:
                products = [0.0] * N
                for ngram in vector.keys() & reference.keys():
                    weight = reference[ngram]
                    products[len(ngram) - 1] += min(vector[ngram], weight) * weight
                cosines = sum(
                    product / (a * b)
                    for product, a, b in zip(products, norms, reference_norms, strict=True)
                    if product
                )
                total += cosines * math.exp(-((len(caption) - length) ** 2) / (2 * SIGMA**2))
            totals.append(10 * total / (N * len(references)))
        return totals
