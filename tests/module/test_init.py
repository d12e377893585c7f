"""fastlstm.init: which values it sets, and that all other values stay."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import init

STACKS = [partial(p.LSTM, 3, 64, num_layers=2, bidirectional=True) for p in (fastlstm, nn)]
CELLS = [partial(package.LSTMCell, 3, 64) for package in (fastlstm, nn)]
every_module = pytest.mark.parametrize(
    "make", STACKS + CELLS, ids=["LSTM", "nn.LSTM", "Cell", "nn.Cell"]
)


def gates(module, kind):
    """Returns the parts i, f, g and o of each parameter whose name begins with `kind`."""
    parts = [p.detach().chunk(4) for n, p in module.named_parameters() if n.startswith(kind)]
    assert len(parts) == (1 if hasattr(module, "weight_hh") else 4)
    return [list(f) for f in parts]


@every_module
def test_forget_bias(make):
    module = make()
    before = copy.deepcopy(module)
    assert init.forget_bias_(module, 1.5) is module
    for b_ih, b_hh in zip(gates(module, "bias_ih"), gates(module, "bias_hh"), strict=True):
        assert torch.equal(b_ih[1] + b_hh[1], torch.full((64,), 1.5))
    for kind, others in (("bias", (0, 2, 3)), ("weight", (0, 1, 2, 3))):
        for part in ("ih", "hh"):
            now, then = (gates(m, f"{kind}_{part}") for m in (module, before))
            pairs = [(a[k], b[k]) for a, b in zip(now, then, strict=True) for k in others]
            assert all(torch.equal(*pair) for pair in pairs)


@every_module
def test_orthogonal(make):
    module = make()
    before = copy.deepcopy(module.state_dict())
    assert init.orthogonal_(module, gain=2.0) is module
    for blocks in gates(module, "weight_hh"):
        for block in blocks:
            torch.testing.assert_close(block @ block.t(), 4 * torch.eye(64), rtol=0, atol=1e-4)
        assert not torch.equal(blocks[0], blocks[1])
    changed = {n for n, p in module.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.startswith("weight_hh")}
