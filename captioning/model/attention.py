"""The decoder of Show, Attend and Tell (Xu et al., 2015), which looks at a place for every word.

Before each word the decoder weights the cells of the CNN's feature map by what it has written so
far, and reads the weighted mean together with the last word. The first input is <start>, and each
target is the next word. The image is not an input, but the first state is computed from the mean of
the cells. The decoder adds two learned vectors to each cell, one for the cell's row and one for the
cell's column. The paper has no such vectors; a decoder without them cannot tell left from right.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.data.vocabulary import PAD, START
from captioning.errors import CaptioningError
from captioning.model.layers import Dropout, make_lstm
from captioning.settings import ModelConfig

# The initial standard deviation of row and column vectors. BatchNorm gives cells one of about 1.
POSITION_STD = 0.1


class AttentionState(NamedTuple):
    """The state of B captions."""

    h: Tensor  # [B,H]
    c: Tensor  # [B,H]
    picture: Tensor  # int64 [B], which picture each caption describes
    cells: Tensor  # [B,cells,E], the cells of that picture
    double_keys: Tensor  # [B,cells,E], twice the keys of the cells, as `advance` needs them
    weights: Tensor  # [B,cells], of the cells in the last step


class AttentionDecoder(nn.Module):
    """An LSTM cell with soft attention over the cells of a picture; a `captioning.Decoder`.

    The image [B,cells,E] has `config.grid` x `config.grid` cells, row by row.
    """

    help = "slower; looks at the cells of the feature map before each word, and shows where"
    pools: tuple[str, ...] = ("grid",)
    batches_of = "pictures"
    # A picture of the demo has 256 cells, so the sizes are smaller than those of the LSTM decoder.
    demo: dict[str, Any] = {"epochs": 8, "embed_size": 64, "hidden_size": 128}

    def __init__(self, config: ModelConfig, lstm: str = "fastlstm") -> None:
        super().__init__()
        if config.num_layers > 1:
            raise CaptioningError("num_layers: the attention decoder has one layer")
        embed_size, hidden_size = config.embed_size, config.hidden_size
        self.max_seq_length = config.max_seq_length
        self.embed = nn.Embedding(config.vocab_size, embed_size, PAD)
        self.row = nn.Parameter(torch.randn(config.grid, embed_size) * POSITION_STD)
        self.column = nn.Parameter(torch.randn(config.grid, embed_size) * POSITION_STD)
        self.key = nn.Linear(embed_size, embed_size)
        self.query = nn.Linear(hidden_size, embed_size, bias=False)
        self.energy = nn.Linear(embed_size, 1, bias=False)  # softmax ignores a bias
        self.gate = nn.Linear(hidden_size, embed_size)
        self.init = nn.Linear(embed_size, 2 * hidden_size)
        self.lstm = make_lstm(lstm, 2 * embed_size, hidden_size, cell=True)
        self.linear = nn.Linear(hidden_size, config.vocab_size)
        self.dropout = Dropout(config.dropout)

    def start(self, image: Tensor) -> AttentionState:
        h, c = self.init(image.mean(1)).tanh().chunk(2, 1)
        positions = (self.row.unsqueeze(1) + self.column).flatten(0, 1)
        # Under autocast the sum is float32. Without this cast, each step would cast the cells.
        cells = self.dropout(image + positions).to(image.dtype)
        double_keys = F.linear(cells, 2 * self.key.weight, 2 * self.key.bias).to(positions.dtype)
        pictures = torch.arange(len(image), device=image.device)
        return AttentionState(h, c, pictures, cells, double_keys, image.new_zeros(image.shape[:2]))

    def advance(self, vectors: Tensor, state: AttentionState) -> AttentionState:
        """Does a step: attends to the cells; the LSTM reads the vectors [B,E] of `embed_words`."""
        h, c, picture, cells, double_keys, _ = state
        double_query = 2 * self.query(h).unsqueeze(1)
        # The paper has tanh(x), which is 2 sigmoid(2 x) - 1. A CPU computes sigmoid six times as
        # fast. The - 1 adds the same number to each energy, which softmax ignores.
        with torch.autocast(h.device.type, enabled=False):
            energies = (double_keys + double_query).sigmoid_() @ self.energy.weight.squeeze(0)
            weights = (2 * energies).softmax(1)
        context = torch.bmm(weights.unsqueeze(1), cells).squeeze(1) * self.gate(h).sigmoid()
        h, c = self.lstm(torch.cat([vectors, context], 1), (h, c))
        return AttentionState(h, c, picture, cells, double_keys, weights)

    def embed_words(self, words: Tensor) -> Tensor:
        # Training reads the words of all steps in one call. So the gradient of the embedding is
        # computed once, and the dropout mask is drawn once, instead of in each step.
        return self.dropout(self.embed(words))

    def step(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        state = self.advance(self.embed_words(words), state)
        return self.linear(self.dropout(state.h)), state

    @staticmethod
    def select(state: AttentionState, rows: Tensor) -> AttentionState:
        h, c, picture, cells, double_keys, weights = state
        # Captions of one picture have equal cells and keys. Beam search mostly moves captions only
        # within their picture, so these large tensors need not be copied.
        if not torch.equal(picture[rows], picture):
            cells, double_keys = cells[rows], double_keys[rows]
        return AttentionState(h[rows], c[rows], picture[rows], cells, double_keys, weights[rows])

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(captions[:, 1:], lengths - 1, batch_first=True)
        state, hidden = self.start(image), []
        if rows is not None:  # the captions of a picture share its keys and its dropout mask
            state = self.select(state, rows)
        words = self.embed_words(captions[:, :-1]).unbind(1)
        for vectors, count in zip(words, packed.batch_sizes.tolist(), strict=False):
            if count != len(state.h):  # some captions have ended
                state = AttentionState(*(tensor[:count] for tensor in state))
            state = self.advance(vectors[:count], state)
            hidden.append(state.h)
        return self.dropout(torch.cat(hidden)), packed.data

    @torch.no_grad()
    def attention(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Returns the weights [B,T,cells] of the cells before each of the tokens [B,T]."""
        state, weights = self.start(image), []
        for words in F.pad(tokens[:, :-1], (1, 0), value=START).unbind(1):
            state = self.advance(self.embed_words(words), state)
            weights.append(state.weights)
        return torch.stack(weights, 1)
