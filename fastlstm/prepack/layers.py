"""Prepacked layers. They have no parameters: a parameter could differ from the prepacked weight."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import groupby
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, nn

from .. import _build
from ..engine.call import LAYOUTS, Call, Results, State, replaced, state_dtype, zero_state
from ..interop.classes import unparametrized_class
from ..modules.attributes import (
    CELL_WEIGHTS,
    cell_shapes_fit,
    cell_takes,
    described_weights,
    named_weights,
)
from ..modules.cell import CellModule, LSTMCell
from ..modules.lstm import LSTM, SequenceModule
from ..modules.options import qualified_name
from . import formats
from .additions import copy_additions
from .run import run_prepacked


def require_extension() -> None:
    """Raises a RuntimeError unless weights can be prepacked."""
    if not _build.has_kernels("cpu"):
        raise RuntimeError(f"prepack needs the extension: {_build.unavailable_reason()}")


class Prepacked(nn.Module):
    """A layer that stores its matrices as this processor reads them.

    `state_dict`, pickle and deepcopy hold the unpacked weights, under their names before prepack:
    another processor can prepack them again. int8 weights come with their scales, `NAME_scale`.
    """

    input_size: int
    hidden_size: int
    bias: bool
    dtype: torch.dtype
    weights: torch.dtype  # the format of the weights
    _torch_class: Any  # nn.LSTM or nn.LSTMCell
    _layer_class: type[nn.Module]  # of the layer that was prepacked
    _attribute_names: tuple[str, ...]  # attributes of the layer that are copied
    _shapes: dict[str, tuple[int, ...]]  # of every weight, in the order in which the op takes them
    _layout: str  # names the weights of a direction, then their format
    _buffer_names: list[str]  # of the buffers that the op takes
    _without_grad: set[str]  # the weights that required no gradient
    _get_name = qualified_name

    def __init__(self, layer: nn.Module, weights: torch.dtype | None = None) -> None:
        """Takes the weights of a layer, and all that its user has put on it."""
        super().__init__()
        by_name = named_weights(layer)
        copy_additions(layer, self, by_name)
        self._layer_class = unparametrized_class(layer)
        parameters = layer.named_parameters(recurse=False, remove_duplicate=False)
        self._without_grad = {name for name, p in parameters if not p.requires_grad}
        tensors = {name: weight.detach() for name, weight in by_name.items()}
        self.__dict__["_shapes"] = {name: tuple(t.shape) for name, t in tensors.items()}
        self.dtype = next(iter(tensors.values())).dtype
        self.weights = weights or self.dtype
        self._pack(tensors)

    @classmethod
    def own_names(cls) -> set[str]:
        """The names that this class uses and a layer of torch.nn does not."""
        common = {*dir(nn.Module()), *cls._attribute_names}
        return {*vars(Prepacked), *Prepacked.__annotations__} - common

    def _fastlstm_compute(self, call: Call) -> Results:
        return run_prepacked(call, self.dtype, type(self).__name__)

    def train(self, mode: bool = True) -> Prepacked:
        """Stays in eval mode. A true `mode` raises a RuntimeError: there is nothing to train."""
        if mode:
            remedy = "train the model before prepack, or turn it back: fastlstm.unpack(model)"
            problem = "has no training mode: its weights are prepacked"
            raise RuntimeError(f"{type(self).__name__} {problem}; {remedy}")
        return super().train(False)

    def extra_repr(self) -> str:
        return f"{self._torch_class.extra_repr(self)}, weights={self.weights}"

    def _pack(self, tensors: dict[str, Tensor]) -> None:
        """Prepacks matrices of any dtype; int8 matrices come with `NAME_scale`."""
        base_names = {name.split("_l")[0] for name in self._shapes}
        layout = LAYOUTS["bias_ih" in base_names, "weight_hr" in base_names, False]
        self._layout = f"{layout} {formats.name_of(self.weights)}".strip()
        self._buffer_names = [f"prepacked_{name}" for name in self._shapes]
        for name, shape in self._shapes.items():
            tensor, scale = tensors[name], tensors.get(f"{name}_scale")
            if problem := formats.problem(name, tensor, scale, shape, self.weights):
                raise ValueError(problem)
            if len(shape) == 1:
                # A bias is rounded to the layer's dtype and stored in the dtype of the sums.
                buffer = tensor.to(self.dtype).to(state_dtype(self.dtype), copy=True)
            else:
                by_gates = not name.startswith("weight_hr")
                buffer = formats.pack(tensor, scale, self.weights, by_gates)
            self.register_buffer(f"prepacked_{name}", buffer, persistent=False)

    def _unpacked(self) -> dict[str, Tensor]:
        """Every weight by its name, and the scales."""
        tensors: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            buffer, scale = self.get_buffer(f"prepacked_{name}"), None
            if len(shape) == 1:
                tensors[name] = buffer.to(self.dtype, copy=True)
            else:
                tensors[name], scale = formats.unpack(buffer, self.weights)
            if scale is not None:
                tensors[f"{name}_scale"] = scale
        return tensors

    def _rebuild(self, cls: Any) -> Any:
        """Returns a layer of another class, such as nn.LSTM, with these weights and additions."""
        tensors, layer = self._unpacked(), cls.__new__(cls)  # the loop and copy_additions fill it
        nn.Module.__init__(layer)
        for name in self._shapes:
            weight = formats.dequantize(tensors[name], tensors.get(f"{name}_scale"))
            weight = nn.Parameter(weight.to(self.dtype), name not in self._without_grad)
            layer.register_parameter(name, weight)
        if isinstance(layer, nn.RNNBase):
            by_suffix = groupby(self._shapes, lambda name: name.partition("_l")[2])
            layer._all_weights = [[*names] for _, names in by_suffix]
            layer._flat_weights_names = [*self._shapes]
            layer._init_flat_weights()
        copy_additions(self, layer, {*self.own_names(), *self._buffer_names})
        return layer

    def _fastlstm_torch_module(self) -> Any:
        """A module on which the methods of nn.LSTM or nn.LSTMCell run."""
        return self._rebuild(self._torch_class).requires_grad_(False)

    def _fastlstm_plain_weights(self) -> tuple[Any, ...] | None:
        weights = [*map(self._buffers.__getitem__, self._buffer_names)]
        return weights, self._layout, None, self._shapes

    def _op_weights(self) -> list[Tensor]:
        return [self._buffers[name] for name in self._buffer_names]  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prepacked:
        probe = fn(torch.tensor([], dtype=self.dtype))
        if probe.device.type != "cpu" or probe.dtype != self.dtype:
            ours, got = f"{type(self).__name__} of {self.dtype}", f"{probe.dtype} on {probe.device}"
            remedy = "move the model before prepack, or turn it back: fastlstm.unpack(model)"
            raise RuntimeError(f"{ours} on the CPU cannot be moved to {got}; {remedy}")
        old_buffers = {name: self.get_buffer(name) for name in self._buffer_names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in old_buffers.items():
            if self.get_buffer(name).dtype != buffer.dtype:
                self._buffers[name] = buffer  # biases of 16-bit layers stay float32
        return self

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_shapes", ()):
            remedy = "read it from state_dict(), or call fastlstm.unpack(model)"
            raise AttributeError(f"{name} is prepacked: {remedy}")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_weight(name)
        options = getattr(self.__dict__.get("_layer_class"), "_fastlstm_options", ())
        if name in options and name not in self.__dict__:
            remedy = "set it before prepack, or after fastlstm.unpack(model)"
            raise AttributeError(f"{name}: a {type(self).__name__} has no such option; {remedy}")
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self._refuse_weight(name)
        super().register_parameter(name, param)

    def _refuse_weight(self, name: str) -> None:
        if name in (*self.__dict__.get("_shapes", ()), *CELL_WEIGHTS, "_flat_weights"):
            raise AttributeError(f"{name}: weights are prepacked; load_state_dict replaces them")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, tensor in self._unpacked().items():
            destination[prefix + name] = tensor
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Takes weights of any dtype, also those of the model before prepack."""
        _, _, missing_keys, unexpected_keys, error_msgs = rest
        super()._load_from_state_dict(state_dict, prefix, *rest)  # runs hooks, loads additions
        tensors, known_keys = self._unpacked(), set()
        for name, shape in self._shapes.items():
            key = prefix + name
            weight, scale = state_dict.get(key), state_dict.get(f"{key}_scale")
            known_keys |= {key, f"{key}_scale"}
            wrong = [each for each in (weight, scale) if not isinstance(each, Tensor | None)]
            if wrong:
                got = type(wrong[0]).__name__
                error_msgs.append(f"{key} or {key}_scale: expected a tensor, got {got}")
            elif weight is None or (weight.dtype == torch.int8 and scale is None):
                missing_keys.append(key if weight is None else f"{key}_scale")
            elif problem := formats.problem(key, weight, scale, shape, self.weights):
                error_msgs.append(problem)
            else:
                tensors[name] = weight.detach().cpu()
                tensors.pop(f"{name}_scale", None)
                if scale is not None:
                    tensors[f"{name}_scale"] = scale.detach().cpu()
        unexpected_keys[:] = [key for key in unexpected_keys if key not in known_keys]
        self._pack(tensors)

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self._buffers.items() if k not in self._buffer_names}
        return {**self.__dict__, "_buffers": kept, "_unpacked_weights": self._unpacked()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["weights"] not in formats.KNOWN:
            known = ", ".join(map(str, formats.KNOWN))
            got = f"{state['weights']!r} in a saved layer: prepack its model again"
            raise ValueError(f"weights: expected one of {known}, got {got}")
        tensors = state.pop("_unpacked_weights")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        require_extension()
        self._pack(tensors)


class PrepackedLSTM(Prepacked, SequenceModule):
    """An `LSTM` after `prepack`: called in the same way, without parameters and gradients.

    Attributes:
        dtype: of the input, the output and the state.
        weights: the format of the weights, as `prepack` takes it.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size:
            as in `LSTM`.
    """

    proj_size: int
    _layer_class, _torch_class = LSTM, nn.LSTM
    _attribute_names = tuple(name for name in nn.LSTM.__constants__ if name != "mode")

    def _fastlstm_weights(self) -> tuple[list[Any], str | None, torch.dtype | None]:
        fit = described_weights(self)[1] == [*self._shapes.values()]
        return self._op_weights(), self._layout if fit else None, self.dtype

    def _fastlstm_compute(self, call: Call) -> Results:
        if call.hx is None:  # prepacked weights do not show the sizes of a state
            leading = call.num_layers * call.num_directions, call.steps_and_batch()[1]
            _, output_size = self._shapes["weight_hh_l0"]
            state = zero_state(call.input, leading, self.hidden_size, output_size, self.dtype)
            call = replaced(call, hx=state)
        return super()._fastlstm_compute(call)

    def flatten_parameters(self) -> None:
        """Does nothing: there are no parameters."""


class PrepackedLSTMCell(Prepacked, CellModule):
    """An `LSTMCell` after `prepack`: called in the same way, without parameters and gradients.

    Attributes:
        dtype: of the input and the state.
        weights: the format of the weights, as `prepack` takes it.
        input_size, hidden_size, bias: as in `LSTMCell`.
    """

    _layer_class, _torch_class = LSTMCell, nn.LSTMCell
    _attribute_names = ("input_size", "hidden_size", "bias")

    def _fastlstm_step(self, input: Tensor, hx: State | None) -> State:
        given = hx
        if hx is None:
            sizes = self.hidden_size, self.hidden_size
            hx = zero_state(input, (input.size(0),), *sizes, self.dtype)
        weights = self._op_weights()
        if not cell_shapes_fit(input, hx, [*self._shapes.values()]):
            return self._fastlstm_as_torch(input, given)
        if not cell_takes(input, hx, self.dtype, weights[0].device):
            return self._fastlstm_as_torch(input, given)
        _, state, _ = self._fastlstm_compute(Call(input, hx, weights, self._layout, is_cell=True))
        return state


def _as_bytes(module: Prepacked) -> tuple[Any, ...]:
    """Pickles a layer for another process by value: shared memory would be freed too early."""
    return pickle.loads, (pickle.dumps(module),)


for _kind in (PrepackedLSTM, PrepackedLSTMCell):
    ForkingPickler.register(_kind, _as_bytes)
