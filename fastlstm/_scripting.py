"""torch.jit.script of a model whose LSTMs are ours: it compiles modules of torch.nn instead."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

_to_script: dict[nn.Module, nn.Module] = {}  # what to compile instead, until the next compilation


def prepare(module: nn.Module, instead: nn.Module) -> nn.Module:
    """What `__prepare_scriptable__` returns for a module: itself.

    torch writes what that method returns into the model, and never takes it out. So the module
    stays, and `instead` stands in its place only while torch.jit.script compiles the model, which
    is the next call of `create_script_module`.
    """
    if not _to_script:
        _wrap_the_next_compilation()
    _to_script[module] = instead
    return module


def _wrap_the_next_compilation() -> None:
    from .convert import replace_modules

    recursive: Any = torch.jit._recursive
    compile = recursive.create_script_module

    @functools.wraps(compile)
    def compile_with_torch_nn(model: nn.Module, *args: Any, **options: Any) -> Any:
        recursive.create_script_module = compile
        replaced = dict(_to_script)
        _to_script.clear()
        model = replace_modules(model, replaced)
        try:
            return compile(model, *args, **options)
        finally:
            replace_modules(model, {new: old for old, new in replaced.items()})

    recursive.create_script_module = compile_with_torch_nn
