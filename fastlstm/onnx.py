"""ONNX: one LSTM node per layer, both directions in it.

    torch.onnx.export(
        model.eval(), (x,), "model.onnx", dynamo=True, dynamic_shapes=...,
        custom_translation_table=fastlstm.onnx.translations(),
    )

The operator: https://onnx.ai/onnx/operators/onnx__LSTM.html. Needs onnx and onnxscript.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _build
from .engine import engines
from .engine.call import LstmCall

__all__ = ["translations"]

_GATES = [0, 3, 1, 2]  # ONNX's order i, o, f, c (our g), as indices into i, f, g, o


def translations() -> dict[Any, Callable[..., Any]]:
    """The `custom_translation_table` for `torch.onnx.export(dynamo=True)`.

    Batch size and number of steps may be dynamic; `lengths` becomes sequence_lens. The node has no
    projection, resets, layer normalization or cell states of every step, and takes no packed data.
    The export of a model that uses one of those raises an error that names it. Export a model
    before you prepack it.

    Raises:
        RuntimeError: the extension is not available. Then export `convert(model, to="torch")`.
        ImportError: onnx or onnxscript is not installed.
    """
    if not _build.extension_available():
        problem = f"onnx: the extension is not available ({_build.unavailable_reason()})"
        raise RuntimeError(f'{problem}; export fastlstm.convert(model, to="torch") instead')
    _operators()  # raises the ImportError
    engines.has_onnx_translations = True
    ops = torch.ops.fastlstm
    return {ops.lstm.default: _lstm, ops.lstm_prepacked.default: _refuse_prepacked}


def _operators() -> Any:
    try:
        return importlib.import_module("onnxscript").opset18
    except ImportError as error:
        text = f"onnx needs {error.name}: pip install onnx onnxscript"
        raise ImportError(text, name=error.name) from error


def _refuse_prepacked(*args: Any, **options: Any) -> Any:
    raise RuntimeError("onnx: export a model before prepack, or what fastlstm.unpack returns")


def _lstm(*args: Any, save_cells: bool = False, **_: Any) -> Any:
    """Translates a call of the op. Arguments and results are those of the op."""
    count = len(LstmCall._fields)
    call, op = LstmCall(*args[:count]), _operators()
    for name, is_used in {
        "layer normalization": "layer_norm" in call.layout,
        "proj_size": "projection" in call.layout,
        "PackedSequence": call.batch_sizes is not None,
        "reset": call.reset is not None,
        "recurrent dropout": call.h_mask is not None,
        "return_cell_states": save_cells or any(args[count : count + 1]),  # keyword or positional
    }.items():
        if is_used:
            raise RuntimeError(f"onnx: the LSTM operator of ONNX has no {name}")
    hidden_size, directions = call.c_0.shape[2], call.h_0.shape[0]

    def in_onnx_order(parameters: Sequence[Any], rows: int, *columns: int) -> Any:
        """Joins parameters [4H,...] to a tensor [D,rows,...] with the gates in ONNX's order."""
        joined = parameters[0] if len(parameters) == 1 else op.Concat(*parameters, axis=0)
        by_gate = op.Reshape(joined, [len(parameters), 4, hidden_size, -1])
        return op.Reshape(op.Gather(by_gate, _GATES, axis=1), [directions, rows, *columns])

    weights = call.directions
    biases = [b for w in weights for b in (w.b_ih, w.b_hh) if b is not None]
    W = in_onnx_order([w.W_ih for w in weights], 4 * hidden_size, -1)
    R = in_onnx_order([w.W_hh for w in weights], 4 * hidden_size, -1)
    B = in_onnx_order(biases, 8 * hidden_size) if biases else None
    lengths = None if call.lengths is None else op.Cast(call.lengths, to=6)  # int32
    direction = "bidirectional" if directions == 2 else "forward"
    options = {"hidden_size": hidden_size, "direction": direction}
    y, h_n, c_n = op.LSTM(call.input, W, R, B, lengths, call.h_0, call.c_0, **options)
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])  # [T,D,B,H] -> [T,B,D*H]
    unused = op.Identity(c_n)  # stands for the op's cells and gates, which nobody reads
    return y, h_n, c_n, unused, unused
