"""LayerNormLSTM as a module; its equations are among the samples of test_layer.py."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from oracle import oracle
from samples import Route, every_route
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def make(route: Route, **options: Any) -> fastlstm.LayerNormLSTM:
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "device": route.device} | options
    lstm = fastlstm.LayerNormLSTM(3, 4, **options)
    lstm.engine = route.engine
    with torch.no_grad():
        for name, p in lstm.named_parameters():
            if name.startswith(("gain_", "bias_c_")):
                p += torch.randn_like(p) / 4
    return lstm


def draw(route: Route, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(route.device)


@every_route
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_two_bidirectional_layers(route: Route, bias: bool, proj_size: int) -> None:
    lstm = make(route, num_layers=2, bidirectional=True, bias=bias, proj_size=proj_size)
    x, P = draw(route, 5, 2, 3), proj_size or 4
    hx = draw(route, 4, 2, P), draw(route, 4, 2, 4)
    output, (h_n, c_n) = lstm(x, hx)
    weights = [p.detach().cpu() for p in lstm._flat_weights]
    half = len(weights) // 2
    y, h, c = x.cpu(), *(s.cpu() for s in hx)
    first = oracle(y, h[:2], c[:2], weights[:half])
    second = oracle(first[0], h[2:], c[2:], weights[half:])
    torch.testing.assert_close(output.cpu(), second[0], **EXACT)
    torch.testing.assert_close(h_n.cpu(), torch.cat([first[1], second[1]]), **EXACT)
    torch.testing.assert_close(c_n.cpu(), torch.cat([first[2], second[2]]), **EXACT)


@every_route
def test_lengths_and_packing(route: Route) -> None:
    lstm, x, lengths = make(route), draw(route, 5, 3, 3), torch.tensor([5, 3, 1])
    output, state = lstm(x, lengths=lengths)
    packed, packed_state = lstm(pack_padded_sequence(x, lengths))
    torch.testing.assert_close(pad_packed_sequence(packed)[0], output, **EXACT)
    torch.testing.assert_close(packed_state, state, **EXACT)


@every_route
def test_a_scale_of_the_weights_does_not_matter(route: Route) -> None:
    """What normalization is for; also that W_ih x and W_hh h have a norm each."""
    lstm, x = make(route), draw(route, 5, 3, 3)
    expected = lstm(x)[0]
    with torch.no_grad():
        lstm.weight_ih_l0 *= 100
        lstm.weight_hh_l0 *= 1000
    torch.testing.assert_close(lstm(x)[0], expected, rtol=1e-2, atol=1e-2)


def test_parameters() -> None:
    torch.manual_seed(0)
    lstm = fastlstm.LayerNormLSTM(3, 4, 2, bidirectional=True, proj_size=2)
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    found = dict(lstm.named_parameters())
    for name, p in plain.named_parameters():
        assert torch.equal(found.pop(name), p)
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    sizes = {"gain_ih": 16, "gain_hh": 16, "gain_c": 4, "bias_c": 4}
    assert list(found) == [f"{name}_{suffix}" for suffix in suffixes for name in sizes]
    for name, p in found.items():
        value = 0 if name.startswith("bias") else 1
        assert torch.equal(p, torch.full((sizes[name.split("_l")[0]],), float(value))), name


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies(way: str) -> None:
    lstm = make(Route("auto"), num_layers=2)
    if way == "state_dict":
        twin = fastlstm.LayerNormLSTM(3, 4, 2, dtype=torch.float64)
        twin.load_state_dict(lstm.state_dict())
    else:
        twin = copy.deepcopy(lstm) if way == "deepcopy" else pickle.loads(pickle.dumps(lstm))
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    assert torch.equal(twin(x)[0], lstm(x)[0])
    twin.reset_parameters()
    assert torch.equal(twin.gain_c_l1, torch.ones_like(twin.gain_c_l1))
    assert not torch.equal(twin(x)[0], lstm(x)[0])
    assert twin.float()(x.float())[0].dtype == torch.float32


def test_it_is_not_converted() -> None:
    lstm = fastlstm.LayerNormLSTM(3, 4)
    with pytest.warns(UserWarning, match="stays as it is: its class LayerNormLSTM derives"):
        assert fastlstm.convert(lstm, to="torch") is lstm


@every_route
def test_compiles(route: Route) -> None:
    torch._dynamo.reset()
    lstm, x = make(route, num_layers=2), draw(route, 5, 3, 3)
    compiled = torch.compile(lstm, backend="aot_eager", fullgraph=route.engine != "reference")
    results = []
    for module in (compiled, lstm):
        lstm.zero_grad()
        output, _ = module(x)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in lstm.parameters())])
    torch.testing.assert_close(*results, **EXACT)


@every_route
def test_autocast(route: Route) -> None:
    lstm = make(route, dtype=torch.float32, num_layers=2)
    x = draw(route, 5, 3, 3).float()
    exact = lstm(x)[0]
    with torch.autocast(route.device, torch.bfloat16):
        found = lstm(x)[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() <= 2**-5 * exact.norm()
