"""The lecture's LSTM, written from its equations, for the captioner to train on:

    captioning train data --output runs/lecture --lstm examples/lecture_lstm.py:LectureLSTM
    captioning caption runs/lecture/best.pt photo.jpg --lstm examples/lecture_lstm.py:LectureLSTM

The names are the lecture's: the gates g (input), f (forget) and q (output), the new content a, the
memory state s, and the hidden unit h.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class LectureCell(nn.Module):
    """One step of one layer. x [B,E], h and s [B,H] to the next h and s."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for gate in "gfqa":
            setattr(self, f"U_{gate}", nn.Linear(input_size, hidden_size))
            setattr(self, f"W_{gate}", nn.Linear(hidden_size, hidden_size, bias=False))

    def forward(self, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.sigmoid(self.U_g(x) + self.W_g(h))  # input gate
        q = torch.sigmoid(self.U_q(x) + self.W_q(h))  # output gate
        f = torch.sigmoid(self.U_f(x) + self.W_f(h))  # forget gate
        a = self.U_a(x) + self.W_a(h)  # new content
        s = f * s + g * torch.tanh(a)  # memory update
        h = q * torch.tanh(s)  # hidden unit update
        return h, s


class LectureLSTM(nn.Module):
    """Layers of `LectureCell` over a sequence, called as nn.LSTM with batch_first=True is.

    The input is a PackedSequence, or x [B,T,E]. The states are (h, s), each [L,B,H].
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = True
    ) -> None:
        super().__init__()
        assert batch_first, "expected batch_first=True"
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList([LectureCell(size, hidden_size) for size in sizes])

    def forward(
        self, x: PackedSequence | Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence | Tensor, tuple[Tensor, Tensor]]:
        if isinstance(x, PackedSequence):
            padded, lengths = pad_packed_sequence(x, batch_first=True)
            output, states = self.unroll(padded, lengths, states)
            return pack_padded_sequence(output, lengths, batch_first=True), states
        return self.unroll(x, torch.full((len(x),), x.size(1)), states)

    def unroll(
        self, x: Tensor, lengths: Tensor, states: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Steps through x [B,T,E]; row b keeps its states after its `lengths[b]` steps."""
        if states is None:
            zeros = x.new_zeros(len(self.cells), len(x), self.hidden_size)
            states = zeros, zeros
        h, s = list(states[0]), list(states[1])  # of each layer
        outputs = []
        for t, below in enumerate(x.unbind(1)):
            goes_on = (t < lengths).unsqueeze(1).to(x.device)
            for layer, cell in enumerate(self.cells):
                new_h, new_s = cell(below, h[layer], s[layer])
                h[layer] = torch.where(goes_on, new_h, h[layer])
                s[layer] = torch.where(goes_on, new_s, s[layer])
                below = new_h
            outputs.append(below)
        return torch.stack(outputs, 1), (torch.stack(h), torch.stack(s))
