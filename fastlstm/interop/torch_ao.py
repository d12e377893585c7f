"""LSTMs and LSTMCells that torch.ao.quantization.quantize_dynamic has quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# The attributes that the modules of torch.ao have instead of parameters.
ATTRIBUTES = (
    *("_all_weight_values", "_packed_weight_ih", "_packed_weight_hh", "bias_ih", "bias_hh"),
    *("version", "weight_dtype"),
)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is an LSTM or LSTMCell that quantize_dynamic has quantized."""
    cls = type(module)
    is_dynamic = cls.__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
    return is_dynamic and cls.__name__ in ("LSTM", "LSTMCell")


def weights_of(quantized: Any) -> tuple[dict[str, Tensor], bool]:
    """Returns weights, biases and scales of a quantized module by name, and whether it has int8.

    The int8 weights have a scale for each row. -128 becomes -127. Weights with zero points other
    than 0 (not the default of quantize_dynamic) are dequantized, and so are float16 weights.
    """
    state = dict(quantized.get_bias()) if quantized.bias else {}
    has_int8 = False
    for name, weight in quantized.get_weight().items():
        state[name] = weight.dequantize()
        if weight.is_quantized:
            has_int8 = True
            per_row = weight.qscheme() == torch.per_channel_affine
            zero = weight.q_per_channel_zero_points() if per_row else weight.q_zero_point()
            if not torch.as_tensor(zero).any():
                scale = weight.q_per_channel_scales() if per_row else weight.q_scale()
                state[f"{name}_scale"] = torch.as_tensor(scale).float().expand(weight.size(0))
                state[name] = weight.int_repr().clamp_min(-127)
    return state, has_int8
