"""The decoder of Vinyals et al. (2015): an embedding, an LSTM, and a linear output layer.

The inputs of the LSTM, and the words that it must predict, for a caption of n words::

    step      0       1         2     ...   n + 1
    input     image   <start>   w_1   ...   w_n
    target    -       w_1       w_2   ...   <end>

The image comes first, and step 0 has no target. Every word is predicted from the words before it.
To write a caption, the decoder gets the image, then <start>, then each word that the search chose.
With ``image_at="every"`` the image is concatenated to the input of every step, so that the state
need not remember it. The parameters have the names of yunjey's tutorial, which also trains step 0
to predict <start>.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.data.vocabulary import PAD
from captioning.model.layers import Dropout, make_lstm
from captioning.settings import ModelConfig


class State(NamedTuple):
    """The state of B captions."""

    h: Tensor  # [L,B,H]
    c: Tensor  # [L,B,H]
    image: Tensor  # [B,E]


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
        sizes = embed_size * (1 + self.every_step), hidden_size, config.num_layers
        # With one layer nn.LSTM warns of dropout, and an LSTM of one's own may have none.
        options: dict[str, Any] = {"batch_first": True}
        if config.num_layers > 1 and dropout:
            options["dropout"] = dropout
        self.lstm = make_lstm(lstm, *sizes, **options)
        self.linear = nn.Linear(hidden_size, config.vocab_size)
        self.dropout = Dropout(dropout)

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        image = image if rows is None else image[rows]
        inputs = torch.cat([image.unsqueeze(1), self.embed(captions[:, :-1])], 1)
        packed = pack_padded_sequence(self._lstm_inputs(inputs, image), lengths, batch_first=True)
        hidden = self.lstm(packed)[0].data[len(captions) :]  # step 0, the image, has no target
        targets = pack_padded_sequence(captions[:, 1:], lengths - 1, batch_first=True).data
        return self.dropout(hidden), targets

    def _lstm_inputs(self, inputs: Tensor, image: Tensor) -> Tensor:
        """Appends the image [B,E] to inputs [B,T,E] if every step reads it; applies dropout."""
        if self.every_step:
            inputs = torch.cat([inputs, image.unsqueeze(1).expand(-1, inputs.size(1), -1)], 2)
        return self.dropout(inputs)

    def start(self, image: Tensor) -> State:
        h, c = self.lstm(self._lstm_inputs(image.unsqueeze(1), image))[1]
        return State(h, c, image)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        h, c, image = state
        output, (h, c) = self.lstm(self._lstm_inputs(self.embed(words).unsqueeze(1), image), (h, c))
        return self.linear(self.dropout(output.squeeze(1))), State(h, c, image)

    @staticmethod
    def select(state: State, rows: Tensor) -> State:
        return State(state.h[:, rows], state.c[:, rows], state.image[rows])
