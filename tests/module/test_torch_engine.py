"""Engine "torch" gives the same bits as nn.LSTM."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

STACKS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
    {"proj_size": 2, "bidirectional": True, "num_layers": 2, "dropout": 0.4},
]
every_stack = pytest.mark.parametrize("options", STACKS, ids=str)


def pair(cls=nn.LSTM, **options):
    torch.manual_seed(0)
    theirs = cls(3, 5, **options)
    ours = getattr(fastlstm, cls.__name__)(3, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    ours.engine = "torch"
    return ours, theirs


def results(module, x, hx=None):
    """Returns outputs and gradients of a call after setting the seed."""
    torch.manual_seed(1)
    output, state = module(x, hx)
    data = output.data if isinstance(output, PackedSequence) else output
    found = [data, *state]
    if torch.is_grad_enabled():
        leaf = x.data if isinstance(x, PackedSequence) else x
        loss = sum((t.float().sin().sum() for t in found), torch.zeros(()))
        found += torch.autograd.grad(loss, [leaf, *module.parameters()])
    return found


def same_bits(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@every_stack
@pytest.mark.parametrize("form", ["dense", "packed", "unbatched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_bits(options, form, dtype):
    ours, theirs = (m.to(dtype) for m in pair(**options))
    x = torch.randn(6, 3) if form == "unbatched" else torch.randn(6, 4, 3)
    x = x.to(dtype).requires_grad_()
    if form == "packed":
        lengths = torch.tensor([4, 3, 1, 1, 1, 1] if ours.batch_first else [2, 6, 5, 6])
        x = pack_padded_sequence(x, lengths, ours.batch_first, enforce_sorted=False)
    for training in (True, False):
        found = results(ours.train(training), x), results(theirs.train(training), x)
        assert same_bits(*found)
    with torch.no_grad():
        assert same_bits(results(ours, x), results(theirs, x))


def test_bits_with_a_state_of_a_cell_and_under_autocast():
    ours, theirs = pair(num_layers=2)
    x = torch.randn(6, 4, 3, requires_grad=True)
    hx = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    assert same_bits(results(ours, x, hx), results(theirs, x, hx))
    cell, known = pair(nn.LSTMCell)
    assert same_bits([*cell(x[0])], [*known(x[0])])
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits([ours(x, hx)[0]], [theirs(x, hx)[0]])
        for engine in ("torch", "reference", "auto"):
            cell.engine = engine
            assert [state.dtype for state in cell(x[0])] == [s.dtype for s in known(x[0])]
