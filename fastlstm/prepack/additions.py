"""What a user has put on a layer: attributes, hooks, buffers, parameters, submodules."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

from torch import nn

from ..modules.attributes import named_weights

# The names of a module's tables: its parameters, buffers, submodules, and each kind of hooks.
_TABLES = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict)]
# Attributes that are not copied: they hold weights, or the functions below handle them.
_NOT_COPIED = (
    *("_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights"),
    *("parametrizations", "_non_persistent_buffers_set", "forward"),
)


def check_additions(path: str, layer: nn.Module, own_names: Iterable[str]) -> None:
    """Raises a ValueError for additions that clash with `own_names`, or cannot be prepacked."""
    names = set(named_weights(layer))
    added = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
    refused = added & {*own_names, "_compiled_call_impl", *(f"prepacked_{name}" for name in names)}
    if refused := refused | set(getattr(layer, "parametrizations", ())) - names:
        problem = f"{path} has {', '.join(sorted(refused))}, set on the module"
        reason = "a prepacked layer uses this name itself, or cannot take over what it holds"
        raise ValueError(f"prepack: {problem}; {reason}")
    own_forward = MethodType(type(layer).forward, layer)
    if vars(layer).get("forward", own_forward) != own_forward:
        problem = f"{path} has a forward of its own, set on the module, which uses the old weights"
        raise ValueError(f"prepack: {problem}; take it off first, and set it again after prepack")


def copy_additions(layer: nn.Module, target: nn.Module, skipped: Iterable[str]) -> None:
    """Copies a layer's attributes and tables to another module, except for the names `skipped`.

    The two modules share no table: a hook that is added to one later is not on the other.
    """
    excluded = {*skipped, *_NOT_COPIED}
    for name, value in vars(layer).items():
        if name in _TABLES:
            vars(target)[name].update({k: v for k, v in value.items() if k not in excluded})
        elif name not in excluded:
            is_bound = isinstance(value, MethodType) and value.__self__ is layer
            vars(target)[name] = MethodType(value.__func__, target) if is_bound else value
    target._non_persistent_buffers_set |= layer._non_persistent_buffers_set.difference(excluded)
    hooks: dict[int, Any] = target._load_state_dict_pre_hooks
    for key, hook in hooks.items():
        if hook.with_module:  # the hook passes its module to the user's function
            hooks[key] = type(hook)(hook.hook, target)
