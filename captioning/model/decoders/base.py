"""What the captioner needs of a decoder, and the registry of decoders."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from captioning.config import ModelConfig, check_choice, from_dict
from captioning.errors import CaptioningError


class DemoSettings(NamedTuple):
    """How `captioning demo` trains a decoder."""

    pool: str
    epochs: int
    model: dict[str, Any]


class Decoder(Protocol):
    """An nn.Module that turns an image, as the encoder embeds it, into captions.

    Sizes: B captions of at most T tokens, E embed_size, H hidden_size, V vocab_size. The image is
    [B,E], or [B,cells,E] if the CNN pools to a grid. A state is whatever `start` returns.

    Attributes:
        help: one line for ``--help``; of the class, as are the next four.
        pools: the poolings of the CNN that it reads (`captioning.cnn.POOLS`), the default first.
        Settings: `ModelConfig`, or a dataclass that adds to it what only this decoder has.
        batches_of: how it is trained unless told otherwise (`captioning.config.BATCHES_OF`).
        demo: its settings in `captioning demo`.
        linear: the output layer, from H to V.
        max_seq_length: maximum number of tokens in a caption, <end> included, <start> not.
    """

    help: str
    pools: tuple[str, ...]
    Settings: type[ModelConfig]
    batches_of: str
    demo: DemoSettings
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
            lengths: int64 [B] on the CPU, number of tokens of each caption with <start> and <end>,
                in decreasing order.
            rows: int64 [B], which picture each caption describes. Captions of a picture may share
                its dropout.

        Returns:
            What the output layer reads [N,H] and must predict [N], where N = sum(lengths - 1);
            step by step, and within a step in the order of the captions (packed).
        """

    def start(self, image: Tensor) -> Any:
        """The state before <start>."""

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feed one word each [B]; returns the scores [B,V] of the next word, and the state."""

    @staticmethod
    def select(state: Any, rows: Tensor) -> Any:
        """The state of some of the captions, in any order; a row may occur more than once."""


@runtime_checkable
class Attentive(Protocol):
    """A decoder that can show where it looked: it has maps in the page and in the report."""

    def attention(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Weights [B,T,cells] of the image's cells before each word of its captions [B,T]."""


DECODERS: dict[str, type[Decoder]] = {}
Class = TypeVar("Class", bound=type[Decoder])


def register(name: str) -> Callable[[Class], Class]:
    """A class decorator that adds a decoder to `DECODERS`."""

    def add(decoder: Class) -> Class:
        DECODERS[name] = decoder
        return decoder

    return add


def decoder_class(config: ModelConfig) -> type[Decoder]:
    """The class of the decoder that `config` names.

    Raises:
        CaptioningError: there is no such decoder, or it does not take the sizes.
    """
    name = config.decoder
    check_choice("decoder", name, DECODERS)
    decoder = DECODERS[name]
    if decoder.pools == ("grid",) and not config.grid:
        raise CaptioningError(
            f"grid: expected the side of the CNN's feature map with decoder {name!r}, got 0 "
            "(captioners of an older version lack it: train again)"
        )
    return decoder


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The `Settings` of the decoder that `settings` name, from their fields by name."""
    name = settings.get("decoder", ModelConfig.decoder)
    check_choice("decoder", name, tuple(DECODERS))  # a list has no hash
    return from_dict(DECODERS[name].Settings, settings, "model")
