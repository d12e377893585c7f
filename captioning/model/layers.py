"""What decoders are made of: the LSTM by name, to compare results with nn.LSTM's, and dropout."""

import torch
from torch import Tensor, nn

import fastlstm
from captioning.errors import CaptioningError
from captioning.settings import check_choice

LSTMS = ("fastlstm", "torch", "reference")
WEIGHTS = ("float32", "bfloat16", "int8")
HELP = "which LSTM runs; torch: nn.LSTM; reference: fastlstm in plain PyTorch"


def make_lstm(kind: str, *sizes: int, cell: bool = False, dropout: float = 0.0) -> nn.Module:
    """One of `LSTMS`, batch_first, or its cell; the sizes are in nn.LSTM's order."""
    kinds = nn if kind == "torch" else fastlstm
    options = {} if cell else {"batch_first": True, "dropout": dropout}
    lstm = (kinds.LSTMCell if cell else kinds.LSTM)(*sizes, **options)
    if kind == "reference":
        lstm.engine = "reference"
    return lstm


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose mask a CPU draws four times as fast, from uniform numbers.

    torch draws one Bernoulli number after the other in double precision, 11 ns each, which was a
    seventh of a training step. fastlstm.LSTM does so too, so that a seed gives what nn.LSTM gives.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or not input.is_cpu:
            return super().forward(input)
        mask = torch.rand(input.shape).ge_(self.p).mul_(1 / (1 - self.p))
        return input * mask.to(input.dtype)


def freeze(model: nn.Module, weights: str = "float32") -> None:
    """Packs the weights of a model's LSTMs once, in one of `WEIGHTS`, to write captions on the CPU.

    In float32 the captions stay the same, and a model without LSTMs that can be packed (of nn.LSTM,
    of the reference, on a GPU) stays as it is; for other weights there must be one.
    """
    check_choice("weights", weights, WEIGHTS)
    own = (m for m in model.modules() if isinstance(m, (fastlstm.LSTM, fastlstm.LSTMCell)))
    on_cpu = next(model.parameters()).device.type == "cpu" and fastlstm.has_kernels("cpu")
    if on_cpu and any(lstm.engine != "reference" for lstm in own):
        fastlstm.prepack(model, getattr(torch, weights))
    elif weights != "float32":
        raise CaptioningError(
            f"--lstm-weights {weights}: expected fastlstm with its kernels, --device cpu, and a "
            "decoder with an LSTM"
        )
