"""torch.func transforms and forward-mode differentiation, which go by the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastlstm

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def lstm() -> fastlstm.LSTM:
    torch.manual_seed(0)
    return fastlstm.LSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)


def loss(lstm: fastlstm.LSTM, weights: dict[str, Tensor], x: Tensor, **arguments: Any) -> Tensor:
    output, (h_n, c_n) = functional_call(lstm, weights, (x,), arguments)
    return output.sin().sum() + h_n.cos().sum() + c_n.square().sum()


@pytest.mark.parametrize("with_lengths", [False, True])
def test_per_sample_gradients(lstm: fastlstm.LSTM, with_lengths: bool) -> None:
    x = torch.randn(5, 4, 3, dtype=torch.float64)  # five samples, unbatched
    lengths = torch.tensor([4, 1, 0, 3, 2])
    weights = {n: p.detach() for n, p in lstm.named_parameters()}

    def one(weights: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
        return loss(lstm, weights, x, lengths=length if with_lengths else None)

    found = vmap(grad(one), in_dims=(None, 0, 0))(weights, x, lengths)

    for k in range(5):
        lstm.zero_grad()
        leaves = dict(lstm.named_parameters())
        one(leaves, x[k], lengths[k]).backward()
        for name, parameter in leaves.items():
            torch.testing.assert_close(found[name][k], parameter.grad, **CLOSE)


def test_vmap_over_an_ensemble(lstm: fastlstm.LSTM) -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    stacked = {n: torch.stack([p.detach(), 2 * p.detach()]) for n, p in lstm.named_parameters()}
    found = vmap(lambda w: functional_call(lstm, w, (x,))[0])(stacked)
    for k in range(2):
        alone = functional_call(lstm, {n: w[k] for n, w in stacked.items()}, (x,))[0]
        torch.testing.assert_close(found[k], alone, **CLOSE)


def test_jacobians(lstm: fastlstm.LSTM) -> None:
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    reverse, forward = (jac(lambda x: lstm(x)[0])(x) for jac in (jacrev, jacfwd))
    expected = torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x)
    torch.testing.assert_close(reverse, expected, **CLOSE)
    torch.testing.assert_close(forward, expected, **CLOSE)


def test_jvp_is_the_transpose_of_vjp(lstm: fastlstm.LSTM) -> None:
    x, tangent = (torch.randn(3, 2, 3, dtype=torch.float64) for _ in range(2))
    output, pushed = jvp(lambda x: lstm(x)[0], (x,), (tangent,))
    _, pull = vjp(lambda x: lstm(x)[0], x)
    cotangent = torch.randn_like(output)
    torch.testing.assert_close(
        (pushed * cotangent).sum(), (pull(cotangent)[0] * tangent).sum(), **CLOSE
    )


def test_hessian_vector_product(lstm: fastlstm.LSTM) -> None:
    """The op's double backward gives what the transforms give by the reference."""
    x, v = (torch.randn(2, 1, 3, dtype=torch.float64) for _ in range(2))
    weights = {n: p.detach() for n, p in lstm.named_parameters()}

    def function(x: Tensor) -> Tensor:
        return loss(lstm, weights, x)

    expected = torch.tensordot(hessian(function)(x), v, dims=3)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (found,) = torch.autograd.grad((first * v).sum(), leaf)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_forward_mode_without_transforms(lstm: fastlstm.LSTM) -> None:
    x, tangent = (torch.randn(3, 2, 3, dtype=torch.float64) for _ in range(2))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(lstm(dual)[0]).tangent
    expected = jvp(lambda x: lstm(x)[0], (x,), (tangent,))[1]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_cell(lstm: fastlstm.LSTM) -> None:
    cell = fastlstm.LSTMCell(3, 4, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    found = vmap(lambda x: cell(x)[0])(x)
    torch.testing.assert_close(found, cell(x)[0], **CLOSE)


def test_transforms_compile(lstm: fastlstm.LSTM) -> None:
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    weights = {n: p.detach() for n, p in lstm.named_parameters()}

    def per_sample(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(None, 0))(weights, x)

    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weights, x), per_sample(weights, x), **CLOSE)
    torch._dynamo.reset()


def test_a_forced_engine_says_that_it_cannot(lstm: fastlstm.LSTM) -> None:
    from fastlstm import _build

    lstm.engine = "stepwise"
    reason = "does not support torch.func" if _build.has_kernels("cpu") else "not available"
    with pytest.raises(RuntimeError, match=f"'stepwise' cannot serve this call.*{reason}"):
        vmap(lambda x: lstm(x)[0])(torch.randn(5, 4, 3, dtype=torch.float64))
