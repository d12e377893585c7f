"""The captioner: encoder and decoder, their configuration, and the loss that trains them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.attention import AttentionDecoder
from captioning.config import check_at_least, check_share
from captioning.decoder import DecoderRNN
from captioning.encoder import EncoderCNN
from captioning.errors import CaptioningError
from captioning.loss import BLOCK, linear_cross_entropy
from captioning.vocabulary import PAD


@dataclass(frozen=True)
class ModelConfig:
    """Args:
    feature_size: size of a feature vector of the frozen CNN.
    vocab_size: number of words.
    embed_size: size of the word and picture vectors.
    hidden_size: size of the LSTM's state.
    num_layers: number of LSTM layers.
    max_seq_length: the most tokens that decoding writes, <end> included.
    dropout: see `DecoderRNN`.
    decoder: "lstm", on one vector for each picture, or "attention", on its cells (pool "grid").
    grid: side of the square of cells that attention looks at.
    """

    feature_size: int
    vocab_size: int
    embed_size: int = 256
    hidden_size: int = 512
    num_layers: int = 1
    max_seq_length: int = 20
    dropout: float = 0.0
    decoder: str = "lstm"
    grid: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, feature_size=1, vocab_size=1, embed_size=1, hidden_size=1)
        check_at_least(self, num_layers=1, max_seq_length=1)
        check_share(self, "dropout")


class Captioner(nn.Module):
    """Features of pictures in, captions out.

    Args:
        config: the sizes.
        lstm: "fastlstm", "torch" or "reference"; the parameters are the same for all.
    """

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderCNN(config.feature_size, config.embed_size)
        sizes = (config.embed_size, config.hidden_size, config.vocab_size)
        rest = (config.max_seq_length, config.dropout, lstm)
        self.decoder: DecoderRNN | AttentionDecoder
        if config.decoder == "lstm":
            self.decoder = DecoderRNN(*sizes, config.num_layers, *rest)
        elif config.decoder == "attention" and config.num_layers == 1:
            if config.grid < 1:
                raise CaptioningError(f"grid: expected the side of the cells, got {config.grid}")
            self.decoder = AttentionDecoder(config.grid, *sizes, *rest)
        else:
            raise CaptioningError(
                f"decoder: expected 'lstm', or 'attention' with one layer, got {config.decoder!r} "
                f"with {config.num_layers}"
            )

    @torch.no_grad()
    def set_word_frequencies(self, captions: Iterable[Sequence[int]]) -> None:
        """Begin as frequent as words are: the output layer's bias becomes their log frequency.

        The loss then begins near the entropy of single words rather than at log(vocab_size), and
        the first steps need not learn which words are rare.

        Args:
            captions: token indices of each caption, <start> and <end> included.
        """
        predicted = torch.tensor([token for caption in captions for token in caption[1:]])
        counts = predicted.bincount(minlength=self.config.vocab_size) + 1.0  # none is impossible
        self.decoder.linear.bias.copy_((counts / counts.sum()).log())

    def forward(
        self,
        features: Tensor,
        rows: Tensor,
        captions: Tensor,
        lengths: Tensor,
        caption_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        scheduled_sampling: float = 0.0,
        packed: bool = True,
        with_nll: bool = False,
    ) -> Any:
        """The summed cross-entropy of captions, teacher-forced, in nats.

        Args:
            features: [M,C] or [M,cells,C], each picture once. BatchNorm sees exactly these, so
                several processes that share a batch pass all of its pictures.
            rows: int64 [B], which of the M pictures each caption describes.
            captions, lengths: see `DecoderRNN.unroll`.
            caption_weights: [B], factor of each caption's loss; 1 if None.
            label_smoothing: see `linear_cross_entropy`.
            scheduled_sampling: probability of feeding a word that the model would have written in
                place of the caption's. Both passes run over whole captions (Mihaylova and
                Martins, 2019), which keeps the LSTM fused.
            packed: run on a PackedSequence; otherwise on padded captions with `lengths`.
            with_nll: see `linear_cross_entropy`.
        """
        image = self.encoder.embed(features)[rows]
        unroll = self.decoder.unroll if packed else self.decoder.unroll_padded
        inputs = None
        if scheduled_sampling:
            with torch.no_grad():
                written = self._write_along(image, captions, lengths)
                use = torch.rand(written.shape, device=written.device) < scheduled_sampling
                inputs = captions[:, :-1].clone()
                inputs[:, 1:] = torch.where(use, written, inputs[:, 1:])
        hidden, targets = unroll(image, captions, lengths, inputs)
        weights = (targets != PAD).to(hidden.dtype)
        if caption_weights is not None:
            every = caption_weights.unsqueeze(1).expand(-1, captions.size(1) - 1)
            if packed:
                every = pack_padded_sequence(every, lengths - 1, batch_first=True).data
            weights = weights * every.flatten()
        return linear_cross_entropy(
            hidden, self.decoder.linear, targets, weights, label_smoothing, with_nll=with_nll
        )

    def _write_along(self, image: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """The word that the model would write in place of each word but the last: [B,T-2]."""
        hidden, _ = self.decoder.unroll_padded(image, captions, lengths)
        words = [self.decoder.linear(block).argmax(1) for block in hidden.split(BLOCK)]
        return torch.cat(words).view(len(captions), -1)[:, :-1]
