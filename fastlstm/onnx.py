"""ONNX: one LSTM node per layer, both directions in it.

    torch.onnx.export(
        model.eval(), (x,), "model.onnx", dynamo=True, dynamic_shapes=...,
        custom_translation_table=fastlstm.onnx.translations(),
    )

The operator: https://onnx.ai/onnx/operators/onnx__LSTM.html. Needs onnx and onnxscript.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _build
from ._call import Call, LstmCall

__all__ = ["translations"]

_GATES = [0, 3, 1, 2]  # ONNX's order i, o, f, c
REMEDY = (
    "torch.onnx.export(model, ..., dynamo=True, "
    "custom_translation_table=fastlstm.onnx.translations())"
)
were_made = False  # the translations: only then can the exporter have got them


def knows_torch_alone() -> bool:
    """Whether torch.onnx.export runs and knows nn.LSTM's op alone: where our table is not used."""
    if torch._C._get_tracing_state() is not None:
        return torch.onnx.is_in_onnx_export()
    if not torch.compiler.is_compiling() or torch.compiler.is_dynamo_compiling():
        return False
    return torch.onnx.is_in_onnx_export() and not were_made


def check_export(call: Call) -> None:
    """Says how to export a call of our op, since the exporter's own errors hide ours.

    Raises:
        RuntimeError: by the exporter of dynamo=False, which cannot.

    Warns:
        RuntimeWarning: nobody has asked for the translations.
    """
    if not knows_torch_alone():
        return
    if torch._C._get_tracing_state() is not None:
        options = ", ".join(call.options()) or "an engine by name"
        raise RuntimeError(
            f"onnx: with dynamo=False only plain calls can be exported, got {options}; use {REMEDY}"
        )
    warnings.warn(
        f"the ONNX exporter does not know fastlstm's op: use {REMEDY}", RuntimeWarning, stacklevel=2
    )


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export(dynamo=True)` needs as its `custom_translation_table`.

    Batch size and number of steps may be dynamic; `lengths` becomes sequence_lens. The node has no
    projection, resets, int8 weights or cell states of every step, and takes no packed data:
    exporting a model that uses one of those raises an error that names it.

    Raises:
        RuntimeError: the extension is not available; then `convert(model, to="torch")` and export.
        ImportError: onnx or onnxscript is not installed.
    """
    if not _build.extension_available():
        raise RuntimeError(
            f"onnx: the extension is not available ({_build.unavailable_reason()}); export "
            'fastlstm.convert(model, to="torch") instead'
        )
    _Operators()  # raises the ImportError
    global were_made
    were_made = True
    ops = torch.ops.fastlstm
    return {ops.lstm.default: _lstm, ops.lstm_packed.default: _lstm_packed}


def _call(*args: Any, save_cells: bool = False, **_: Any) -> LstmCall:
    """The call of an op by its arguments; a RuntimeError names what the operators of ONNX lack."""
    count = len(LstmCall._fields) - 2  # the op has no zoneout
    call = LstmCall(*args[:count])
    for name, is_given in {
        "layer normalization": "layer_norm" in call.layout,
        "proj_size": "projection" in call.layout,
        "PackedSequence": call.batch_sizes is not None,
        "reset": call.reset is not None,
        "recurrent dropout": call.h_mask is not None,
        "return_cell_states": save_cells or any(args[count : count + 1]),
    }.items():
        if is_given:
            raise RuntimeError(f"onnx: the LSTM operator of ONNX has no {name}")
    return call


def _lstm(*args: Any, **options: Any) -> Any:
    call, own = _call(*args, **options), _Operators()
    H, shape = call.c_0.shape[2], [call.h_0.shape[0], 4 * call.c_0.shape[2], -1]
    matrices = [own.stack([w[k] for w in call.directions], H, shape) for k in (0, 1)]
    y, h_n, c_n = own.node(call, matrices)
    unused = own.op.Identity(c_n)
    return y, h_n, c_n, unused, unused  # cells and gates


def _lstm_packed(*args: Any, **options: Any) -> Any:
    layout, _, format = args[4].rpartition(" ")
    call, own = _call(*args[:4], layout, *args[5:], **options), _Operators()
    input, h_0, c_0 = args[:3]
    if input.dtype.name not in ("FLOAT", "DOUBLE"):
        raise RuntimeError(f"onnx: expected packed layers of float32 or float64, got {input.dtype}")
    if format == "int8":
        raise RuntimeError(
            "onnx: ONNX has no LSTM of int8 weights: export the model before prepack"
        )
    H, D, gates = c_0.shape[2], h_0.shape[0], 4 * c_0.shape[2]
    matrices = [
        own.stack(
            [own.unpacked(w[k], [gates, columns], input.dtype.name) for w in call.directions],
            H,
            [D, gates, columns],
        )
        for k, columns in enumerate((input.shape[-1], H))
    ]
    y, h_n, c_n = own.node(call, matrices)
    return y, h_n, c_n, own.op.Identity(c_n)


class _Operators:
    """The operators of ONNX, and what both translations make of them."""

    def __init__(self) -> None:
        try:
            import onnx_ir
            from onnxscript import opset18
        except ImportError as error:
            told = f"onnx needs {error.name}: pip install onnx onnxscript"
            raise ImportError(told, name=error.name) from error

        self.ir: Any = onnx_ir
        self.op: Any = opset18

    def stack(self, parameters: Sequence[Any], hidden_size: int, shape: list[int]) -> Any:
        """[4H,...] each, joined to `shape`, the gates in ONNX's order."""
        one = len(parameters) == 1
        joined = parameters[0] if one else self.op.Concat(*parameters, axis=0)
        by_gate = self.op.Reshape(joined, [len(parameters), 4, hidden_size, -1])
        return self.op.Reshape(self.op.Gather(by_gate, _GATES, axis=1), shape)

    def unpacked(self, weight: Any, shape: list[int], dtype: str) -> Any:
        """A packed matrix."""

        def make() -> Any:  # when the file is made: only then do packed weights have values
            tensor, _ = _build.library.unpack_weight(weight.const_value.raw)
            return self.ir.tensor(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)

        late = self.ir.LazyTensor(make, self.ir.DataType[dtype], self.ir.Shape(shape))
        return self.op.Constant(value=late)

    def node(self, call: LstmCall, matrices: Sequence[Any]) -> Any:
        """output, h_n, c_n of an LSTM node."""
        op, hidden_size, directions = self.op, call.c_0.shape[2], call.h_0.shape[0]
        biases = [b for w in call.directions for b in (w.b_ih, w.b_hh) if b is not None]
        y, h_n, c_n = op.LSTM(
            call.input,
            *matrices,
            self.stack(biases, hidden_size, [directions, 8 * hidden_size]) if biases else None,
            None if call.lengths is None else op.Cast(call.lengths, to=6),  # int32
            call.h_0,
            call.c_0,
            hidden_size=hidden_size,
            direction="bidirectional" if directions == 2 else "forward",
        )
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])  # [T,D,B,H] -> [T,B,D*H]
        return y, h_n, c_n
