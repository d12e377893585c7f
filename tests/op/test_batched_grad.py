"""Many gradients of one forward at once: autograd's batched gradients, and vmap over a backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import SAMPLES, Route, Sample, every_route, floating, with_floating
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

import fastlstm

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
COUNT = 3

# grad(outputs, leaves, gradients with COUNT in front) -> gradients with COUNT in front
Batched = Callable[..., tuple[Tensor, ...]]


def by_autograd(outputs: Any, leaves: Any, given: Any, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, leaves, given, is_grads_batched=True, **options)


def by_vmap(outputs: Any, leaves: Any, given: Any, **options: Any) -> tuple[Tensor, ...]:
    """The gradients' dimension is the last, as vmap may have it anywhere."""
    last = [g.movedim(0, -1) for g in given]
    grad = lambda *g: torch.autograd.grad(outputs, leaves, g, **options)
    return torch.func.vmap(grad, in_dims=-1)(*last)


both_ways = pytest.mark.parametrize("batched", [by_autograd, by_vmap])
keep = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}


def one_by_one(outputs: Any, leaves: Any, given: Any) -> list[Tensor]:
    each = [
        torch.autograd.grad(outputs, leaves, [g[n] for g in given], **keep) for n in range(COUNT)
    ]
    return [torch.stack(gradients) for gradients in zip(*each, strict=True)]


def traced(route: Route, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's results and the leaves that they come from."""
    padded = sample.padded(device=route.device)
    leaves = [t.clone().requires_grad_() for t in floating(padded)]
    results = route.lstm_layer(**sample.as_layer(with_floating(padded, leaves)))
    return sample.mask_cells(results), leaves


@every_route
@both_ways
@pytest.mark.filterwarnings("ignore:.*batching rule for aten::_pack_padded_sequence_backward")
@pytest.mark.parametrize("sample", SAMPLES[::3], ids=lambda s: s.name)
def test_batched_gradients(route: Route, batched: Batched, sample: Sample) -> None:
    outputs, leaves = traced(route, sample)
    given = [torch.stack([torch.cos(k + o.detach()) for k in range(COUNT)]) for o in outputs]
    # of all results with respect to all; of some with respect to the rows, and to the weights
    for results, wanted in [
        (slice(None), slice(None)),
        (slice(2, 3), slice(0, 3)),
        (slice(0, 2), slice(3, None)),
    ]:
        call = outputs[results], leaves[wanted], given[results]
        torch.testing.assert_close(list(batched(*call, **keep)), one_by_one(*call), **CLOSE)


@every_route
def test_vmap_of_vmap(route: Route) -> None:
    lstm = fastlstm.LSTM(3, 4, proj_size=2).to(route.device, torch.float64)
    lstm.engine = route.engine
    output = lstm(torch.randn(5, 2, 3, dtype=torch.float64, device=route.device))[0]
    grad = lambda g: torch.autograd.grad(output, lstm.parameters(), g, retain_graph=True)
    given = torch.randn(3, 2, *output.shape, dtype=torch.float64).to(route.device)
    expected = [g.unflatten(0, (3, 2)) for g in torch.func.vmap(grad)(given.flatten(0, 1))]
    found = torch.func.vmap(torch.func.vmap(grad), in_dims=1)(given.transpose(0, 1))
    torch.testing.assert_close(found, expected, **CLOSE)
    found = torch._vmap_internals._vmap(torch._vmap_internals._vmap(grad))(given)
    torch.testing.assert_close(found, expected, **CLOSE)
    if route.engine != "reference":
        for vmap in (torch.func.vmap, torch._vmap_internals._vmap):
            with pytest.raises((RuntimeError, ValueError), match="sample"):
                vmap(grad)(given[:0, 0])


@every_route
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_jacobians_and_hessians_of_torch(route: Route, options: dict[str, Any]) -> None:
    theirs = nn.LSTM(3, 4, **options).to(route.device, torch.float64)
    ours = fastlstm.LSTM(3, 4, **options).to(route.device, torch.float64)
    ours.load_state_dict(theirs.state_dict())
    ours.engine = route.engine
    x = torch.randn(4, 3, 3, dtype=torch.float64).to(route.device)
    found, expected = (jacobian(lambda x, m=m: m(x)[0], x, vectorize=True) for m in (ours, theirs))
    torch.testing.assert_close(found, expected)
    found, expected = (
        hessian(lambda x, m=m: m(x)[0].sin().sum(), x, vectorize=True) for m in (ours, theirs)
    )
    torch.testing.assert_close(found, expected)
