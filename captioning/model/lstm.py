"""The decoder of Vinyals et al. (2015): Embedding -> LSTM -> Linear to the vocabulary.

What the LSTM is fed at each step and what it must predict, for a caption of n words::

    step      0       1         2     ...   n + 1
    input     image   <start>   w_1   ...   w_n
    target    -       w_1       w_2   ...   <end>

The image comes first and predicts nothing; every word is predicted from the words before it.
Decoding feeds the image, then <start>, then each word that it chose. (yunjey's tutorial, whose
parameters have the same names, also trains step 0 to predict <start>; leaving that out changes
nothing else.) With ``image_at="every"`` the image also stands beside
the input of every step, so that the state need not carry it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.data.vocabulary import PAD
from captioning.model.layers import Dropout, make_lstm
from captioning.settings import ModelConfig


class State(NamedTuple):
    """h, c [L,B,H], and what is read beside each word: the image [B,E], or nothing [B,0]."""

    h: Tensor
    c: Tensor
    beside: Tensor


class DecoderRNN(nn.Module):
    """An LSTM that reads an image vector and writes a caption; a `captioning.Decoder`."""

    help = "an LSTM that reads one vector for each picture"
    pools: tuple[str, ...] = ("avg", "2x2")
    batches_of = "captions"
    demo: dict[str, Any] = {"pool": "2x2", "epochs": 16, "embed_size": 128, "hidden_size": 256}

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        embed_size, hidden_size, dropout = config.embed_size, config.hidden_size, config.dropout
        self.max_seq_length = config.max_seq_length
        self.embed = nn.Embedding(config.vocab_size, embed_size, PAD)
        self.every_step = config.image_at == "every"
        input_size = embed_size * (2 if self.every_step else 1)
        between = dropout if config.num_layers > 1 else 0.0  # nn.LSTM warns otherwise
        self.lstm = make_lstm(lstm, input_size, hidden_size, config.num_layers, dropout=between)
        self.linear = nn.Linear(hidden_size, config.vocab_size)
        self.dropout = Dropout(dropout)

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        image = image if rows is None else image[rows]
        inputs = torch.cat([image.unsqueeze(1), self.embed(captions[:, :-1])], 1)
        inputs = self._read(inputs, self._beside(image))
        packed = pack_padded_sequence(inputs, lengths, batch_first=True)
        hidden = self.lstm(packed)[0].data[len(captions) :]  # step 0, the image, has no target
        targets = pack_padded_sequence(captions[:, 1:], lengths - 1, batch_first=True).data
        return self.dropout(hidden), targets

    def _beside(self, image: Tensor) -> Tensor:
        """What is read beside each word of [B,E]: the image, or nothing."""
        return image if self.every_step else image[:, :0]

    def _read(self, inputs: Tensor, beside: Tensor) -> Tensor:
        """What the LSTM reads, of inputs [B,T,E]."""
        beside = beside.unsqueeze(1).expand(-1, inputs.size(1), -1)
        return self.dropout(torch.cat([inputs, beside], 2))

    def start(self, image: Tensor) -> State:
        """Feed the image [B,E]; returns the state."""
        beside = self._beside(image)
        h, c = self.lstm(self._read(image.unsqueeze(1), beside))[1]
        return State(h, c, beside)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        h, c, beside = state
        output, (h, c) = self.lstm(self._read(self.embed(words).unsqueeze(1), beside), (h, c))
        return self.linear(self.dropout(output.squeeze(1))), State(h, c, beside)

    @staticmethod
    def select(state: State, rows: Tensor) -> State:
        return State(state.h[:, rows], state.c[:, rows], state.beside[rows])
