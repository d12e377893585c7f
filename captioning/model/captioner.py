"""The captioner: encoder and decoder, and the loss that trains them."""

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

#: By the name that --decoder takes; a decoder of your own can be added.
DECODERS: dict[str, type[Decoder]] = {"lstm": DecoderRNN, "attention": AttentionDecoder}


def decoder_class(config: ModelConfig) -> type[Decoder]:
    """The class of the decoder that `config` names; refuses one that does not take the sizes."""
    check_choice("decoder", config.decoder, tuple(DECODERS))
    decoder = DECODERS[config.decoder]
    if decoder.pools == ("grid",) and not config.grid:
        raise CaptioningError(f"grid: expected its side with decoder {config.decoder!r}, got 0")
    return decoder


class Encoder(nn.Module):
    """Features of the frozen CNN to vectors of `embed_size`, by a Linear and a BatchNorm1d."""

    def __init__(self, feature_size: int, embed_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_size, embed_size)
        self.bn = nn.BatchNorm1d(embed_size, momentum=0.01)

    def embed(self, features: Tensor) -> Tensor:
        """Features [B,C] or [B,cells,C] to [B,E] or [B,cells,E]."""
        if not torch.is_autocast_enabled(features.device.type):  # which casts float16 by itself
            features = features.to(self.linear.weight.dtype)
        return self.bn(self.linear(features).flatten(0, -2)).unflatten(0, features.shape[:-1])


class Captioner(nn.Module):
    """Features of pictures in, captions out, by an LSTM of `layers.LSTMS`."""

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.feature_size, config.embed_size)
        self.decoder: Decoder = decoder_class(config)(config, lstm)

    @torch.no_grad()
    def set_word_frequencies(self, captions: Iterable[Sequence[int]]) -> None:
        """Set the output layer's bias to the log frequency of each word.

        The loss then begins near the entropy of single words instead of log(vocab_size), and the
        first steps need not learn which words are rare. Captions have their <start> and <end>.
        """
        predicted = torch.tensor([token for caption in captions for token in caption[1:]])
        counts = predicted.bincount(minlength=self.config.vocab_size) + 1.0  # no word is impossible
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
        """The summed cross-entropy of captions, teacher-forced, in nats.

        Args:
            features: [M,C] or [M,cells,C], each picture once. BatchNorm sees exactly these, so
                several processes that share a batch pass all of its pictures.
            rows: int64 [B], which of the M pictures each caption describes.
            captions, lengths: see `Decoder.unroll`.
            caption_weights: [B], factor of each caption's loss; 1 if None.
            label_smoothing: share of the target spread over the vocabulary.

        Returns:
            The loss, and the same without weights, label smoothing and a gradient.
        """
        image = self.encoder.embed(features)
        hidden, targets = self.decoder.unroll(image, captions, lengths, rows)
        weights = torch.ones_like(targets, dtype=hidden.dtype)
        if caption_weights is not None:
            tokens = caption_weights.unsqueeze(1).expand(-1, captions.size(1) - 1)
            weights = pack_padded_sequence(tokens, lengths - 1, batch_first=True).data
        linear = self.decoder.linear
        return linear_cross_entropy(hidden, linear, targets, weights, label_smoothing)
