"""fastlstm.LSTM and LSTMCell with PyTorch's own sample inputs and error cases of torch.nn's."""

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from samples import Route, every_module_route, needs_expecttest
from torch import nn
from torch.utils import _pytree

import fastlstm

if TYPE_CHECKING:
    pass

pytestmark = needs_expecttest
OURS = {nn.LSTM: fastlstm.LSTM, nn.LSTMCell: fastlstm.LSTMCell}

every_info = pytest.mark.parametrize("info", OURS, ids=lambda cls: cls.__name__, indirect=True)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def info_of(cls):
    from torch.testing._internal.common_modules import module_db  # takes seconds to import

    return next(info for info in module_db if info.module_cls is cls)


@pytest.fixture
def info(request):
    return info_of(request.param)


def samples(info, route, dtype, **options):
    torch.manual_seed(0)
    options = {"requires_grad": True, "training": False} | options
    return info.module_inputs_func(info, device=route.device, dtype=dtype, **options)


def build(info, route, constructor, **factory):
    """Returns a module of fastlstm and one of torch with the same weights."""
    theirs = info.module_cls(*constructor.args, **(factory | constructor.kwargs))
    ours = OURS[info.module_cls](*constructor.args, **(factory | constructor.kwargs))
    ours.engine = route.engine
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_torch_has_the_samples():
    for cls, least in {nn.LSTM: 32, nn.LSTMCell: 2}.items():
        assert len(samples(info_of(cls), Route("reference"), torch.float32)) >= least


@every_module_route
@every_info
@every_dtype
@pytest.mark.parametrize("training", [False, True])
def test_samples(route, info, dtype, training):
    """Compares results and gradients, also with the reference function of the sample, if any."""
    for sample in samples(info, route, dtype, training=training):
        factory = {"device": route.device, "dtype": dtype}
        ours, theirs = build(info, route, sample.constructor_input, **factory)
        arguments, keywords = sample.forward_input.args, sample.forward_input.kwargs
        results = []
        for module in (ours, theirs):
            module.train(training)
            inputs, words = copy.deepcopy((arguments, keywords))
            output = module(*inputs, **words)
            flat = [t for t in _pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
            leaves = [t for t in _pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
            leaves = [t for t in leaves if t.requires_grad] + list(module.parameters())
            gradients = torch.autograd.grad(sum(t.sin().sum() for t in flat), leaves)
            results.append((output, gradients))
        same_bits = {"rtol": 0, "atol": 0} if route.engine == "torch" else {}
        torch.testing.assert_close(*results, **same_bits)
        if sample.reference_fn is not None:
            expected = sample.reference_fn(ours, *arguments, **keywords)
            torch.testing.assert_close(results[0][0], expected)


@every_module_route
@every_info
@every_dtype
def test_error_cases(route, info, dtype):
    from torch.testing._internal.common_modules import ModuleErrorEnum

    cases = info.module_error_inputs_func(
        info, device=route.device, dtype=dtype, requires_grad=False, training=False
    )
    assert len(cases) >= 4
    for case in cases:
        constructor = case.module_error_input.constructor_input
        cls = OURS[info.module_cls]
        if case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                cls(*constructor.args, **constructor.kwargs)
            continue
        factory = {"device": route.device, "dtype": dtype} | constructor.kwargs
        module = cls(*constructor.args, **factory)
        module.engine = route.engine
        forward = case.module_error_input.forward_input
        with pytest.raises(case.error_type, match=case.error_regex):
            module(*forward.args, **forward.kwargs)
