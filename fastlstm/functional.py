"""The functional interface: `lstm` runs a stack of layers, `lstm_cell` makes one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .engine import checks
from .engine.call import LAYOUTS, Call, Regularizers, Results, weight_names
from .engine.engines import ENGINES, choose
from .engine.stack import run_cell, run_time_major

__all__ = ["ENGINES", "lstm", "lstm_cell"]


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    layout: str | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_cell_states: bool = False,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    weight_dropout: float = 0.0,
    engine: str = "auto",
) -> tuple[Any, ...]:
    """Applies a multi-layer LSTM to a batch of sequences; the equations are those of nn.LSTM.

    Sizes: T steps, B batch rows, I input_size, H hidden_size, P output size (proj_size, or H
    without a projection), L num_layers, D = 2 if bidirectional else 1. All floating tensors are of
    one dtype and on one device. The results have first and second derivatives by each of them.

    Args:
        input: [T,B,I]; [B,T,I] if `batch_first`; the data [N,I] of a PackedSequence if
            `batch_sizes` is given. T >= 1; B may be 0.
        hx: (h_0 [L*D,B,P], c_0 [L*D,B,H]), zeros if None. For packed data its rows are in the
            sorted order of the data.
        weights: for each layer, for each direction: W_ih [4H,I] ([4H,D*P] above the first layer),
            W_hh [4H,P], and those that `layout` names: b_ih, b_hh [4H], W_hr [P,H], and gain_ih,
            gain_hh [4H], gain_c, bias_c [H] (`fastlstm.LayerNormLSTM`). Gate order i, f, g, o.
        layout: names the weights that are there, as in `reference.lstm_layer`. None means an LSTM
            of torch.nn, whose layout follows from the number of weights (2 to 5).
        num_layers, bidirectional, dropout: as in torch.nn.LSTM.
        batch_first: whether `input`, `reset` and the output put the batch before the steps. `hx`
            never does. Ignored for packed data.
        training: whether `dropout` and the regularizers below are applied.
        batch_sizes: [T] int64 on the CPU, the rows alive at each step, as in a PackedSequence.
        lengths: [B] integers from 0 to T, in any order and on any device: the number of real steps
            of each row. After them the output is zero, and h_n, c_n are those of the last real
            step (h_0, c_0 for length 0). The second direction starts at that step. Values are
            checked on the CPU only. Not with `batch_sizes`.
        reset: [T,B] bool or numbers ([B,T] if `batch_first`). If it is true, or not 0, each
            direction zeroes h and c before it makes that step, and no gradient passes. A NaN is an
            error, which is found on the CPU only. Not with `batch_sizes`.
        return_cell_states: whether to return every cell state as well.
        input_dropout: probability p of dropping a feature of each layer's input: x_t becomes m x_t
            at every step, with m [B,I] zero with probability p, else 1 / (1 - p) (variational
            dropout, Gal & Ghahramani, 2016).
        recurrent_dropout: the same for h_{t-1} on its way into W_hh: one m [B,P] for each layer,
            direction and call.
        zoneout_h: probability that a unit of h keeps its value over a step, drawn for every step:
            h_t = z * h_{t-1} + (1 - z) * o * tanh(f * c_{t-1} + i * g), z zero or one (zoneout,
            Krueger et al., 2017). With a projection, h is the projected h.
        zoneout_c: the same for c: c_t = z * c_{t-1} + (1 - z) * (f * c_{t-1} + i * g). Without
            `training` there is no zoneout (the paper takes the probability as z in that case).
        weight_dropout: probability of dropping a weight of W_hh for the whole call; the others are
            divided by 1 - p (DropConnect as in AWD-LSTM, Merity et al., 2018).
        engine: one of `ENGINES`. With "auto" the environment variable FASTLSTM_ENGINE (read at
            import) names the engine, or fastlstm chooses one if the variable is not set.

    Returns:
        `(output, (h_n, c_n))`, or `(output, (h_n, c_n), cell_states)` if `return_cell_states`:

        - output [T,B,D*P] ([B,T,D*P] if `batch_first`, [N,D*P] packed), of the last layer;
        - h_n [L*D,B,P] and c_n [L*D,B,H];
        - cell_states [L,T,B,D*H] ([L,B,T,D*H] if `batch_first`, [L,N,D*H] packed), c_t of every
          layer, zero after the end of each row.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype, device or values, or T = 0.
        TypeError: an argument is no tensor, or `lengths` does not hold integers.
        ValueError: `engine`, `layout`, `num_layers` or a probability has none of the values above.
    """
    by_name = {f"weights[{k}]": weight for k, weight in enumerate(weights)}
    checks.check_dense(input, hx, by_name, batch_sizes=batch_sizes, reset=reset)
    if not hasattr(num_layers, "__index__") or num_layers < 1:
        raise ValueError(f"num_layers: expected a positive integer, got {num_layers!r}")
    directions = 2 if bidirectional else 1
    count = num_layers * directions
    if layout is None:
        per_direction = len(weights) // count
        layout = LAYOUTS[per_direction >= 4, per_direction in (3, 5), False]
    if len(weights) != count * len(weight_names(layout)):
        for_each = f"for each of {num_layers} layer(s) and {directions} direction(s)"
        expected = f"weights to hold 2 to 5 tensors, or those that layout names, {for_each}"
        checks.check(False, expected, f"{len(weights)} tensors")
    checks.check_dims(input, batch_sizes, batch_first)
    if hx is not None and not hx[0].size(0) == hx[1].size(0) == count:
        got = f"{tuple(hx[0].shape)} and {tuple(hx[1].shape)}"
        checks.check(False, f"h_0 and c_0 of size(0) = layers * directions = {count}", got)
    if lengths is not None:
        lengths = checks.lengths_on_device_of(input, checks.as_lengths(lengths))
    if reset is not None:
        shape = input.shape[:2] if batch_sizes is None else None
        reset = checks.as_reset(reset, shape, batch_first)

    def compute(call: Call) -> Results:
        if training:
            probabilities = input_dropout, recurrent_dropout, zoneout_h, zoneout_c, weight_dropout
            call = call.with_training_options(dropout, Regularizers(*probabilities))
        return _run(call, engine)

    fields = num_layers, directions, batch_sizes, lengths, reset, training
    call = Call(input, hx, weights, layout, *fields, return_cell_states=bool(return_cell_states))
    return run_time_major(compute, call, batch_first)


def _run(call: Call, engine: str) -> Results:
    """Runs a call on an engine. PyTorch's LSTM does not check all shapes, so `check_stack` does."""
    chosen = choose(call, engine)
    if chosen.name == "torch":
        checks.check_stack(call)
    return chosen.run(call)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Makes one step of an LSTM, as `torch.lstm_cell` does.

    Args:
        input: [B,I].
        hx: (h [B,H], c [B,H]).
        w_ih: [4H,I], gate order i, f, g, o.
        w_hh: [4H,H].
        b_ih, b_hh: [4H]; either both biases or none.
        engine: as in `lstm`.

    Returns:
        The next (h [B,H], c [B,H]).
    """
    if (b_ih is None) != (b_hh is None):
        raise RuntimeError("lstm_cell: expected both b_ih and b_hh or neither, got one of them")
    weights = [weight for weight in (w_ih, w_hh, b_ih, b_hh) if weight is not None]
    checks.check_dense(input, hx, {"w_ih": w_ih, "w_hh": w_hh}, b_ih=b_ih, b_hh=b_hh)
    call = Call(input, hx, weights, "bias" if len(weights) == 4 else "", is_cell=True)
    return run_cell(lambda call: _run(call, engine), call)
