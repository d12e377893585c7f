"""Divides the captions of a training set into batches."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.data.tokenizer import tokenize
from captioning.data.vocabulary import PAD, Vocabulary


@dataclass(frozen=True)
class Batch:
    """B captions to train on, longest first, and the M pictures that they describe.

    All tensors are int64. T is the number of tokens of the longest caption.
    """

    indices: Tensor  # [B], the index of each caption in the training set
    pictures: Tensor  # [M], positions of the pictures in the feature table, each once
    rows: Tensor  # [B], the position in `pictures` of the picture that each caption describes
    captions: Tensor  # [B,T], <start>, the words, <end>, then <pad>
    lengths: Tensor  # [B], the number of tokens of each caption, with <start> and <end>


class EncodedCaptions:
    """Tokens of captions, cut after `max_words` words. Each group has one picture's captions."""

    def __init__(self, groups: list[list[str]], vocabulary: Vocabulary, max_words: int) -> None:
        captions = [caption for group in groups for caption in group]
        self.cut_count = sum(len(tokenize(caption)) > max_words for caption in captions)
        # The index of each caption's picture.
        self.picture_of = torch.tensor([i for i, group in enumerate(groups) for _ in group])
        tokens = [torch.tensor(vocabulary.encode(caption, max_words)) for caption in captions]
        self.lengths = torch.tensor([len(row) for row in tokens])
        self.tokens = pad_sequence(tokens, batch_first=True, padding_value=PAD).int()

    def __len__(self) -> int:
        return len(self.picture_of)

    def make_batch(self, indices: Tensor) -> Batch:
        indices = indices[self.lengths[indices].argsort(descending=True, stable=True)]
        lengths = self.lengths[indices]
        pictures, rows = self.picture_of[indices].unique(return_inverse=True)
        captions = self.tokens[indices, : int(lengths[0])].long()
        return Batch(indices, pictures, rows, captions, lengths)

    def batches(
        self, batch_size: int, seed: int, epoch: int, by_picture: bool = False
    ) -> list[Tensor]:
        """Returns the random batches of an epoch, about `batch_size` caption indices each.

        With `by_picture` all captions of a picture are in the same batch. So there are at most as
        many batches as pictures. Sizes differ if pictures have different numbers of captions.
        """
        if not by_picture:
            return random_batches(len(self), batch_size, seed, epoch)
        counts = self.picture_of.unique_consecutive(return_counts=True)[1]
        captions_of = torch.arange(len(self)).split(counts.tolist())
        pictures_per_batch = max(1.0, batch_size * len(counts) / len(self))
        batches = random_batches(len(counts), pictures_per_batch, seed, epoch)
        return [torch.cat([captions_of[i] for i in pictures.tolist()]) for pictures in batches]


def random_batches(count: int, batch_size: float, seed: int, epoch: int) -> list[Tensor]:
    """Divides the numbers below `count` into random batches of about `batch_size`.

    The sizes of batches differ by at most 1, so that the last batch is not too small for BatchNorm.
    The same arguments give the same batches.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=generator)
    return list(order.tensor_split(max(1, round(count / batch_size))))
