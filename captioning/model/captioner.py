"""The captioner: an encoder and a decoder, with the loss that trains them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.errors import CaptioningError
from captioning.model.attention import AttentionDecoder
from captioning.model.decoder import Decoder
from captioning.model.loss import linear_cross_entropy
from captioning.model.lstm import DecoderRNN
from captioning.settings import ModelConfig, check_choice

#: The decoders by the name that --decoder takes. You can add a decoder of your own.
DECODERS: dict[str, type[Decoder]] = {"lstm": DecoderRNN, "attention": AttentionDecoder}


def decoder_class(config: ModelConfig) -> type[Decoder]:
    """Returns the decoder that `config` names. A decoder that reads only grids needs a grid."""
    check_choice("decoder", config.decoder, tuple(DECODERS))
    decoder = DECODERS[config.decoder]
    if decoder.pools == ("grid",) and not config.grid:
        raise CaptioningError(f"grid: expected 1 or more for decoder {config.decoder!r}, got 0")
    return decoder


class Encoder(nn.Module):
    """Turns features of the frozen CNN into vectors of `embed_size`: Linear, then BatchNorm1d."""

    def __init__(self, feature_size: int, embed_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_size, embed_size)
        self.bn = nn.BatchNorm1d(embed_size, momentum=0.01)

    def embed(self, features: Tensor) -> Tensor:
        """Turns features [B,C] into [B,E], or [B,cells,C] into [B,cells,E]."""
        if not torch.is_autocast_enabled(features.device.type):  # autocast casts by itself
            features = features.to(self.linear.weight.dtype)
        return self.bn(self.linear(features).flatten(0, -2)).unflatten(0, features.shape[:-1])


class Captioner(nn.Module):
    """An encoder and a decoder, which write captions from the features of pictures."""

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        self.config, self.lstm = config, lstm
        self.encoder = Encoder(config.feature_size, config.embed_size)
        self.decoder: Decoder = decoder_class(config)(config, lstm)

    @torch.no_grad()
    def set_word_frequencies(self, captions: Iterable[Sequence[int]]) -> None:
        """Sets the bias of the output layer to the log frequency of each word.

        So the first steps need not learn which words are rare: the loss begins near the entropy of
        single words instead of log(vocab_size). `captions` are tokens with <start> and <end>.
        """
        predicted = torch.tensor([token for caption in captions for token in caption[1:]])
        counts = predicted.bincount(minlength=self.config.vocab_size) + 1.0  # the log of 0 is -inf
        self.decoder.linear.bias.copy_((counts / counts.sum()).log())

    def forward(
        self,
        features: Tensor,
        rows: Tensor,
        captions: Tensor,
        lengths: Tensor,
        caption_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Computes the summed cross-entropy of captions with teacher forcing, in nats.

        Args:
            features: [M,C] or [M,cells,C], each picture once. BatchNorm takes its statistics from
                these, so processes that share a batch must all pass all pictures of the batch.
            rows: int64 [B], which of the M pictures each caption describes.
            captions, lengths: see `Decoder.unroll`.
            caption_weights: [B], a factor for the loss of each caption; None for 1.
            label_smoothing: share of the target that is spread over the vocabulary.

        Returns the loss, and without gradient the cross-entropy without weights and smoothing.
        """
        hidden, targets = self.decoder.unroll(self.encoder.embed(features), captions, lengths, rows)
        weights = torch.ones_like(targets, dtype=hidden.dtype)
        if caption_weights is not None:
            token_weights = caption_weights.unsqueeze(1).expand_as(captions)
            weights = pack_padded_sequence(token_weights, lengths - 1, batch_first=True).data
        return linear_cross_entropy(hidden, self.decoder.linear, targets, weights, label_smoothing)
