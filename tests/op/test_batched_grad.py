"""Several gradients of one forward pass at once, by is_grads_batched and by vmap."""

import pytest
import torch
from samples import SAMPLES, every_route, floating, with_leaves

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
COUNT = 3

# Each way takes outputs, leaves, and COUNT gradients of each output, stacked in dimension 0. It
# returns COUNT gradients of each leaf, stacked in the same way.


def by_autograd(outputs, leaves, given, **options):
    return torch.autograd.grad(outputs, leaves, given, is_grads_batched=True, **options)


def by_vmap(outputs, leaves, given, **options):
    """vmap over the last dimension: the batch dimension of vmap need not be the first."""
    last = [g.movedim(0, -1) for g in given]
    grad = lambda *g: torch.autograd.grad(outputs, leaves, g, **options)
    return torch.func.vmap(grad, in_dims=-1)(*last)


both_ways = pytest.mark.parametrize("batched", [by_autograd, by_vmap])
keep = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}


def one_by_one(outputs, leaves, given):
    found = [torch.autograd.grad(outputs, leaves, g, **keep) for g in zip(*given, strict=True)]
    return [torch.stack(gradients) for gradients in zip(*found, strict=True)]


@every_route
@both_ways
@pytest.mark.filterwarnings("ignore:.*batching rule for aten::_pack_padded_sequence_backward")
@pytest.mark.parametrize("sample", SAMPLES[::3], ids=lambda s: s.name)
def test_batched_gradients(route, batched, sample):
    padded = with_leaves(sample.padded(device=route.device))
    outputs = sample.mask_cells(route.lstm_layer(**sample.as_layer(padded)))
    given = [torch.stack([torch.cos(k + o.detach()) for k in range(COUNT)]) for o in outputs]
    # All results and all leaves; one result and the input and states; two results and the weights.
    every = slice(None)
    for results, wanted in ((every, every), (slice(2, 3), slice(3)), (slice(2), slice(3, None))):
        call = outputs[results], floating(padded)[wanted], given[results]
        torch.testing.assert_close(list(batched(*call, **keep)), one_by_one(*call), **CLOSE)
    if route.engine != "reference" and batched is by_vmap:
        with pytest.raises(RuntimeError, match="lstm_backward: expected at least one sample"):
            batched(outputs, floating(padded), [g[:0] for g in given], **keep)
