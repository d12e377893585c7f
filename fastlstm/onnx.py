"""ONNX: one LSTM node per layer, both directions in it.

    torch.onnx.export(
        model.eval(), (x,), "model.onnx", dynamo=True, dynamic_shapes=...,
        custom_translation_table=fastlstm.onnx.translations(),
    )

Operators: https://onnx.ai/onnx/operators/onnx__LSTM.html and, for layers packed in int8,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. Needs the extra `onnx`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _build
from ._call import by_direction

__all__ = ["translations"]

_GATES = [0, 3, 1, 2]  # ONNX's order i, o, f, c
_REMEDY = (
    "torch.onnx.export(model, ..., dynamo=True, "
    "custom_translation_table=fastlstm.onnx.translations())"
)
_were_made = False  # the translations: only then can the exporter have got them


def recommend_translations() -> None:
    """Warns if nobody has asked for the translations: the exporter's own errors hide ours."""
    if not _were_made:
        warnings.warn(
            f"the ONNX exporter does not know fastlstm's op: use {_REMEDY}",
            RuntimeWarning,
            stacklevel=2,
        )


def refuse_old_exporter(options: Sequence[str]) -> None:
    """Raises a RuntimeError for what the exporter that traces cannot express."""
    raise RuntimeError(
        f"onnx: with dynamo=False only plain calls can be exported, got {', '.join(options)}; "
        f"use {_REMEDY}"
    )


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export(dynamo=True)` needs as its `custom_translation_table`.

    Batch size and number of steps may be dynamic; `lengths` becomes sequence_lens. A layer that
    `prepack` made int8 becomes DynamicQuantizeLSTM, an operator of onnxruntime. Neither node has a
    projection, resets or the cell states of every step, or takes packed data: exporting a model
    that uses one of those raises an error that names it.

    Raises:
        RuntimeError: the extension is not available; then `convert(model, to="torch")` and export.
        ImportError: onnxscript is not installed.
    """
    if not _build.extension_available():
        raise RuntimeError(
            f"onnx: the extension is not available ({_build.unavailable_reason()}); export "
            'fastlstm.convert(model, to="torch") instead'
        )
    import onnx_ir
    from onnxscript import opset18

    global _were_made
    _were_made = True

    op: Any = opset18

    def stack(parameters: Sequence[Any], hidden_size: int, shape: list[int]) -> Any:
        """[4H,...] each, joined to `shape`, the gates in ONNX's order."""
        gates = op.Reshape(op.Concat(*parameters, axis=0), [len(parameters), 4, hidden_size, -1])
        return op.Reshape(op.Gather(gates, _GATES, axis=1), shape)

    def node(operator: Any, input: Any, weights: Any, lengths: Any, *others: Any) -> Any:
        """output, h_n, c_n; weights: W, R and B; others: h_0, c_0 and what else there is."""
        y, h_n, c_n = operator(
            input,
            *weights,
            None if lengths is None else op.Cast(lengths, to=6),  # int32
            *others,
            hidden_size=others[1].shape[2],
            direction="bidirectional" if others[0].shape[0] == 2 else "forward",
        )
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])  # [T,D,B,H] -> [T,B,D*H]
        return y, h_n, c_n

    def lstm(
        input: Any,
        h_0: Any,
        c_0: Any,
        weights: Sequence[Any],
        layout: str = "bias",
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
        named = by_direction(weights, layout)
        masks = h_mask, zoneout_h, zoneout_c
        _refuse(layout, batch_sizes, reset, masks, save_cells)
        biases = [b for w in named for b in (w.b_ih, w.b_hh) if b is not None]
        matrices = [directions, 4 * hidden_size, -1]
        of_node = (
            stack([w.W_ih for w in named], hidden_size, matrices),
            stack([w.W_hh for w in named], hidden_size, matrices),
            stack(biases, hidden_size, [directions, 8 * hidden_size]) if biases else None,
        )
        y, h_n, c_n = node(op.LSTM, input, of_node, lengths, h_0, c_0)
        return y, h_n, c_n, op.Identity(c_n), op.Identity(c_n)  # cells and gates are not used

    def lstm_packed(
        input: Any,
        h_0: Any,
        c_0: Any,
        weights: Sequence[Any],
        layout: str,
        batch_sizes: Any = None,
        lengths: Any = None,
        reset: Any = None,
        h_mask: Any = None,
        zoneout_h: Any = None,
        zoneout_c: Any = None,
        save_cells: bool = False,
    ) -> Any:
        directions, gates = h_0.shape[0], 4 * c_0.shape[2]
        layout, _, format = layout.rpartition(" ")
        named = by_direction(weights, layout)
        masks = h_mask, zoneout_h, zoneout_c
        _refuse(layout, batch_sizes, reset, masks, save_cells)
        if input.dtype.name not in ("FLOAT", "DOUBLE"):
            raise RuntimeError(
                f"onnx: expected packed layers of float32 or float64, got {input.dtype}"
            )

        def constant(shape: list[int], dtype: Any, make: Callable[[], Tensor]) -> Any:
            """Made when the file is: only then do packed weights have values."""
            late = onnx_ir.LazyTensor(
                lambda: onnx_ir.tensor(make()), onnx_ir.DataType[dtype], onnx_ir.Shape(shape)
            )
            return op.Constant(value=late)

        def unpacked(matrices: Sequence[Any], columns: int, of_scales: bool = False) -> Any:
            """[D,4H,columns], or the scales of the rows [D,4H]."""

            def make(weight: Any) -> Tensor:
                found: Tensor = _build.library.unpack_weight(weight.const_value.raw)[of_scales]
                return found.float() if found.dtype == torch.bfloat16 else found

            shape = [gates] if of_scales else [gates, columns]
            dtype = "INT8" if quantized and not of_scales else input.dtype.name
            found = [constant(shape, dtype, partial(make, w)) for w in matrices]
            return stack(found, hidden_size, [directions, *shape])

        quantized, hidden_size, input_size = format == "int8", c_0.shape[2], input.shape[-1]
        W_ih, W_hh = [w.W_ih for w in named], [w.W_hh for w in named]
        biases = [b for w in named for b in (w.b_ih, w.b_hh) if b is not None]
        W, R = unpacked(W_ih, input_size), unpacked(W_hh, hidden_size)
        B = stack(biases, hidden_size, [directions, 2 * gates]) if biases else None
        if quantized:
            W, R = (op.Transpose(matrix, perm=[0, 2, 1]) for matrix in (W, R))
            zero_points = constant(
                [directions, gates], "INT8", lambda: torch.zeros(directions, gates).to(torch.int8)
            )
            scales = [s for m in (W_ih, W_hh) for s in (unpacked(m, 0, True), zero_points)]
            others = (h_0, c_0, None, *scales)  # without peepholes
            y, h_n, c_n = node(_dynamic_quantize_lstm(), input, (W, R, B), lengths, *others)
        else:
            y, h_n, c_n = node(op.LSTM, input, (W, R, B), lengths, h_0, c_0)
        return y, h_n, c_n, op.Identity(c_n)

    return {
        torch.ops.fastlstm.lstm.default: lstm,
        torch.ops.fastlstm.lstm_packed.default: lstm_packed,
    }


def _refuse(
    layout: str, batch_sizes: Any, reset: Any, masks: tuple[Any, ...], save_cells: bool
) -> None:
    """Raises a RuntimeError that names what the operators of ONNX lack."""
    h_mask, zoneout_h, zoneout_c = masks
    for name, is_given in {
        "layer normalisation": "layer_norm" in layout,
        "proj_size": "projection" in layout,
        "PackedSequence": batch_sizes is not None,
        "reset": reset is not None,
        "recurrent dropout": h_mask is not None,
        "zoneout": zoneout_h is not None or zoneout_c is not None,
        "return_cell_states": save_cells,
    }.items():
        if is_given:
            raise RuntimeError(f"onnx: the LSTM operator of ONNX has no {name}")


def _dynamic_quantize_lstm() -> Any:
    """onnxruntime's operator, which onnx does not know."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    inputs = {
        "X": "float", "W": "int8", "R": "int8", "B": "float", "sequence_lens": "int32",
        "initial_h": "float", "initial_c": "float", "P": "float",
        "W_scale": "float", "W_zero_point": "int8", "R_scale": "float", "R_zero_point": "int8",
    }  # fmt: skip

    def parameter(name: str, dtype: str) -> Any:
        optional = OpSchema.FormalParameterOption.Optional
        return OpSchema.FormalParameter(name, f"tensor({dtype})", param_option=optional)

    schema = OpSchema(
        "DynamicQuantizeLSTM",
        "com.microsoft",
        1,
        inputs=[parameter(*named) for named in inputs.items()],
        outputs=[parameter(name, "float") for name in ("Y", "Y_h", "Y_c")],
        attributes=[
            OpSchema.Attribute("hidden_size", OpSchema.AttrType.INT),
            OpSchema.Attribute("direction", OpSchema.AttrType.STRING),
        ],
    )
    return Op(Opset("com.microsoft", 1), "DynamicQuantizeLSTM", schema)
