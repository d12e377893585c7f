"""What the captioner needs of a decoder."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from captioning.settings import ModelConfig


class Decoder(Protocol):
    """An nn.Module that turns an image, as the encoder embeds it, into captions.

    One that can show where it looked has ``attention(image, tokens)`` too: the weights [B,T,cells]
    of the image's cells before each word of its captions [B,T].

    Sizes: B captions of at most T tokens, E embed_size, H hidden_size, V vocab_size. The image is
    [B,E], or [B,cells,E] if the CNN pools to a grid. A state is whatever `start` returns.

    Attributes:
        help: one line for ``--help``; of the class, as are the next three.
        pools: the poolings of the CNN that it reads (`captioning.settings.POOLS`), the default
            first.
        batches_of: how it is trained unless told otherwise, "captions" or "pictures".
        demo: its settings in `captioning demo`.
        linear: the output layer, from H to V.
        max_seq_length: maximum number of tokens in a caption, <end> included, <start> not.
    """

    help: str
    pools: tuple[str, ...]
    batches_of: str
    demo: dict[str, Any]
    linear: nn.Linear
    max_seq_length: int

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        """Build it in the sizes of `config`; `lstm` names the LSTM, if it has one (`LSTMS`)."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As of any module."""

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing: run over whole captions at once.

        Args:
            image: from the encoder: one row for each caption or, with `rows`, for each picture.
            captions: int64 [B,T], each <start>, its words, <end>, then <pad>.
            lengths: int64 [B] on the CPU, tokens of each with <start> and <end>, decreasing.
            rows: int64 [B], which picture each caption describes.

        Returns:
            What the output layer reads [N,H] and must predict [N], N = sum(lengths - 1), packed.
        """

    def start(self, image: Tensor) -> Any:
        """The state before <start>."""

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feed one word each [B]; returns the scores [B,V] of the next word, and the state."""

    @staticmethod
    def select(state: Any, rows: Tensor) -> Any:
        """The state of some of the captions, in any order; a row may occur more than once."""
