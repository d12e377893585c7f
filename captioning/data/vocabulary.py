"""The vocabulary: the words that a captioner can write, and their indices."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

from captioning.data.tokenizer import detokenize, tokenize
from captioning.errors import CaptioningError

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")


class Vocabulary:
    """The words of a captioner, by index: first <pad>, <start>, <end> and <unk>."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[:4]) != SPECIAL or len(self.index) < len(self.words):
            raise CaptioningError(f"vocabulary: expected {SPECIAL}, then words, each once")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Makes a vocabulary of words that occur `min_count` times or more, most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        if not kept:
            raise CaptioningError(f"vocabulary: no word occurs {min_count} times in the captions")
        # Equal counts are sorted by the word, so that the order of the captions does not matter.
        return cls([*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str, max_words: int | None = None) -> list[int]:
        """Returns the indices of <start>, the first `max_words` words of a caption, and <end>."""
        return [START, *(self.index.get(word, UNK) for word in tokenize(caption)[:max_words]), END]

    def decode(self, indices: Iterable[int]) -> str:
        """Returns the caption up to <end>; of the special words only <unk> is written."""
        written = takewhile(lambda i: i != END, indices)
        return detokenize([self.words[i] for i in written if i not in (PAD, START)])
