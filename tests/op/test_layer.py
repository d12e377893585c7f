"""Results, gradients and second gradients of one layer, by every engine, against the oracle."""

import pytest
import torch
from fuzzed_calls import Draw
from oracle import oracle
from samples import (
    AUTO_ROUTES,
    SAMPLES,
    ZONEOUT_SAMPLES,
    Route,
    Sample,
    every_op_route,
    every_route,
    every_sample,
    every_sample_and_large,
    floating,
    needs_expecttest,
    with_floating,
    with_leaves,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("output", "h_n", "c_n", "cells")


def assert_all_close(found, expected, names, **tolerance):
    assert len(found) == len(expected) == len(names)
    for name, a, b in zip(names, found, expected, strict=True):
        message = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(a.cpu(), b.to(a.dtype), **tolerance, msg=message)


def gradient_names(arguments):
    return ["input", "h_0", "c_0", *(f"weights[{k}]" for k in range(len(arguments["weights"])))]


def gradients(arguments):
    return [t.new_zeros(t.shape) if t.grad is None else t.grad for t in floating(arguments)]


def cotangents(results):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_oracle_agrees_with_torch(bidirectional, proj_size, bias):
    torch.manual_seed(0)
    options, lengths = {"bidirectional": bidirectional, "proj_size": proj_size}, [4, 3, 1]
    lstm = nn.LSTM(3, 5, bias=bias, **options).double()
    state = (1 + bidirectional, 3, proj_size or 5), (1 + bidirectional, 3, 5)
    x, h_0, c_0 = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 3, 3), *state))
    output, (h_n, c_n) = lstm(pack_padded_sequence(x, torch.tensor(lengths)), (h_0, c_0))
    found = oracle(x, h_0, c_0, list(lstm.parameters()), lengths)
    expected = [pad_packed_sequence(output)[0], h_n, c_n]
    torch.testing.assert_close(list(found[:3]), expected, rtol=1e-12, atol=1e-12)


@every_route
@every_sample_and_large
def test_results(route, sample):
    expected = sample.oracle(sample.padded())
    found = sample.mask_cells(route.lstm_layer(**sample.arguments(device=route.device)))
    assert_all_close(found, expected, NAMES, rtol=1e-10, atol=1e-12)


@every_route
@every_sample_and_large
def test_gradients(route, sample):
    oracle_arguments = with_leaves(sample.padded())
    expected = sample.oracle(oracle_arguments)
    torch.autograd.backward(expected, cotangents(expected))
    padded = with_leaves(sample.padded(device=route.device))
    found = sample.mask_cells(route.lstm_layer(**sample.as_layer(padded)))
    torch.autograd.backward(found, [g.to(route.device) for g in cotangents(found)])
    names = gradient_names(oracle_arguments)
    assert_all_close(gradients(padded), gradients(oracle_arguments), names, rtol=1e-9, atol=1e-11)


@every_route
@pytest.mark.parametrize("sample", [*SAMPLES, *ZONEOUT_SAMPLES], ids=lambda s: s.name)
def test_any_strides(route, sample):
    if sample.zoneout and route.engine != "reference":
        return  # only the reference computes zoneout

    def run(restride):
        padded = with_leaves(sample.padded(device=route.device))
        given = sample.as_layer(padded)
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = restride(value)
        given["weights"] = [restride(w) for w in given["weights"]]
        found = sample.mask_cells(route.lstm_layer(**given))
        torch.autograd.backward(found, [restride(g.to(route.device)) for g in cotangents(found)])
        return [*found, *gradients(padded)]

    expected = run(lambda tensor: tensor)
    for seed in range(8):
        torch.testing.assert_close(run(Draw(seed).restride), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sample", ZONEOUT_SAMPLES, ids=lambda s: s.name)
def test_zoneout(sample):
    test_results(Route("reference"), sample)
    test_gradients(Route("reference"), sample)


@every_op_route
@every_sample
def test_gradients_of_some_arguments_only(route, sample):
    """The bits do not depend on which gradients are asked for, and backward skips the others."""
    padded = with_leaves(sample.padded(device=route.device))
    found = sample.mask_cells(route.lstm_layer(**sample.as_layer(padded)))
    given = [g.to(route.device) for g in cotangents(found)]
    leaves = floating(padded)
    at_once = torch.autograd.grad(found, leaves, given, retain_graph=True)

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.fastlstm.lstm_backward.default:
                requests.append([*args[16:], False][:3])  # of input and state; return_d_gates
            return func(*args, **(kwargs or {}))

    for a, z, *wanted in ((0, 3, 1, 1), (0, 1, 1, 0), (1, 2, 0, 1), (2, 3, 0, 1), (3, 99, 0, 0)):
        requests = []
        with Calls():
            separately = torch.autograd.grad(found, leaves[a:z], given, retain_graph=True)
        assert all(map(torch.equal, separately, at_once[a:z]))
        assert requests == [[*wanted, a < 3 and not sample.norms]]


@every_route
@every_sample
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradcheck(route, sample, check, threads):
    threads(1)  # thousands of tiny calls are slower with more
    padded = with_leaves(sample.padded(device=route.device))

    def function(*tensors):
        arguments = sample.as_layer(with_floating(padded, tensors))
        return sample.mask_cells(route.lstm_layer(**arguments))

    fast = check is gradgradcheck or sample.hidden_size > 10 or route.engine == "reference"
    assert check(function, floating(padded), fast_mode=fast)


@every_route
def test_a_weight_that_changes_before_second_derivatives_raises(route):
    """The graph of the first gradients holds the weights, so autograd must notice the change."""
    padded = with_leaves(Sample("plain").padded(device=route.device))
    output = route.lstm_layer(**Sample("plain").as_layer(padded))[0]
    first = torch.autograd.grad(output.sum(), padded["weights"], create_graph=True)
    with torch.no_grad():
        padded["weights"][1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(sum(g.square().sum() for g in first), padded["weights"])


@every_route
def test_arguments_are_left_as_they_were(route):
    sample = Sample("lengths", lengths=(2, 4, 0), reset=True, directions=2)
    padded = with_leaves(sample.padded(device=route.device))
    before = [t.detach().clone() for t in floating(padded)]
    route.lstm_layer(**sample.as_layer(padded))[0].sum().backward()
    assert all(map(torch.equal, floating(padded), before))


@every_route
def test_padding_is_never_read(route):
    sample = Sample("lengths", lengths=(2, 4, 0), directions=2)
    clean, dirty = (with_leaves(sample.padded(device=route.device)) for _ in range(2))
    with torch.no_grad():
        for b, length in enumerate(sample.lengths):
            dirty["input"][length:, b] = torch.nan
    results = []
    for padded in (clean, dirty):
        found = route.lstm_layer(**sample.as_layer(padded))[:3]
        torch.autograd.backward(found, [g.to(route.device) for g in cotangents(found)])
        results.append([*found, *gradients(padded)])
    assert_all_close(results[1], results[0], [*NAMES[:3], *gradient_names(clean)])


def forward_for_backward(arguments):
    """Runs the forward op. Returns gradients of its results, and what it saves for backward."""
    run = torch.ops.fastlstm.lstm
    output, h_n, c_n, cells, gates = run(**arguments, save_cells=True, save_gates=True)
    given = {"grad_output": output, "grad_h_n": h_n, "grad_c_n": c_n, "grad_cells": cells}
    return given, {"output": output, "cells": cells, "gates": gates}


@every_op_route
@pytest.mark.parametrize("proj_size", [0, 2])
def test_saved_tensors_are_not_read_after_the_end_of_a_row(route, proj_size):
    """Backward accepts the saved tensors of any engine, which differ after the end of a row."""
    sample = Sample("lengths", lengths=(2, 4, 0), directions=2, proj_size=proj_size)
    arguments = sample.arguments(device=route.device)
    arguments["engine"] = route.engine
    given, saved = forward_for_backward(arguments)
    arguments |= given | {"input_needs_grad": True, "state_needs_grad": True}
    results = []
    for filled in (0.0, torch.nan):
        filled_in = {name: tensor.clone() for name, tensor in saved.items()}
        for b, length in enumerate(sample.lengths):
            filled_in["cells"][:, length:, b] = filled_in["gates"][:, length:, b] = filled
        *state, weights = torch.ops.fastlstm.lstm_backward(**arguments, **filled_in)
        results.append([*state, *weights])
    assert all(map(torch.equal, *results))
    arguments |= {"input_needs_grad": False, "return_d_gates": True}
    grad_input, _, _, d_gates = torch.ops.fastlstm.lstm_backward(**arguments, **saved)
    real = torch.arange(4)[:, None] < torch.tensor(sample.lengths)
    assert grad_input.shape == (0,) and torch.stack(d_gates).shape == saved["gates"].shape
    assert all((d.abs().sum(-1).cpu() > 0).equal(real) for d in d_gates)
    not_saved = torch.ops.fastlstm.lstm(**sample.arguments(device=route.device))[3:]
    assert [tensor.shape for tensor in not_saved] == [(0,), (0,)]


@needs_expecttest
@pytest.mark.parametrize("route", AUTO_ROUTES)
@pytest.mark.parametrize("sample", SAMPLES[::2], ids=lambda s: s.name)
def test_opcheck_forward(route, sample):
    from torch.testing._internal import optests

    op = torch.ops.fastlstm.lstm.default
    torch.library.opcheck(op, (), sample.arguments(device=route.device))
    # AOTAutograd's test needs gradients of all results. Gates have none, so lstm_layer drops them.
    padded = with_leaves(sample.padded(device=route.device))
    without_aot = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (), sample.as_layer(padded), test_utils=without_aot)
    optests.aot_autograd_check(route.lstm_layer, (), sample.as_layer(padded), dynamic=True)


@needs_expecttest
@pytest.mark.parametrize("route", AUTO_ROUTES)
@pytest.mark.parametrize("sample", SAMPLES[::2], ids=lambda s: s.name)
def test_opcheck_backward(route, sample):
    arguments = sample.arguments(device=route.device) | {"engine": route.engine}
    given, saved = forward_for_backward(arguments)
    arguments |= saved
    op = torch.ops.fastlstm.lstm_backward.default
    only_h_n = dict.fromkeys(given) | {"grad_h_n": given["grad_h_n"]}
    names = "input_needs_grad", "state_needs_grad", "return_d_gates"
    for grads, *wanted in (
        (given, True, True, False),
        (given, False, False, not sample.norms),  # layer normalization refuses return_d_gates
        (only_h_n, False, True, False),
    ):
        needs = dict(zip(names, wanted, strict=True))
        torch.library.opcheck(op, (), {**grads, **arguments, **needs})
