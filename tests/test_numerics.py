"""No more error than torch: each result within a small multiple of what nn.LSTM makes.

The truth is the oracle in float64 on the same, already rounded, tensors. The error of a tensor is
its root mean square deviation from the truth; nn.LSTM of the same dtype sets the scale, so that no
tolerance is picked by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import oracle
from samples import Route, every_route
from torch import Tensor, nn

import fastlstm

# How much more error than nn.LSTM is allowed. Both round at different places and sum in different
# orders, which makes either ahead by a factor of up to 1.7.
FACTOR = 2

SHAPES = [
    {"steps": 30, "batch": 4, "input_size": 16, "hidden_size": 32, "options": {}},
    {
        "steps": 12,
        "batch": 3,
        "input_size": 24,
        "hidden_size": 17,
        "options": {"bidirectional": True, "proj_size": 7},
    },
]


def results(module: nn.Module, x: Tensor, hx: tuple[Tensor, Tensor], given: list[Tensor]) -> Any:
    """Outputs and all gradients, named."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx)]
    output, (h_n, c_n) = module(leaves[0], (leaves[1], leaves[2]))
    weights = dict(module.named_parameters())
    outputs = [output, h_n, c_n]
    gradients = torch.autograd.grad(outputs, [*leaves, *weights.values()], given)
    names = ["output", "h_n", "c_n", "d input", "d h_0", "d c_0", *(f"d {w}" for w in weights)]
    return {n: t.detach() for n, t in zip(names, [*outputs, *gradients], strict=True)}


class Oracle(nn.Module):
    """The oracle on the parameters of a module, in float64."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().cpu().double()))

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> Any:
        output, h_n, c_n, _ = oracle(x, *hx, list(self.parameters()))
        return output, (h_n, c_n)


def error(found: Tensor, truth: Tensor) -> float:
    return (found.double().cpu() - truth).square().mean().sqrt().item()


@every_route
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "bidirectional_projection"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_that_of_torch(route: Route, shape: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = shape["input_size"], shape["hidden_size"]
    ours = fastlstm.LSTM(*sizes, **shape["options"], dtype=dtype, device=route.device)
    ours.engine = route.engine
    theirs = nn.LSTM(*sizes, **shape["options"], dtype=dtype, device=route.device)
    theirs.load_state_dict(ours.state_dict())

    directions = 2 if ours.bidirectional else 1
    output_size = ours.proj_size or ours.hidden_size
    batch = shape["batch"]
    shapes = [
        (shape["steps"], batch, sizes[0]),
        (directions, batch, output_size),
        (directions, batch, sizes[1]),
        (shape["steps"], batch, directions * output_size),
        (directions, batch, output_size),
        (directions, batch, sizes[1]),
    ]
    x, h_0, c_0, *given = (torch.randn(s).to(route.device, dtype) for s in shapes)

    truth = results(
        Oracle(ours),
        x.cpu().double(),
        (h_0.cpu().double(), c_0.cpu().double()),
        [g.cpu().double() for g in given],
    )
    found, scale = (results(m, x, (h_0, c_0), given) for m in (ours, theirs))

    ratios = {n: error(found[n], truth[n]) / error(scale[n], truth[n]) for n in truth}
    assert max(ratios.values()) <= FACTOR, ratios


@every_route
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_cell_state_is_float32(route: Route, dtype: torch.dtype) -> None:
    """A thousand increments that a 16-bit sum would lose one by one: c = 1 + 1024 * 2^-12."""
    zeros = {"dtype": dtype, "device": route.device}
    i, f, g, o = 20.0, 20.0, 2.0**-12, 0.0  # sigmoid(20) = 1
    output, h_n, c_n, cells = route.lstm_layer(
        input=torch.zeros(1024, 2, 1, **zeros),
        h_0=torch.zeros(1, 2, 1, **zeros),
        c_0=torch.ones(1, 2, 1, **zeros),
        weights=[
            torch.zeros(4, 1, **zeros),
            torch.zeros(4, 1, **zeros),
            torch.tensor([i, f, g, o], **zeros),
            torch.zeros(4, **zeros),
        ],
    )
    assert c_n.dtype == dtype and cells.dtype == torch.float32
    torch.testing.assert_close(c_n.float(), torch.full_like(c_n, 1.25).float(), rtol=0, atol=1e-6)
    expected = 1 + torch.arange(1, 1025, device=route.device) * 2.0**-12
    torch.testing.assert_close(cells[0, :, 0, 0], expected, rtol=0, atol=1e-5)
