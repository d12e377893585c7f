"""Many gradients of one forward at once: autograd's batched gradients, and vmap over a backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from samples import (
    LARGE_SAMPLES,
    ROUTES_IN_BRIEF,
    SAMPLES,
    Route,
    Sample,
    every_op_route,
    every_route,
    floating,
    with_floating,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian, jacobian
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import _build

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
COUNT = 3

# grad(outputs, leaves, gradients with COUNT in front) -> gradients with COUNT in front
Batched = Callable[..., tuple[Tensor, ...]]


def by_autograd(outputs: Any, leaves: Any, given: Any, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, leaves, given, is_grads_batched=True, **options)


def by_vmap(outputs: Any, leaves: Any, given: Any, **options: Any) -> tuple[Tensor, ...]:
    """The gradients' dimension is the last, as vmap may have it anywhere."""
    last = [g.movedim(0, -1) for g in given]
    grad = lambda *g: torch.autograd.grad(outputs, leaves, g, **options)
    return torch.func.vmap(grad, in_dims=-1)(*last)


both_ways = pytest.mark.parametrize("batched", [by_autograd, by_vmap])
keep = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}


def one_by_one(outputs: Any, leaves: Any, given: Any) -> list[Tensor]:
    each = [
        torch.autograd.grad(outputs, leaves, [g[n] for g in given], **keep) for n in range(COUNT)
    ]
    return [torch.stack(gradients) for gradients in zip(*each, strict=True)]


def traced(route: Route, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's results and the leaves that they come from."""
    padded = sample.padded(device=route.device)
    leaves = [t.clone().requires_grad_() for t in floating(padded)]
    results = route.lstm_layer(**sample.as_layer(with_floating(padded, leaves)))
    return sample.mask_cells(results), leaves


@every_route
@both_ways
@pytest.mark.filterwarnings("ignore:.*batching rule for aten::_pack_padded_sequence_backward")
@pytest.mark.parametrize("sample", [*SAMPLES, *LARGE_SAMPLES], ids=lambda s: s.name)
def test_batched_gradients(route: Route, batched: Batched, sample: Sample) -> None:
    outputs, leaves = traced(route, sample)
    generator = torch.Generator().manual_seed(1)
    given = [
        torch.randn(COUNT, *o.shape, generator=generator, dtype=o.dtype).to(route.device)
        for o in outputs
    ]
    # of all results with respect to all; of some with respect to the rows, and to the weights
    for results, wanted in [
        (slice(None), slice(None)),
        (slice(2, 3), slice(0, 3)),
        (slice(0, 2), slice(3, None)),
    ]:
        call = outputs[results], leaves[wanted], given[results]
        torch.testing.assert_close(list(batched(*call, **keep)), one_by_one(*call), **CLOSE)


@every_route
@both_ways
@pytest.mark.filterwarnings("ignore:.*batching rule for aten::_pack_padded_sequence_backward")
@pytest.mark.parametrize("sample", SAMPLES[::3], ids=lambda s: s.name)
def test_batched_gradients_have_gradients(
    route: Route, batched: Batched, sample: Sample, request: pytest.FixtureRequest
) -> None:
    """create_graph, and gradients of those."""
    if sample.norms and batched is by_vmap:
        reason = "torch 2.13: wrong of F.layer_norm with a gain, which the reference uses"
        request.applymarker(pytest.mark.xfail(reason=reason))
    outputs, leaves = traced(route, sample)
    given = [torch.stack([torch.cos(k + o.detach()) for k in range(COUNT)]) for o in outputs]
    found = batched(outputs, leaves, given, create_graph=True)
    torch.testing.assert_close(list(found), one_by_one(outputs, leaves, given), **CLOSE)
    again = torch.autograd.grad([f.square().sum() for f in found], leaves, **keep)
    total = [torch.zeros_like(t) for t in leaves]
    for n in range(COUNT):
        each = torch.autograd.grad(outputs, leaves, [g[n] for g in given], create_graph=True)
        more = torch.autograd.grad([e.square().sum() for e in each], leaves, **keep)
        total = [t + m for t, m in zip(total, more, strict=True)]
    torch.testing.assert_close(list(again), total, **CLOSE)


class Calls(TorchDispatchMode):
    """The batch rows of every call of lstm_backward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.fastlstm.lstm_backward.default:
            self.rows.append(args[1].size(1))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
@both_ways
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=str)
def test_one_call_where_that_is_possible(batched: Batched, options: dict[str, Any]) -> None:
    lstm = fastlstm.LSTM(3, 4, **options)
    x = torch.randn(5, 2, 3, requires_grad=True)
    output = lstm(x)[0]
    given = torch.randn(COUNT, *output.shape)
    with Calls() as calls:
        batched([output], [x, *lstm.parameters()], [given])
    assert calls.rows == ([2] * COUNT if options else [2 * COUNT])


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
def test_no_fallback_to_a_loop() -> None:
    lstm = fastlstm.LSTM(3, 4, num_layers=2, bidirectional=True)
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jacobian(lambda x: lstm(x)[0], torch.randn(3, 2, 3), vectorize=True)
    finally:
        torch._C._debug_only_display_vmap_fallback_warnings(False)


@pytest.mark.parametrize("route", ROUTES_IN_BRIEF)
def test_vmap_of_vmap_and_of_nothing(route: Route) -> None:
    for lstm in (fastlstm.LSTM(3, 4), fastlstm.LSTM(3, 4, proj_size=2)):
        lstm.to(route.device, torch.float64).engine = route.engine
        output = lstm(torch.randn(5, 2, 3, dtype=torch.float64, device=route.device))[0]
        weights = list(lstm.parameters())
        grad = lambda g: torch.autograd.grad(output, weights, g, retain_graph=True)  # noqa: B023
        given = torch.randn(3, 2, *output.shape, dtype=torch.float64).to(route.device)
        expected = [g.unflatten(0, (3, 2)) for g in torch.func.vmap(grad)(given.flatten(0, 1))]
        found = torch.func.vmap(torch.func.vmap(grad), in_dims=1)(given.transpose(0, 1))
        torch.testing.assert_close(found, expected, **CLOSE)
        found = torch._vmap_internals._vmap(torch._vmap_internals._vmap(grad))(given)
        torch.testing.assert_close(found, expected, **CLOSE)
        empty = torch.func.vmap(grad)(given[:0, 0])
        assert [g.shape for g in empty] == [(0, *w.shape) for w in weights]


@pytest.mark.parametrize("route", ROUTES_IN_BRIEF)
@both_ways
def test_batched_gradients_of_what_vmap_made(route: Route, batched: Batched) -> None:
    lstm = fastlstm.LSTM(3, 4, num_layers=2, bidirectional=True).to(route.device, torch.float64)
    lstm.engine = route.engine
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=route.device)
    mapped = torch.func.vmap(lambda x: lstm(x)[0], in_dims=1, out_dims=1)(x)
    given = torch.randn(COUNT, *mapped.shape, dtype=torch.float64).to(route.device)
    found = list(batched([mapped], list(lstm.parameters()), [given]))
    expected = one_by_one([lstm(x)[0]], list(lstm.parameters()), [given])
    torch.testing.assert_close(found, expected, **CLOSE)


OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"proj_size": 2, "bias": False},
    {"bidirectional": True, "proj_size": 2, "batch_first": True},
]


def pair(route: Route, dtype: torch.dtype, **options: Any) -> tuple[fastlstm.LSTM, nn.LSTM]:
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 4, **options).to(route.device, dtype)
    ours = fastlstm.LSTM(3, 4, **options).to(route.device, dtype)
    ours.load_state_dict(theirs.state_dict())
    ours.engine = route.engine
    return ours, theirs


def as_functions(
    route: Route, dtype: torch.dtype, kind: str, options: dict[str, Any]
) -> tuple[list[Any], Tensor]:
    """Ours and torch's, of the one tensor that is returned too."""
    draw = lambda *shape: torch.randn(*shape, dtype=dtype).to(route.device)
    if kind == "cell":
        torch.manual_seed(0)
        cells = [cls(3, 4).to(route.device, dtype) for cls in (fastlstm.LSTMCell, nn.LSTMCell)]
        cells[0].load_state_dict(cells[1].state_dict())
        h, c = draw(2, 4), draw(2, 4)
        return [lambda x, m=m: m(x, (h, c))[1] for m in cells], draw(2, 3)
    modules = pair(route, dtype, **options)
    x = draw(4, 3, 3)
    if kind == "padded":
        return [lambda x, m=m: m(x)[0] for m in modules], x
    packed = pack_padded_sequence(x, torch.tensor([3, 4, 1]), enforce_sorted=False)

    def run(data: Tensor, module: nn.Module) -> Tensor:
        output, (h_n, _) = module(PackedSequence(data, *packed[1:]))
        return torch.cat([output.data.flatten(), h_n.flatten()])

    return [lambda x, m=m: run(x, m) for m in modules], packed.data


@every_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["padded", "packed", "cell"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_jacobians_and_hessians_of_torch(
    route: Route, dtype: torch.dtype, kind: str, options: dict[str, Any]
) -> None:
    if kind == "cell" and options:
        pytest.skip("a cell has no options")
    functions, x = as_functions(route, dtype, kind, options)
    found, expected = (jacobian(f, x, vectorize=True) for f in functions)
    torch.testing.assert_close(found, expected)
    graph = jacobian(functions[0], x.requires_grad_(), vectorize=True, create_graph=True)
    torch.testing.assert_close(graph, expected.requires_grad_(), check_stride=False)
    found, expected = (
        hessian(lambda x, f=f: f(x).sin().sum(), x, vectorize=True) for f in functions
    )
    torch.testing.assert_close(found, expected)
    if route.engine != "stepwise":  # the reference serves forward mode; nn.LSTM's has no batches
        found = jacobian(functions[0], x, vectorize=True, strategy="forward-mode")
        torch.testing.assert_close(found, jacobian(functions[0], x))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("route", ROUTES_IN_BRIEF)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LayerNormLSTM])
@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_gradcheck_with_batches(
    route: Route, cls: type[nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    lstm = cls(2, 3, **options).to(route.device, torch.float64)
    lstm.engine = route.engine
    x = torch.randn(2, 3, 2, dtype=torch.float64).to(route.device).requires_grad_()
    given = {
        "lengths": torch.tensor([1, 2, 0], device=route.device)[
            : x.size(0 if lstm.batch_first else 1)
        ],
        "reset": (torch.arange(6).view(2, 3) % 2 == 1).to(route.device),
    }
    names, weights = zip(*lstm.named_parameters(), strict=True)

    def function(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, weights, strict=True))
        result = torch.func.functional_call(lstm, named, (x,), given)
        return tuple(_pytree.tree_leaves(result))

    assert gradcheck(function, (x, *weights), fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, *weights), fast_mode=True, check_batched_grad=True)
