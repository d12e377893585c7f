"""The backward op takes what the forward op saved, in any strides, and names anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import SAMPLES, Route, Sample, every_op_route
from torch import Tensor

NAMES = ("grad_output", "grad_h_n", "grad_c_n", "grad_cells", "output", "cells", "gates")
SOME = [
    s for s in SAMPLES if s.name in ("plain", "lengths_bidirectional_projection", "packed", "norms")
]


def without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda t: t.flatten(),
    "too small": lambda t: t[..., :-1],
    "too large": lambda t: torch.cat([t, t[:1]]),
    "with other dimensions": lambda t: t[None],
    "transposed": lambda t: t.transpose(-1, -2),
    "dtype": lambda t: t.to(torch.float16),
    "on meta": lambda t: t.to("meta"),
    "without memory": without_memory,
}


def arguments(route: Route, sample: Sample) -> dict[str, Any]:
    """Of the backward op, after a forward op."""
    given = sample.arguments(torch.float32, route.device)
    saved = torch.ops.fastlstm.lstm(**given, save_cells=True, save_gates=True, engine=route.engine)
    output, h_n, c_n, cells, gates = saved
    return {
        **dict(zip(NAMES, (output, h_n, c_n, cells, output, cells, gates), strict=True)),
        **given,
        "engine": route.engine,
        "input_needs_grad": True,
        "state_needs_grad": True,
    }


@every_op_route
@pytest.mark.parametrize("sample", SOME, ids=lambda s: s.name)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_bad_is_named(route: Route, sample: Sample, bad: str, name: str) -> None:
    given = arguments(route, sample)
    given[name] = BAD[bad](given[name])
    message = f"lstm: expected (the saved )?{name} (of|on|with) "
    for per_row in (False, True) if not sample.norms else (False,):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fastlstm.lstm_backward(**given, per_row=per_row)


@pytest.mark.parametrize("sample", SOME, ids=lambda s: s.name)
@pytest.mark.parametrize("bad", [*BAD, "on cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_on_meta_too(sample: Sample, bad: str, name: str) -> None:
    given = arguments(Route("auto"), sample)
    move = lambda t: t.to("meta") if isinstance(t, Tensor) else t
    meta = {n: [move(w) for w in t] if n == "weights" else move(t) for n, t in given.items()}
    torch.ops.fastlstm.lstm_backward(**meta)
    if bad in ("without memory", "on meta"):
        return
    meta[name] = given[name] if bad == "on cpu" else BAD[bad](meta[name])
    with pytest.raises(RuntimeError, match=f"lstm: expected (the saved )?{name} (of|on) "):
        torch.ops.fastlstm.lstm_backward(**meta)


@every_op_route
@pytest.mark.parametrize("sample", SOME, ids=lambda s: s.name)
def test_strides_do_not_matter(route: Route, sample: Sample) -> None:
    given = arguments(route, sample)
    expected = torch.ops.fastlstm.lstm_backward(**given)
    for name in NAMES:
        given[name] = given[name].transpose(0, -1).contiguous().transpose(0, -1)
        assert not given[name].is_contiguous()
    found = torch.ops.fastlstm.lstm_backward(**given)
    for a, b in zip([*found[:3], *found[3]], [*expected[:3], *expected[3]], strict=True):
        assert torch.equal(a, b)
