"""torch.func: vmap and grad call the op; forward-mode derivatives need the reference."""

import functools

import pytest
import samples
import torch
from samples import Route, draw, every_route
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence

import fastlstm
from fastlstm import _build, reference

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
make = functools.partial(samples.make, num_layers=2, bidirectional=True)


@pytest.fixture
def lstm():
    return make(Route("auto"))


def loss(lstm, weights, x, **arguments):
    output, (h_n, c_n), *cells = functional_call(lstm, weights, (x,), arguments)
    total = output.sin().sum() + h_n.cos().sum() + c_n.square().sum()
    return total + sum(c.tanh().square().sum() for c in cells)


@every_route
@pytest.mark.parametrize("kind", ["plain", "lengths", "reset", "state", "cells", "rows"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 1, "bidirectional": False, "bias": False}])
def test_per_sample_gradients(route, kind, options):
    lstm = make(route, **options)
    samples, steps, states = 5, 4, lstm.num_layers * (2 if lstm.bidirectional else 1)
    rows = (2,) if kind == "rows" else ()  # each sample is a batch of its own
    given = {}
    tensors = [draw(route, samples, steps, *rows, 3)]
    if kind == "lengths":
        given["lengths"] = torch.tensor([4, 1, 0, 3, 2], device=route.device)
        tensors[0][1, 1:] = torch.nan  # padding is never read
    elif kind == "reset":
        given["reset"] = draw(route, samples, steps) > 0.5
    if kind in ("state", "lengths"):  # in reverse, h_0 comes before the last real step
        tensors += [draw(route, samples, states, 4) for _ in range(2)]
    weights = {n: p.detach() for n, p in lstm.named_parameters()}

    def sample_loss(weights, tensors, given):
        more = {"return_cell_states": True} if kind == "cells" else {}
        hx = {"hx": tuple(tensors[1:])} if tensors[1:] else {}
        return loss(lstm, weights, tensors[0], **given, **hx, **more)

    found = vmap(grad(sample_loss, argnums=(0, 1)), in_dims=(None, 0, 0))(weights, tensors, given)

    for k in range(samples):
        leaves = {n: p.clone().requires_grad_() for n, p in weights.items()}
        sample_leaves = [t[k].clone().requires_grad_() for t in tensors]
        sample_loss(leaves, sample_leaves, {n: t[k] for n, t in given.items()}).backward()
        found_leaves = *(found[0][name] for name in leaves), *found[1]
        for tensor, leaf in zip(found_leaves, (*leaves.values(), *sample_leaves), strict=True):
            torch.testing.assert_close(tensor[k], leaf.grad, **CLOSE)


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="without kernels the reference serves")
def test_vmap_is_one_call(lstm, monkeypatch):
    """vmap over samples calls each op once for a layer; vmap over weights once for each member."""
    monkeypatch.setattr(reference, "lstm_layer", None)  # so that a call of it would be an error
    calls = []
    for name in ("lstm", "lstm_backward"):
        op = getattr(torch.ops.fastlstm, name)
        counted = lambda *a, _op=op, **k: calls.append(a[9:13]) or _op(*a, **k)
        monkeypatch.setattr(torch.ops.fastlstm, name, counted)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    weights = {n: p.detach() for n, p in lstm.named_parameters()}
    vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(None, 0))(weights, x)
    assert [[g is None for g in given] for given in calls[2:]] == [[False] * 3 + [True]] * 2
    ensemble = {n: torch.stack([w] * 3) for n, w in weights.items()}
    vmap(grad(lambda w: loss(lstm, w, x)))(ensemble)
    assert len(calls) == 4 + 3 * 4


@every_route
def test_gradients_of_an_ensemble(route):
    lstm, x = make(route), draw(route, 4, 2, 3)
    stacked = {n: torch.stack([p.detach(), 2 * p.detach()], 1) for n, p in lstm.named_parameters()}
    found = vmap(grad(lambda w: loss(lstm, w, x)), in_dims=1)(stacked)
    both = vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(1, 1))(stacked, x)
    for k in range(2):
        for gradients, given in ((found, x), (both, x[:, k])):
            leaves = {n: w.select(1, k).clone().requires_grad_() for n, w in stacked.items()}
            loss(lstm, leaves, given).backward()
            member = {n: g[k] for n, g in gradients.items()}
            torch.testing.assert_close(member, {n: w.grad for n, w in leaves.items()}, **CLOSE)


@every_route
def test_vmap_of_vmap(route):
    lstm, x = make(route), draw(route, 2, 3, 4, 3)
    weights = {n: p.detach() for n, p in lstm.named_parameters()}
    per_sample = grad(lambda w, x: loss(lstm, w, x))
    found = vmap(vmap(per_sample, in_dims=(None, 0)), in_dims=(None, 0))(weights, x)
    flat = vmap(per_sample, in_dims=(None, 0))(weights, x.flatten(0, 1))
    torch.testing.assert_close({n: g.flatten(0, 1) for n, g in found.items()}, flat, **CLOSE)


@every_route
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_vmap_over_any_dimension(route, dim):
    lstm = make(route, num_layers=1, bidirectional=False)
    x, h_0, c_0 = draw(route, 4, 2, 3, 5), draw(route, 1, 2, 4), draw(route, 1, 2, 4, 5)
    found = vmap(lambda x: lstm(x)[0], in_dims=dim, out_dims=1)(x.movedim(-1, dim))
    torch.testing.assert_close(found, torch.stack([lstm(x[..., k])[0] for k in range(5)], 1))
    found = vmap(lambda c: lstm(x[..., 0], (h_0, c))[0], in_dims=dim)(c_0.movedim(-1, dim))
    each = [lstm(x[..., 0], (h_0, c_0[..., k].contiguous()))[0] for k in range(5)]
    torch.testing.assert_close(found, torch.stack(each))


@every_route
def test_gradients_outside_of_vmap(route):
    lstm, x = make(route), draw(route, 5, 4, 3)
    vmap(lambda x: lstm(x)[0])(x).sin().sum().backward()
    gradients = {n: p.grad for n, p in lstm.named_parameters()}
    lstm.zero_grad()
    lstm(x.transpose(0, 1))[0].sin().sum().backward()
    expected = {n: p.grad for n, p in lstm.named_parameters()}
    torch.testing.assert_close(gradients, expected, **CLOSE)


@every_route
def test_second_derivatives_with_every_option(route):
    lstm, x = make(route, num_layers=1), draw(route, 3, 2, 3)
    reset = torch.tensor([[0, 0], [1, 0], [0, 1]], device=route.device).bool()
    lengths = torch.tensor([3, 1], device=route.device)
    given = {"lengths": lengths, "reset": reset, "return_cell_states": True}
    weights = {n: p.detach() for n, p in lstm.named_parameters()}
    found = jacrev(jacrev(lambda x: loss(lstm, weights, x, **given)))(x)
    lstm.engine = "reference"
    expected = hessian(lambda x: loss(lstm, weights, x, **given))(x)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["proj_size", "recurrent_dropout", "packed", "autocast"])
def test_vmap_that_the_reference_serves(kind):
    options = {kind: 1} if kind in ("proj_size", "recurrent_dropout") else {}
    lstm = make(Route("auto"), **options).float()
    form = (lambda x: PackedSequence(x, torch.tensor([2, 2]))) if kind == "packed" else lambda x: x
    loss = lambda x: lstm(form(x))[1][0].float().square().sum()
    leaf = torch.randn(5, 4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = vmap(grad(loss), randomness="same")(leaf.detach())
        lstm.engine = "reference"
        sum(map(loss, leaf)).backward()
    torch.testing.assert_close(found, leaf.grad)


def test_jacobians(lstm):
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    reverse, forward = (jac(lambda x: lstm(x)[0])(x) for jac in (jacrev, jacfwd))
    output, pull_back = vjp(lambda x: lstm(x)[0], x)
    transposed = jacfwd(lambda g: pull_back(g)[0])(output)
    expected = torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x)
    for found in (reverse, forward, transposed.permute(3, 4, 5, 0, 1, 2)):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_functionalize(lstm):
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    for function in (lambda x: lstm(x)[0], vmap(lambda x: lstm(x)[0])):
        torch.testing.assert_close(functionalize(function)(x), function(x), **CLOSE)


def test_transforms_compile(lstm):
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    weights = {n: p.detach() for n, p in lstm.named_parameters()}
    per_sample = lambda w, x: vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(None, 0))(w, x)
    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weights, x), per_sample(weights, x), **CLOSE)
    torch._dynamo.reset()


def test_forward_mode_without_torch_func():
    """The reference computes the tangent, and an engine by name refuses the call."""
    lstm, (x, tangent) = make(Route("auto"), num_layers=1), draw(Route("auto"), 2, 5, 4, 3)
    expected = jvp(lambda x: lstm(x)[0], (x,), (tangent,))[1]
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        found = forward_ad.unpack_dual(lstm(dual)[0]).tangent
        torch.testing.assert_close(found, expected, **CLOSE)
        for lstm.engine in ("stepwise", "torch"):
            with pytest.raises(RuntimeError, match="serve.*(no forward-mode|is not available)"):
                lstm(dual)


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), fastlstm.LSTM(3, 4)], ids=["torch", "fastlstm"])
def test_the_jacobian_of_an_empty_batch(module):
    x = torch.zeros(2, 0, 3)
    assert jacrev(lambda x: module(x)[0])(x).shape == (2, 0, 4, 2, 0, 3)
    assert jacrev(lambda x: module(x)[1][1])(x).shape == (1, 0, 4, 2, 0, 3)
