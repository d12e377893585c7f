"""Rounding errors: each result has at most a small multiple of the error of nn.LSTM."""

import copy

import pytest
import torch
from op_call import MAX_ERROR_RATIO
from oracle import oracle
from samples import every_op_route, every_route
from torch import nn

import fastlstm

# Steps, batch, sizes of the input and of the state, and options. The last shape is so large that
# float32 may be multiplied on AMX, as sums of bfloat16.
SHAPES = [
    (30, 4, 16, 32, {}),
    (12, 3, 24, 17, {"bidirectional": True, "proj_size": 7}),
    (6, 64, 40, 256, {}),
]


def results(module, x, hx, given):
    """Returns outputs and all gradients by name; `given` are the gradients of the outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx)]
    output, (h_n, c_n) = module(leaves[0], (leaves[1], leaves[2]))
    weights = dict(module.named_parameters())
    outputs = [output, h_n, c_n]
    gradients = torch.autograd.grad(outputs, [*leaves, *weights.values()], given)
    names = ["output", "h_n", "c_n", "d input", "d h_0", "d c_0", *(f"d {w}" for w in weights)]
    return {n: t.detach() for n, t in zip(names, [*outputs, *gradients], strict=True)}


class Oracle(nn.Module):
    def __init__(self, module):
        super().__init__()
        for name, parameter in module.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().cpu().double()))

    def forward(self, x, hx):
        output, h_n, c_n, _ = oracle(x, *hx, list(self.parameters()))
        return output, (h_n, c_n)


def error(found, truth):  # the truth is the oracle in float64 of the same tensors
    return (found.double().cpu() - truth).square().mean().sqrt().item()


@every_route
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "bidirectional_projection", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_against_nn_lstm(route, shape, dtype):
    torch.manual_seed(0)
    T, B, I, H, options = shape
    theirs = nn.LSTM(I, H, **options, dtype=dtype, device=route.device)
    ours = fastlstm.convert(copy.deepcopy(theirs))
    ours.engine = route.engine
    D, P = 1 + ours.bidirectional, ours.proj_size or H
    state = (D, B, P), (D, B, H)
    shapes = (T, B, I), *state, (T, B, D * P), *state
    x, h_0, c_0, *given = (torch.randn(s).to(route.device, dtype) for s in shapes)
    wide, *wide_hx = (t.cpu().double() for t in (x, h_0, c_0))
    truth = results(Oracle(ours), wide, wide_hx, [g.cpu().double() for g in given])
    found, expected = (results(m, x, (h_0, c_0), given) for m in (ours, theirs))
    ratios = {n: error(found[n], truth[n]) / error(expected[n], truth[n]) for n in truth}
    assert all(r <= MAX_ERROR_RATIO for r in ratios.values()), ratios


@every_route
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_cell_state_is_float32(route, dtype):
    """c grows by 2^-12 in each of 1,024 steps. In 16 bits every increment would be lost."""
    i, f, g, o = 20.0, 20.0, 2.0**-12, 0.0  # sigmoid(20) = 1
    zeros = lambda *shape: torch.zeros(*shape, dtype=dtype, device=route.device)
    bias = torch.tensor([i, f, g, o]).to(zeros(4))
    weights = [zeros(4, 1), zeros(4, 1), bias, zeros(4)]
    state = {"h_0": zeros(1, 2, 1), "c_0": zeros(1, 2, 1) + 1}
    _, _, c_n, cells = route.lstm_layer(input=zeros(1024, 2, 1), **state, weights=weights)
    assert c_n.dtype == dtype and cells.dtype == torch.float32
    torch.testing.assert_close(c_n.float(), torch.full_like(c_n, 1.25).float(), rtol=0, atol=1e-6)
    expected = 1 + torch.arange(1, 1025, device=route.device) * 2.0**-12
    torch.testing.assert_close(cells[0, :, 0, 0], expected, rtol=0, atol=1e-5)


# Pre-activations at which the gates are saturated.
GRID = {
    torch.float32: [-1e30, -1e4, -104, -100, -89, -88.5, -88, -87.5, -87.3, -87.1, -87.0],
    torch.float64: [-1e300, -1e4, -746, -745, -720, -710, -709.5, -709, -708.5],
}
GRID[torch.bfloat16] = GRID[torch.float16] = GRID[torch.float32]


def gates_of(route, values, dtype):
    """Returns i, f, g and o as [4, len(values)], with the values as their pre-activations."""
    bias, size = torch.tensor(values * 4, dtype=dtype, device=route.device), len(values)
    zeros = bias.new_zeros
    weights = [zeros(4 * size, 1), zeros(4 * size, size), bias, zeros(4 * size)]
    state = zeros(1, 1, size)
    options = {"save_gates": True, "engine": route.engine}
    found = torch.ops.fastlstm.lstm(zeros(1, 1, 1), state, state, weights, **options)
    return found[4].view(4, size)


@every_op_route
@pytest.mark.parametrize("dtype", GRID, ids=str)
def test_saturated_gates_are_exact(route, dtype):
    """Far from zero, gates are exactly 0 or 1, and g is -1 or 1: no gate is subnormal."""
    shut = GRID[dtype]
    i, f, g, o = gates_of(route, [*shut, *(-x for x in shut)], dtype)
    for gate in (i, f, o):
        assert torch.equal(gate, torch.tensor([0.0, 1.0]).repeat_interleave(len(shut)).to(gate))
    assert torch.equal(g, torch.tensor([-1.0, 1.0]).repeat_interleave(len(shut)).to(gate))


@every_op_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gates_before_saturation(route, dtype):
    """The relative error of a gate that is nearly shut is |x| times the relative error of x."""
    info = torch.finfo(dtype)
    lowest = 86.95 if dtype == torch.float32 else 708.0
    x = torch.linspace(-lowest, lowest, 1001, dtype=dtype)
    i, f, g, o = gates_of(route, x.tolist(), dtype)
    assert torch.equal(i, f) and torch.equal(i, o)
    assert (i >= info.tiny).all() and (i <= 1).all()
    wide = x.double().to(route.device)
    error = (i.double() / wide.sigmoid() - 1).abs()
    assert (error <= (8 + wide.abs()) * info.eps).all()
    torch.testing.assert_close(g.double(), wide.tanh(), rtol=8 * info.eps, atol=0)


@every_op_route
@pytest.mark.parametrize("gate", ["i", "f", "o"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shut_gates_give_no_subnormal_numbers(route, gate, dtype):
    """If a gate is shut, no result is subnormal, and gradients are zero where nn.LSTM's are."""
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 20, dtype=dtype, device=route.device)
    rows = slice("ifgo".index(gate) * 20, ("ifgo".index(gate) + 1) * 20)
    with torch.no_grad():
        theirs.bias_ih_l0[rows] -= 100 if dtype == torch.float32 else 800
    ours = fastlstm.convert(copy.deepcopy(theirs))
    ours.engine = route.engine
    shapes = (6, 4, 3), (6, 4, 20), (1, 4, 20), (1, 4, 20)
    x, d_output, *hx = (torch.randn(s, dtype=dtype, device=route.device) for s in shapes)
    found, expected = (results(m, x, hx, [d_output, *hx]) for m in (ours, theirs))
    for name, result in found.items():
        assert not ((result != 0) & (result.abs() < torch.finfo(dtype).tiny)).any(), name
        assert torch.equal(result == 0, expected[name] == 0), name
    assert not found["d weight_ih_l0"][rows].any()


@every_route
@pytest.mark.parametrize("where", ["input", "gradient"])
@pytest.mark.parametrize("steps", [1, 3])
def test_nan_spreads_as_in_nn_lstm(route, where, steps):
    """The gradient of W_hh is NaN too, although h_0 is zero: 0 * NaN = NaN."""
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 20, device=route.device)
    ours = fastlstm.convert(copy.deepcopy(theirs))
    ours.engine = route.engine
    x = torch.randn(steps, 4, 3, device=route.device)
    given = [torch.randn(steps, 4, 20, device=route.device), *torch.randn(2, 1, 4, 20).to(x)]
    (x if where == "input" else given[0])[0, 1] = torch.nan
    zeros = x.new_zeros(1, 4, 20)
    found, expected = (results(m, x, (zeros, zeros), given) for m in (ours, theirs))
    for name, result in found.items():
        assert torch.equal(result.isnan(), expected[name].isnan()), name
    assert found["d weight_hh_l0"].isnan().any()
