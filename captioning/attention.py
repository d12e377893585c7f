"""Show, Attend and Tell (Xu et al., 2015): a decoder that looks at a place for every word.

Before each word it weighs the cells of the CNN's feature map by what it has written so far,
and reads their mean beside the word. What it is fed and must predict is as in
`captioning.decoder`, but for step 0: the image is the cells, and the mean of them the first state.
Learned vectors of its row and column tell of each cell where it lies, which the paper leaves out:
without them "left" can only be guessed.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.dropout import Dropout
from captioning.lstm import make_lstm_cell
from captioning.vocabulary import PAD, START

POSITION_STD = 0.1  # of the initial vectors of rows and columns; those of cells have about 1


class AttentionState(NamedTuple):
    """h, c [B,H], the cells [B,cells,E], their keys [B,cells,A], the last weights [B,cells]."""

    h: Tensor
    c: Tensor
    cells: Tensor
    keys: Tensor
    weights: Tensor


class AttentionDecoder(nn.Module):
    """An LSTM cell with soft attention over E-sized image cells.

    Args:
        grid: side of the square of cells, which are numbered row by row.
        embed_size, hidden_size, vocab_size, max_seq_length, dropout, lstm: as in `DecoderRNN`.
        attention_size: A, size in which the state and the cells are compared; embed_size if None.
    """

    def __init__(
        self,
        grid: int,
        embed_size: int,
        hidden_size: int,
        vocab_size: int,
        max_seq_length: int = 20,
        dropout: float = 0.0,
        lstm: str = "fastlstm",
        attention_size: int | None = None,
    ) -> None:
        super().__init__()
        attention_size = attention_size or embed_size
        self.max_seq_length = max_seq_length
        self.embed = nn.Embedding(vocab_size, embed_size, padding_idx=PAD)
        self.row = nn.Parameter(torch.randn(grid, embed_size) * POSITION_STD)
        self.column = nn.Parameter(torch.randn(grid, embed_size) * POSITION_STD)
        self.key = nn.Linear(embed_size, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.energy = nn.Linear(attention_size, 1, bias=False)  # softmax ignores a bias
        self.gate = nn.Linear(hidden_size, embed_size)
        self.init = nn.Linear(embed_size, 2 * hidden_size)
        self.lstm = make_lstm_cell(lstm, 2 * embed_size, hidden_size)
        self.linear = nn.Linear(hidden_size, vocab_size)
        self.dropout = Dropout(dropout)

    def start(self, image: Tensor) -> AttentionState:
        """The state before <start>, of image cells [B,cells,E]."""
        h, c = self.init(image.mean(1)).tanh().chunk(2, 1)
        places = (self.row.unsqueeze(1) + self.column).flatten(0, 1)
        cells = self.dropout(image + places)
        return AttentionState(h, c, cells, self.key(cells), image.new_zeros(image.shape[:2]))

    def advance(self, words: Tensor, state: AttentionState) -> AttentionState:
        """Look, and read one word each [B]."""
        h, c, cells, keys, _ = state
        energies = self.energy((keys + self.query(h).unsqueeze(1)).tanh()).squeeze(2)
        weights = energies.softmax(1)
        seen = torch.bmm(weights.unsqueeze(1), cells).squeeze(1) * self.gate(h).sigmoid()
        h, c = self.lstm(torch.cat([self.dropout(self.embed(words)), seen], 1), (h, c))
        return AttentionState(h, c, cells, keys, weights)

    def step(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Feed one word each [B]; returns the scores [B,V] of the next word, and the state."""
        state = self.advance(words, state)
        return self.linear(self.dropout(state.h)), state

    @staticmethod
    def select(state: AttentionState, rows: Tensor) -> AttentionState:
        return AttentionState(*(tensor[rows] for tensor in state))

    def forward(self, image: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        return self.linear(self.unroll(image, captions, lengths)[0])

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing; arguments and result as in `DecoderRNN.unroll`, image [B,cells,E]."""
        packed = pack_padded_sequence(captions[:, 1:], lengths - 1, batch_first=True)
        words = captions[:, :-1] if inputs is None else inputs
        state, hidden = self.start(image), []
        for t, alive in enumerate(packed.batch_sizes.tolist()):
            if alive < len(state.h):
                state = AttentionState(*(tensor[:alive] for tensor in state))
            state = self.advance(words[:alive, t], state)
            hidden.append(state.h)
        return self.dropout(torch.cat(hidden)), packed.data

    def unroll_padded(
        self, image: Tensor, captions: Tensor, lengths: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        words = captions[:, :-1] if inputs is None else inputs
        state, hidden = self.start(image), []
        for t in range(words.size(1)):
            state = self.advance(words[:, t], state)
            hidden.append(state.h)
        return self.dropout(torch.stack(hidden, 1).flatten(0, 1)), captions[:, 1:].flatten()

    @torch.no_grad()
    def attention(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Where it looked before each word: weights [B,T,cells] for captions [B,T] it wrote."""
        state, words, weights = self.start(image), torch.full_like(tokens[:, 0], START), []
        for t in range(tokens.size(1)):
            state = self.advance(words, state)
            weights.append(state.weights)
            words = tokens[:, t]
        return torch.stack(weights, 1)
