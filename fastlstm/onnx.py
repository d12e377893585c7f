"""ONNX: one LSTM node per layer, both directions in it.

    torch.onnx.export(
        model.eval(), (x,), "model.onnx", dynamo=True, dynamic_shapes=...,
        custom_translation_table=fastlstm.onnx.translations(),
    )

Operator: https://onnx.ai/onnx/operators/onnx__LSTM.html. Needs the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _build
from ._call import by_direction

__all__ = ["translations"]


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export(dynamo=True)` needs as its `custom_translation_table`.

    Batch size and number of steps may be dynamic; `lengths` becomes sequence_lens. The node has
    neither a projection nor resets nor the cell states of every step, and takes no packed data:
    exporting a model that uses one of those raises an error that names it.

    Raises:
        RuntimeError: the extension is not available; then `convert(model, to="torch")` and export.
        ImportError: onnxscript is not installed.
    """
    if not _build.extension_available():
        raise RuntimeError(
            f"onnx: the extension is not available ({_build.unavailable_reason()}); export "
            'fastlstm.convert(model, to="torch") instead'
        )
    from onnxscript import opset18

    op: Any = opset18

    def stack(parameters: Sequence[Any], shape: list[int]) -> Any:
        """[4H,...] each, joined to `shape`, the gates in ONNX's order i, o, f, c."""
        hidden_size = parameters[0].shape[0] // 4
        gates = op.Reshape(op.Concat(*parameters, axis=0), [len(parameters), 4, hidden_size, -1])
        return op.Reshape(op.Gather(gates, [0, 3, 1, 2], axis=1), shape)

    def lstm(
        input: Any,
        h_0: Any,
        c_0: Any,
        weights: Sequence[Any],
        batch_sizes: Any = None,
        lengths: Any = None,
        reset: Any = None,
        h_mask: Any = None,
        zoneout_h: Any = None,
        zoneout_c: Any = None,
        save_cells: bool = False,
        save_gates: bool = False,
        recompute: bool = False,
        engine: str = "auto",
    ) -> Any:
        directions, hidden_size = h_0.shape[0], c_0.shape[2]
        named = by_direction(weights, directions)
        for name, given in {
            "layer normalisation": named[0].gain_ih is not None,
            "proj_size": named[0].W_hr is not None,
            "PackedSequence": batch_sizes is not None,
            "reset": reset is not None,
            "recurrent dropout": h_mask is not None,
            "zoneout": zoneout_h is not None or zoneout_c is not None,
            "return_cell_states": save_cells,
        }.items():
            if given:
                raise RuntimeError(f"onnx: the LSTM operator of ONNX has no {name}")
        biases = [b for w in named for b in (w.b_ih, w.b_hh) if b is not None]
        matrices = [directions, 4 * hidden_size, -1]
        y, h_n, c_n = op.LSTM(
            input,
            stack([w.W_ih for w in named], matrices),
            stack([w.W_hh for w in named], matrices),
            stack(biases, [directions, 8 * hidden_size]) if biases else None,
            None if lengths is None else op.Cast(lengths, to=6),  # int32
            h_0,
            c_0,
            hidden_size=hidden_size,
            direction="bidirectional" if directions == 2 else "forward",
        )
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])  # [T,D,B,H] -> [T,B,D*H]
        return y, h_n, c_n, op.Identity(c_n), op.Identity(c_n)  # cells and gates are not used

    def lstm_packed(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(
            "onnx: packed weights cannot be exported. Export the model before fastlstm.prepack, or "
            "what fastlstm.unpack(model) returns. To get int8, quantise the exported file with "
            "onnxruntime.quantization.quantize_dynamic, which knows LSTM nodes"
        )

    return {
        torch.ops.fastlstm.lstm.default: lstm,
        torch.ops.fastlstm.lstm_packed.default: lstm_packed,
    }
