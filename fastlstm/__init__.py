"""A fused LSTM for PyTorch: `fastlstm.LSTM` is a drop-in for `torch.nn.LSTM`."""

from fastlstm import _build

_build.load()

from fastlstm import functional, init, onnx, reference  # noqa: E402
from fastlstm.convert import convert  # noqa: E402
from fastlstm.layer_norm import LayerNormLSTM  # noqa: E402
from fastlstm.modules import LSTM, LSTMCell  # noqa: E402
from fastlstm.packed import PackedLSTM, PackedLSTMCell, prepack, unpack  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "LSTM",
    "LSTMCell",
    "LayerNormLSTM",
    "PackedLSTM",
    "PackedLSTMCell",
    "convert",
    "functional",
    "init",
    "onnx",
    "prepack",
    "reference",
    "unpack",
    "__version__",
]
