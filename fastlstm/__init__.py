"""A fused LSTM for PyTorch: `fastlstm.LSTM` is a drop-in for `torch.nn.LSTM`."""

import torch

from fastlstm import _build
from fastlstm.engine import records
from fastlstm.interop import flops

_build.load()
records.build = _build.build_record()
records.load()
if _build.extension_available():
    flops.register()

# glibc maps blocks of MBs anew for each call, with page faults, until one of this size was freed.
torch.empty(31 << 20, dtype=torch.uint8, device="cpu")

from fastlstm import _engine_table, functional, init, onnx  # noqa: E402, F401
from fastlstm._build import has_kernels  # noqa: E402
from fastlstm.check.check import check  # noqa: E402
from fastlstm.compare import compare  # noqa: E402
from fastlstm.comparison import Comparison  # noqa: E402
from fastlstm.convert import convert  # noqa: E402
from fastlstm.engine import reference  # noqa: E402
from fastlstm.modules.cell import LSTMCell  # noqa: E402
from fastlstm.modules.layer_norm import LayerNormLSTM  # noqa: E402
from fastlstm.modules.lstm import LSTM  # noqa: E402
from fastlstm.prepack.layers import PrepackedLSTM, PrepackedLSTMCell  # noqa: E402
from fastlstm.prepack.prepack import prepack, unpack  # noqa: E402

__version__ = _build.VERSION
__all__ = ["Comparison", "LSTM", "LSTMCell", "LayerNormLSTM", "PrepackedLSTM", "PrepackedLSTMCell"]
__all__ += ["check", "compare", "convert", "functional", "has_kernels", "init", "onnx", "prepack"]
__all__ += ["reference", "unpack", "__version__"]
