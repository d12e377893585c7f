"""The captioner: encoder and decoder, and the loss that trains them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.config import ModelConfig
from captioning.decoders import Decoder, decoder_class
from captioning.encoder import EncoderCNN
from captioning.loss import BLOCK, linear_cross_entropy
from captioning.neighbors import Neighbors
from captioning.vocabulary import PAD


@dataclass(frozen=True)
class LossOptions:
    """How the loss is computed.

    Args:
        label_smoothing: share of the target spread over the vocabulary.
        scheduled_sampling: probability of feeding a word that the model would have written in
            place of the caption's. Both passes run over whole captions (Mihaylova and Martins,
            2019), so the LSTM is called once for all words.
        packed: run on a PackedSequence; otherwise on padded captions with `lengths`.
    """

    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    packed: bool = True


class Captioner(nn.Module):
    """Features of pictures in, captions out.

    Args:
        config: the sizes.
        lstm: "fastlstm", "torch" or "reference"; the parameters are the same for all.

    Attributes:
        neighbors: training pictures whose captions help to rank those that beam search finds.
    """

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderCNN(config.feature_size, config.embed_size)
        self.decoder: Decoder = decoder_class(config)(config, lstm)
        self.neighbors: Neighbors | None = None

    @torch.no_grad()
    def set_word_frequencies(self, captions: Iterable[Sequence[int]]) -> None:
        """Set the output layer's bias to the log frequency of each word.

        The loss then begins near the entropy of single words instead of log(vocab_size), and the
        first steps need not learn which words are rare.

        Args:
            captions: token indices of each caption, <start> and <end> included.
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
        options: LossOptions = LossOptions(),
    ) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy of captions, teacher-forced, in nats.

        Args:
            features: [M,C] or [M,cells,C], each picture once. BatchNorm sees exactly these, so
                several processes that share a batch pass all of its pictures.
            rows: int64 [B], which of the M pictures each caption describes.
            captions, lengths: see `Decoder.unroll`.
            caption_weights: [B], factor of each caption's loss; 1 if None.
            options: how the loss is computed.

        Returns:
            The loss, and the same without weights, label smoothing and a gradient.
        """
        image = self.encoder.embed(features)
        unroll = self.decoder.unroll if options.packed else self.decoder.unroll_padded
        inputs = None
        if options.scheduled_sampling:
            inputs = self._mixed_inputs(image, rows, captions, lengths, options.scheduled_sampling)
        hidden, targets = unroll(image, captions, lengths, inputs, rows)
        words = weights = (targets != PAD).to(hidden.dtype)
        if caption_weights is not None:
            tokens = caption_weights.unsqueeze(1).expand(-1, captions.size(1) - 1)
            if options.packed:
                tokens = pack_padded_sequence(tokens, lengths - 1, batch_first=True).data
            weights = weights * tokens.flatten()
        return linear_cross_entropy(
            hidden,
            self.decoder.linear,
            targets,
            weights,
            options.label_smoothing,
            nll_weights=words,
        )

    @torch.no_grad()
    def _mixed_inputs(
        self, image: Tensor, rows: Tensor, captions: Tensor, lengths: Tensor, probability: float
    ) -> Tensor:
        """The captions without their last column, some words replaced by the model's own."""
        written = self._own_words(image, rows, captions, lengths)
        use = torch.rand(written.shape, device=written.device) < probability
        inputs = captions[:, :-1].clone()
        inputs[:, 1:] = torch.where(use, written, inputs[:, 1:])
        return inputs

    def _own_words(self, image: Tensor, rows: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """The word that the model would write in place of each word but the last: [B,T-2]."""
        hidden, _ = self.decoder.unroll_padded(image, captions, lengths, rows=rows)
        words = [self.decoder.linear(block).argmax(1) for block in hidden.split(BLOCK)]
        return torch.cat(words).view(len(captions), -1)[:, :-1]
