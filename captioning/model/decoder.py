"""The interface of a decoder."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from captioning.settings import ModelConfig


class Decoder(Protocol):
    """An nn.Module that writes captions of images, which the encoder has embedded.

    Sizes: B captions of at most T tokens, E embed_size, H hidden_size, V vocab_size. The image is
    [B,E], or [B,cells,E] if the CNN pools to a grid. A state is of any type.

    A decoder that can show where it looked also has a method ``attention(image, tokens)``. It
    returns the weights [B,T,cells] of the image's cells before each of the tokens [B,T].

    Attributes:
        help: a line for ``--help``. This and the next three are attributes of the class.
        pools: the poolings of the CNN that the decoder can read, of `captioning.settings.POOLS`.
            The first is the default.
        batches_of: the default of the setting `batches_of`, "captions" or "pictures".
        demo: the settings for `captioning demo`.
        linear: the output layer, from H to V.
        max_seq_length: the maximum number of tokens of a caption, with <end> and without <start>.
    """

    help: str
    pools: tuple[str, ...]
    batches_of: str
    demo: dict[str, Any]
    linear: nn.Linear
    max_seq_length: int

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        """Makes a decoder with the sizes of `config`; `lstm` is as in `load_checkpoint`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters, as every module does."""

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs over whole captions at once, with teacher forcing.

        Args:
            image: has a row for each caption, or with `rows` for each picture.
            captions: int64 [B,T], <start>, the words, <end>, then <pad>.
            lengths: int64 [B] on the CPU, the number of tokens of each caption with <start> and
                <end>, in decreasing order.
            rows: int64 [B], which row of `image` each caption describes; None if caption b
                describes row b.

        Returns:
            The input [N,H] of the output layer, and the tokens [N] that it must predict. Both are
            the data of a PackedSequence, so N = sum(lengths - 1).
        """

    def start(self, image: Tensor) -> Any:
        """Returns the state before <start>."""

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feeds one word [B] of each caption; returns the logits [B,V] of the next, and a state."""

    @staticmethod
    def select(state: Any, rows: Tensor) -> Any:
        """Returns the state of the captions `rows`, int64 [R]. Rows may repeat, in any order."""
