"""The decoder: Embedding -> LSTM -> Linear to the vocabulary.

What the LSTM is fed at each step and what it must predict, for a caption of n words::

    step      0       1         2     ...   n + 1
    input     image   <start>   w_1   ...   w_n
    target    -       w_1       w_2   ...   <end>

The image comes first and predicts nothing; every word is predicted from the words before it.
Decoding feeds the image, then <start>, then each word that it chose. (yunjey's tutorial, whose
parameters have the same names, also trains step 0 to predict <start>; leaving that out changes
nothing else, so its checkpoints work here.)
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.dropout import Dropout
from captioning.lstm import make_lstm
from captioning.vocabulary import PAD

State = tuple[Tensor, Tensor]


class DecoderRNN(nn.Module):
    """An LSTM that reads an image vector and writes a caption.

    Sizes: B captions of at most T tokens with <start> and <end>, E embed_size, H hidden_size,
    L num_layers, V vocab_size.

    Args:
        embed_size: E.
        hidden_size: H.
        vocab_size: V.
        num_layers: L.
        max_seq_length: the most tokens that decoding writes, <end> included, <start> not.
        dropout: probability of dropping an element of the embeddings, between LSTM layers and
            of what the output layer reads.
        lstm: "fastlstm", "torch" or "reference".
    """

    def __init__(
        self,
        embed_size: int,
        hidden_size: int,
        vocab_size: int,
        num_layers: int = 1,
        max_seq_length: int = 20,
        dropout: float = 0.0,
        lstm: str = "fastlstm",
    ) -> None:
        super().__init__()
        self.max_seq_length = max_seq_length
        self.embed = nn.Embedding(vocab_size, embed_size, padding_idx=PAD)
        self.lstm = make_lstm(lstm, embed_size, hidden_size, num_layers, dropout)
        self.linear = nn.Linear(hidden_size, vocab_size)
        self.dropout = Dropout(dropout)

    def forward(self, image: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """The scores [N,V] of every word for the N targets of `unroll`."""
        return self.linear(self.unroll(image, captions, lengths)[0])

    def unroll(
        self, image: Tensor, captions: Tensor, lengths: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing: run over whole captions at once.

        Args:
            image: [B,E], from the encoder.
            captions: int64 [B,T], each <start>, its words, <end>, then <pad>.
            lengths: int64 [B] on the CPU, number of tokens of each caption with <start> and <end>,
                in decreasing order.
            inputs: int64 [B,T-1], fed instead of the captions without their last column.

        Returns:
            What the output layer reads [N,H] and must predict [N], where N = sum(lengths - 1);
            step by step, and within a step in the order of the captions (packed).
        """
        packed = pack_padded_sequence(
            self._inputs(image, captions, inputs), lengths, batch_first=True
        )
        hidden = self.lstm(packed)[0].data[len(captions) :]  # step 0, the image, has no target
        targets = pack_padded_sequence(captions[:, 1:], lengths - 1, batch_first=True).data
        return self.dropout(hidden), targets

    def unroll_padded(
        self, image: Tensor, captions: Tensor, lengths: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`unroll` without packing: shapes that do not depend on the lengths, as compiling wants.

        `lengths` may be in any order and on any device. Behind the end of a caption the target
        is <pad>, which the loss leaves out. N = B * (T - 1), caption by caption.
        """
        embedded = self._inputs(image, captions, inputs)
        if isinstance(self.lstm, nn.LSTM):
            hidden = self.lstm(embedded)[0]  # what comes behind the end does not matter
        else:
            hidden = self.lstm(embedded, lengths=lengths)[0]
        return self.dropout(hidden[:, 1:].flatten(0, 1)), captions[:, 1:].flatten()

    def _inputs(self, image: Tensor, captions: Tensor, inputs: Tensor | None) -> Tensor:
        words = self.embed(captions[:, :-1] if inputs is None else inputs)
        return self.dropout(torch.cat([image.unsqueeze(1), words], 1))

    # One step at a time, for captioning.search ---------------------------------------------------

    def start(self, image: Tensor) -> State:
        """Feed the image [B,E]; returns the state (h, c), each [L,B,H]."""
        return self.lstm(self.dropout(image).unsqueeze(1))[1]

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Feed one word each [B]; returns the scores [B,V] of the next word, and the state."""
        output, state = self.lstm(self.dropout(self.embed(words)).unsqueeze(1), state)
        return self.linear(self.dropout(output.squeeze(1))), state

    @staticmethod
    def select(state: State, rows: Tensor) -> State:
        """The state of some of the captions, in any order, also repeatedly."""
        h, c = state
        return h[:, rows], c[:, rows]
