"""LayerNormLSTM as a module. op/test_layer.py tests its equations."""

import pytest
import torch
from oracle import oracle
from samples import draw, every_route, make
from torch import nn

import fastlstm

EXACT = {"rtol": 1e-11, "atol": 1e-12}


@every_route
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_two_bidirectional_layers(route, bias, proj_size):
    options = {"num_layers": 2, "bidirectional": True, "bias": bias, "proj_size": proj_size}
    lstm = make(route, fastlstm.LayerNormLSTM, **options)
    with torch.no_grad():
        for name, p in lstm.named_parameters():
            if name.startswith(("gain_", "bias_c_")):
                p += torch.randn_like(p) / 4
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


@pytest.mark.parametrize("anew", [False, True])
def test_parameters(anew):
    torch.manual_seed(0)
    lstm = fastlstm.LayerNormLSTM(3, 4, 2, bidirectional=True, proj_size=2)
    torch.manual_seed(0)
    if anew:
        lstm.reset_parameters()
        torch.manual_seed(0)
    plain = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    parameters = dict(lstm.named_parameters())
    for name, p in plain.named_parameters():
        assert torch.equal(parameters.pop(name), p)
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    sizes = {"gain_ih": 16, "gain_hh": 16, "gain_c": 4, "bias_c": 4}
    assert list(parameters) == [f"{name}_{suffix}" for suffix in suffixes for name in sizes]
    for name, p in parameters.items():
        value = 0 if name.startswith("bias") else 1
        assert torch.equal(p, torch.full((sizes[name.split("_l")[0]],), float(value))), name
