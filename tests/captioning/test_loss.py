"""The blockwise cross-entropy equals the plain one, with gradients, for any block size."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from captioning.model import loss as module
from captioning.model.loss import linear_cross_entropy

N, H, V = 23, 7, 11


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    linear = nn.Linear(H, V, dtype=torch.float64)
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(N, dtype=torch.float64) * 2 - 0.5
    weights[3] = 0
    return hidden, linear, torch.randint(V, (N,)), weights


@pytest.mark.parametrize("block", [1, 4, 23, 100])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_equals_the_plain_cross_entropy(inputs, block, label_smoothing, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    hidden, linear, targets, weights = inputs
    smoothing = {"reduction": "none", "label_smoothing": label_smoothing}
    plain = F.cross_entropy(linear(hidden), targets, **smoothing)
    expected = (plain * weights).sum()
    loss, nll = linear_cross_entropy(hidden, linear, targets, weights, label_smoothing)
    torch.testing.assert_close(loss, expected)
    wanted = (hidden, linear.weight, linear.bias)
    unsmoothed = F.cross_entropy(linear(hidden), targets, reduction="none")
    torch.testing.assert_close(nll, unsmoothed.sum())
    assert loss.requires_grad and not nll.requires_grad
    found, gradients = (torch.autograd.grad(3 * value, wanted) for value in (loss, expected))
    torch.testing.assert_close(found, gradients)


def test_never_holds_more_than_a_few_blocks_of_scores(monkeypatch):
    """A dispatch mode sees every tensor that forward and backward make, and when it is freed."""
    monkeypatch.setattr(module, "BLOCK", 32)
    made, held = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            tensors = [t for t in _pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
            made.extend(weakref.ref(t) for t in tensors if t.numel() > linear.weight.numel())
            alive = [tensor for ref in made if (tensor := ref()) is not None]
            held.append(sum({t.untyped_storage().data_ptr(): t.numel() for t in alive}.values()))
            return out

    linear, hidden = nn.Linear(4, 500), torch.randn(384, 4, requires_grad=True)
    with Watch():
        targets = torch.randint(500, (384,))
        linear_cross_entropy(hidden, linear, targets, torch.ones(384), 0.1)[0].backward()
    assert max(held) <= 4 * 32 * 500  # all scores would be 12 blocks


def test_autocast_works_in_16_bits_and_accumulates_in_32(inputs, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    hidden, linear, targets, weights = inputs
    linear, hidden = linear.float(), hidden.detach().float().requires_grad_()
    plain = (F.cross_entropy(linear(hidden), targets, reduction="none") * weights).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll = linear_cross_entropy(hidden, linear, targets, weights.float(), 0.0)
        scores = torch.cat([linear(part) for part in hidden.chunk(5)]).float()
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(nll, F.cross_entropy(scores, targets, reduction="sum"))
    # bfloat16 keeps 8 bits: scores of about 1 are off by up to 2^-8 each.
    assert abs(loss - plain) < N * 2**-8
    loss.backward()
    assert linear.weight.grad.dtype == torch.float32
    plain_grad = torch.autograd.grad(plain, linear.weight)[0]
    assert (linear.weight.grad - plain_grad).abs().max() < 2**-4 * plain_grad.abs().max()
