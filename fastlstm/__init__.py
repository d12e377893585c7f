"""A fused LSTM for PyTorch: `fastlstm.LSTM` is a drop-in for `torch.nn.LSTM`."""

from fastlstm import _build, _flops, _measured

_build.load()
_measured.load()
if _build.extension_available():
    _flops.register()

from fastlstm import functional, init, onnx, reference  # noqa: E402
from fastlstm._build import has_kernels  # noqa: E402
from fastlstm.check import check  # noqa: E402
from fastlstm.compare import Comparison, compare  # noqa: E402
from fastlstm.convert import convert  # noqa: E402
from fastlstm.layer_norm import LayerNormLSTM  # noqa: E402
from fastlstm.modules import LSTM, LSTMCell  # noqa: E402
from fastlstm.packed import PackedLSTM, PackedLSTMCell  # noqa: E402
from fastlstm.prepacked import prepack, unpack  # noqa: E402
from fastlstm.tune import tune  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "LSTM",
    "LSTMCell",
    "LayerNormLSTM",
    "PackedLSTM",
    "PackedLSTMCell",
    "check",
    "compare",
    "convert",
    "functional",
    "has_kernels",
    "init",
    "onnx",
    "prepack",
    "reference",
    "tune",
    "unpack",
    "__version__",
]
