"""Support for torch.fx: a module of ours is one node of its graphs, like nn.LSTM."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

Proxy: Any = torch.fx.Proxy  # the type of an input while torch.fx traces a model


def as_node(module: nn.Module, input: Any, **options: Any) -> tuple[Any, Any]:
    """Returns the call of a module as a node of the graph that is being traced."""
    cls = type(module)
    if not cls.forward.__module__.startswith("fastlstm."):
        problem = f"torch.fx cannot trace the forward that {cls.__qualname__} overrides"
        raise TypeError(f"{problem}; use a Tracer whose is_leaf_module returns True for it")
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    target = input.tracer.path_of_module(module)
    return cast(tuple[Any, Any], input.tracer.create_proxy("call_module", target, (input,), given))
