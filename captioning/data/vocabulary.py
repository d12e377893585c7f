"""Words to indices and back, saved as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

from captioning.console import short
from captioning.data.tokenizer import detokenize, tokenize
from captioning.errors import CaptioningError

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")


class Vocabulary:
    """The words of a captioner: <pad> <start> <end> <unk>, then the most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        if strange := [word for word in self.words if not isinstance(word, str)]:
            raise CaptioningError(f"vocabulary: expected words, got {short(strange[0])}")
        self.index = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[:4]) != SPECIAL:
            raise CaptioningError(
                f"vocabulary: expected it to begin with {SPECIAL}, got {self.words[:4]}"
            )
        if len(self.index) != len(self.words):
            twice = [word for word, n in Counter(self.words).items() if n > 1]
            raise CaptioningError(f"vocabulary: words occur more than once: {twice[:5]}")

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
