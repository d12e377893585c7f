"""A sequence may be given in parts, and a seed decides every bit."""

import pytest
import torch
from samples import every_module_route
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def make(route, **options):
    torch.manual_seed(0)
    options = {"num_layers": 2, "dtype": torch.float64} | options
    lstm = fastlstm.LSTM(3, 5, **options, device=route.device)
    lstm.engine = route.engine
    return lstm


def draw(route, *shape):
    return torch.randn(*shape, dtype=torch.float64).to(route.device)


def gradients(lstm):
    """Returns the gradients of the parameters and clears them."""
    found = [p.grad for p in lstm.parameters()]
    lstm.zero_grad()
    return found


@every_module_route
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_parts_give_the_results_of_the_whole(route, chunk):
    """Results and gradients are those of one call with the whole sequence."""
    lstm, x = make(route), draw(route, 7, 2, 3)
    expected, last = lstm(x)
    (expected.sin().sum() + last[1].sum()).backward()
    whole = gradients(lstm)
    outputs, state = [], None
    for part in x.split(chunk):
        output, state = lstm(part, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), expected, **CLOSE)
    torch.testing.assert_close(state, last, **CLOSE)
    (torch.cat(outputs).sin().sum() + state[1].sum()).backward()
    torch.testing.assert_close(gradients(lstm), whole, **CLOSE)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_module_route
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ["dense", "lengths", "packed"])
def test_a_seed_decides_every_bit(route, kind):
    """Two calls after the same seed give the same results and gradients, dropout included.

    The initial state is given, because nn.LSTM once differed then (pytorch#104697).
    """
    lstm = make(route, num_layers=3, dropout=0.5, bidirectional=True, dtype=torch.float32)
    x = draw(route, 20, 7, 3).float()
    hx = tuple(draw(route, 6, 7, 5).float() for _ in range(2))
    lengths = torch.tensor([20, 17, 9, 9, 4, 2, 1])

    def run(seed):
        torch.manual_seed(seed)
        if kind == "packed":
            output, (h_n, c_n) = lstm(pack_padded_sequence(x, lengths), hx)
            output = output.data
        else:
            output, (h_n, c_n) = lstm(x, hx, lengths=lengths if kind == "lengths" else None)
        (output.sin().sum() + h_n.sum() + c_n.sum()).backward()
        return [output.detach(), h_n.detach(), c_n.detach(), *gradients(lstm)]

    if route.engine == "torch" and kind == "lengths":
        pytest.skip("'torch' serves lengths in two directions without h_0 and c_0 only")
    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[:3], other[:3], strict=True))
