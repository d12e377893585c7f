"""The weights of a packed layer: in panels of this processor, and unpacked where they are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _build, _formats
from ._call import layout_of
from .reference import state_dtype


def require_extension() -> None:
    """Raises a RuntimeError unless weights can be packed."""
    if not _build.has_kernels("cpu"):
        raise RuntimeError(f"prepack needs the extension: {_build.unavailable_reason()}")


class PackedWeights(nn.Module):
    """A module without parameters, its matrices packed for the processor at hand.

    `state_dict`, pickle and deepcopy hold the weights unpacked, by the names of the layer that was
    packed, so that another processor can pack them again; whole numbers come with their scales,
    `NAME_scale`.
    """

    dtype: torch.dtype
    weights: torch.dtype
    bias: bool
    proj_size: int = 0
    _shapes: dict[str, tuple[int, ...]]  # of every weight, in the order in which the op takes them
    _layout: str  # which weights a direction has, and their format
    _op_names: list[str]  # of the buffers that the op takes

    def _pack(self, tensors: dict[str, Tensor]) -> None:
        """Packs the matrices, given in any dtype, with `NAME_scale` beside whole numbers."""
        layout = layout_of(self.bias, self.proj_size > 0)
        self._layout = f"{layout} {_formats.name_of(self.weights)}".strip()
        self._op_names = [f"packed_{name}" for name in self._shapes]
        for name, shape in self._shapes.items():
            tensor, scale = tensors[name], tensors.get(f"{name}_scale")
            if problem := _formats.problem(name, tensor, scale, shape, self.weights):
                raise ValueError(problem)
            if len(shape) == 1:
                packed = tensor.to(self.dtype).to(state_dtype(self.dtype), copy=True)
            else:
                by_gates = not name.startswith("weight_hr")
                packed = _formats.pack(tensor, scale, self.weights, by_gates)
            self.register_buffer(f"packed_{name}", packed, persistent=False)

    def _unpacked(self) -> dict[str, Tensor]:
        """Every weight by its name, and the scales."""
        tensors: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            packed, scale = self.get_buffer(f"packed_{name}"), None
            if len(shape) == 1:
                tensors[name] = packed.to(self.dtype, copy=True)
            else:
                tensors[name], scale = _formats.unpack(packed, self.weights)
            if scale is not None:
                tensors[f"{name}_scale"] = scale
        return tensors

    def _op_weights(self) -> list[Tensor]:
        """What the op takes of all layers and directions."""
        buffers = self._buffers
        return [buffers[name] for name in self._op_names]  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeights:
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.device.type != "cpu" or probe.dtype != self.dtype:
            raise RuntimeError(
                f"{type(self).__name__} cannot be moved to {probe.dtype} on {probe.device}: its "
                f"weights are packed for {self.dtype} on the CPU. Move the model before packing "
                "it, or turn it back first: fastlstm.unpack(model)"
            )
        for name, buffer in self._buffers.items():
            if buffer is not None:
                new = fn(buffer)  # share_memory, for instance
                self._buffers[name] = new if new.dtype == buffer.dtype else buffer
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_shapes", ()):
            raise AttributeError(f"{name} is packed; load_state_dict replaces it")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_shapes", ()) and name not in self._buffers:
            raise AttributeError(f"{name} is packed; state_dict() has it")
        return super().__getattr__(name)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, tensor in self._unpacked().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Takes weights of any dtype: those of the model before packing, or of a packed one."""
        _, strict, missing_keys, unexpected_keys, error_msgs = others
        tensors, used = self._unpacked(), set()
        for name, shape in self._shapes.items():
            given, scale = (state_dict.get(f"{prefix}{name}{end}") for end in ("", "_scale"))
            used |= {f"{prefix}{name}", f"{prefix}{name}_scale"}
            wrong = [each for each in (given, scale) if not isinstance(each, Tensor | None)]
            if wrong:
                error_msgs.append(
                    f"{prefix}{name}: expected a tensor, and for int8 its scale, got "
                    f"{type(wrong[0]).__name__}"
                )
            elif given is None or (given.dtype == torch.int8 and scale is None):
                missing_keys.append(f"{prefix}{name}" + ("" if given is None else "_scale"))
            elif problem := _formats.problem(prefix + name, given, scale, shape, self.weights):
                error_msgs.append(problem)
            else:
                tensors[name] = given.detach().cpu()
                tensors.pop(f"{name}_scale", None)
                if scale is not None:
                    tensors[f"{name}_scale"] = scale.detach().cpu()
        if strict:
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in used]
        self._pack(tensors)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": {}, "_unpacked_weights": self._unpacked()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = state.pop("_unpacked_weights")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        require_extension()
        self._non_persistent_buffers_set = set()
        self._pack(tensors)

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script is not supported; use torch.jit.trace, "
            "torch.compile or torch.export, or script what fastlstm.unpack(model) returns"
        )
