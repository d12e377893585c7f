"""The functions of the extension that modules call in place of torch.ops: the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samples import SAMPLES, Sample
from torch import Tensor

from fastlstm import _build

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")

SHORT = [
    s
    for s in SAMPLES
    if s.name in ("plain", "one_step", "projection", "bidirectional", "lengths", "reset", "packed")
]


def call(sample: Sample, grad: bool, state: bool = True) -> list[Any]:
    """The arguments of `_C.lstm`, as leaves if they are to have gradients."""
    given = sample.arguments(torch.float32)
    leaf = lambda t: t.clone().requires_grad_(grad)
    h_0, c_0 = (leaf(given[n]) if state else None for n in ("h_0", "c_0"))
    weights = [leaf(w) for w in given["weights"]]
    options = [given[n] for n in ("batch_sizes", "lengths", "reset", "h_mask")]
    return [leaf(given["input"]), h_0, c_0, weights, given["layout"], *options, True, "auto"]


def gradients(results: Any, arguments: list[Any]) -> tuple[Tensor, ...]:
    leaves = [t for t in (*arguments[:3], *arguments[3]) if t is not None]
    return torch.autograd.grad(sum(r.square().sum() for r in results[:3]), leaves)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("sample", SHORT, ids=lambda s: s.name)
def test_it_is_the_op(sample: Sample, grad: bool) -> None:
    arguments = call(sample, grad)
    found = _build.library.lstm(*arguments)
    *tensors, save_cells, engine = arguments
    expected = torch.ops.fastlstm.lstm(*tensors, save_cells, False, engine)
    assert all(map(torch.equal, found, expected))
    assert _build.library.lstm(*tensors, False, engine)[3] is None
    if grad:
        assert all(map(torch.equal, gradients(found, arguments), gradients(expected, arguments)))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("sample", SHORT, ids=lambda s: s.name)
def test_a_missing_state_is_zeros(sample: Sample, grad: bool) -> None:
    arguments, without = call(sample, grad), call(sample, grad, state=False)
    arguments[1:3] = [torch.zeros_like(t) for t in arguments[1:3]]
    found, expected = (_build.library.lstm(*given) for given in (without, arguments))
    assert all(map(torch.equal, found, expected))
    if grad:
        arguments[1:3] = None, None  # which have no gradient
        assert all(map(torch.equal, gradients(found, without), gradients(expected, arguments)))


@pytest.mark.parametrize("grad", [False, True])
def test_a_cell(grad: bool) -> None:
    x, _, _, weights, layout, *_ = call(SHORT[0], grad)
    rows = x[0].detach().requires_grad_(grad)
    zeros = torch.zeros(len(rows), 4)
    h, c = _build.library.lstm_cell(rows, None, None, weights, layout, "auto")
    for state in ((zeros, zeros), (h.detach(), c.detach())):
        found = _build.library.lstm_cell(rows, *state, weights, layout, "auto")
        given = (rows[None], *(s[None] for s in state), weights, layout)
        _, *expected = torch.ops.fastlstm.lstm(*given)[:3]
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b[0]) and a.is_contiguous() and not a._is_view()
    assert h.requires_grad == grad


def test_what_would_see_the_call_sees_it() -> None:
    """A dispatch mode, autocast and a profiler, also where no gradient is recorded."""
    arguments = call(SHORT[0], False)
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        _build.library.lstm(*arguments)
    assert torch.ops.fastlstm.lstm.default in seen
    with torch.autocast("cpu", torch.bfloat16):
        assert _build.library.lstm(*arguments)[0].dtype == torch.bfloat16
    with torch.profiler.profile() as profile:
        _build.library.lstm(*arguments)
    assert "fastlstm::lstm" in {event.name for event in profile.events()}


@pytest.mark.parametrize(
    "place, wrong, message",
    [
        (0, 3, "argument 0: expected a Tensor, got int"),
        (1, "x", "argument 1: expected a Tensor, got str"),
        (3, 4, "argument 3: expected a list of Tensors, got int"),
        (3, [None], "argument 3: expected a Tensor, got NoneType"),
        (4, None, "argument 4: expected a str, got NoneType"),
        (9, 1, "argument 9: expected a bool, got int"),
    ],
)
def test_arguments_of_other_kinds(place: int, wrong: Any, message: str) -> None:
    arguments = call(SHORT[0], False)
    arguments[place] = wrong
    with pytest.raises(TypeError, match=message):
        _build.library.lstm(*arguments)


def test_a_state_by_halves_and_too_few_arguments() -> None:
    arguments = call(SHORT[0], False)
    with pytest.raises(RuntimeError, match="h_0 and c_0, or None for both, got one of them"):
        _build.library.lstm(arguments[0], None, *arguments[2:])
    with pytest.raises(TypeError, match="expected 11 arguments, got 10"):
        _build.library.lstm(*arguments[:10])
