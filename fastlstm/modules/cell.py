"""`LSTMCell`: a drop-in for torch.nn.LSTMCell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _build
from ..engine import engines
from ..engine.call import Call, State, zero_state
from ..engine.stack import run_cell
from ..interop import fx
from .attributes import (
    CELL_WEIGHTS,
    cell_shapes_fit,
    cell_takes,
    check_tensor,
    is_pair,
    run_forward,
    shapes_of,
    weights_of_cell,
)
from .options import EngineModule


class CellModule(nn.Module):
    """Base of LSTMCell and PrepackedLSTMCell: arranges the arguments and results of a call."""

    input_size: int
    hidden_size: int
    bias: bool
    # The source of the weights for `plain_lstm_cell`, or None if no call is plain.
    _fastlstm_plain_weights: Callable[[], tuple[Any, ...] | None]
    _fastlstm_step: Callable[[Tensor, State | None], State]  # the next state of a batch of rows

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Makes one step.

        Args:
            input: [B,input_size], or [input_size].
            hx: (h [B,hidden_size], c [B,hidden_size]), without B if unbatched; zeros if None.

        Returns:
            The next (h, c).
        """
        if not torch.compiler.is_compiling():
            source = self._fastlstm_plain_weights()
            if source is not None:
                plain: State = _build.library.plain_lstm_cell(self, source, input, hx)
                if plain is not NotImplemented:
                    return plain
        return self._fastlstm_call(input, hx)

    def _fastlstm_call(self, input: Tensor, hx: State | None) -> State:
        """Runs any call."""
        if type(input) is not Tensor or input.is_nested:
            if isinstance(input, fx.Proxy):
                return fx.as_node(self, input, hx=hx)
            check_tensor(input)
        is_batched = input.dim() == 2
        # nn.LSTMCell needs hidden_size only to make a state, so it may be missing if hx is given.
        size = getattr(self, "hidden_size", None)
        shape: Any = (input.size(0), size) if is_batched else (size,)
        if input.dim() not in (1, 2) or (hx is not None and not is_pair(hx, shape, shape)):
            return self._fastlstm_as_torch(input, hx)
        if is_batched:
            return self._fastlstm_step(input, hx)
        hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = self._fastlstm_step(input.unsqueeze(0), hx)
        return h.squeeze(0), c.squeeze(0)

    def _fastlstm_torch_module(self) -> Any:
        """A module on which nn.LSTMCell.forward runs."""
        return self

    def _fastlstm_as_torch(self, input: Tensor, hx: Any) -> State:
        """Returns the result, or raises the error, of nn.LSTMCell for other arguments."""
        is_unbatched = hx is not None and input.dim() == 1
        if is_unbatched and any(isinstance(state, Tensor) and state.dim() == 2 for state in hx):
            # nn.LSTMCell would abort the process.
            raise RuntimeError("For unbatched 1-D input, hx and cx should also be 1-D")
        state: State = run_forward(nn.LSTMCell.forward, self._fastlstm_torch_module(), input, hx)
        return state


class LSTMCell(CellModule, EngineModule, nn.RNNCellBase):
    """One step of an LSTM: `torch.nn.LSTMCell` with a fused engine.

    Weights: weight_ih [4*hidden_size, input_size], weight_hh [4*hidden_size, hidden_size],
    bias_ih and bias_hh [4*hidden_size]; gate order i, f, g, o.

    Args:
        input_size, hidden_size, bias: as in `LSTM`.
        device, dtype: of the parameters.

    Attributes:
        engine: which engine runs, one of `fastlstm.functional.ENGINES`; may be set at any time.
    """

    _fastlstm_torch_class = nn.LSTMCell
    _fastlstm_check_engine = staticmethod(engines.check_engine)
    _fastlstm_options = ("engine",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def _fastlstm_plain_weights(self) -> tuple[Any, ...] | None:
        if self._fastlstm_engine != "auto" or not engines.auto_means_op():
            return None
        return None, "", self._parameters, CELL_WEIGHTS

    def _fastlstm_step(self, input: Tensor, hx: State | None) -> State:
        given = hx
        if hx is None:
            hx = zero_state(input, (input.size(0),), self.hidden_size, self.hidden_size)
        weights, layout = weights_of_cell(self)
        if not cell_shapes_fit(input, hx, shapes_of(weights)):
            return self._fastlstm_as_torch(input, given)
        if not cell_takes(input, hx, weights[0].dtype, weights[0].device):
            return self._fastlstm_as_torch(input, given)
        call = Call(input, hx, weights, layout, is_cell=True)
        return run_cell(engines.choose(call, self._fastlstm_engine).run, call)
