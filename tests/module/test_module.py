"""fastlstm.LSTM and LSTMCell behave as torch.nn.LSTM and torch.nn.LSTMCell."""

import itertools
import warnings

import pytest
import torch
from prepacked_layers import flat
from samples import draw, every_copy, every_module_route, every_op_route, reloaded, with_gradients
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import functional

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
NAMES, BOTH = ("num_layers", "bias", "batch_first", "bidirectional", "proj_size"), (False, True)
OPTIONS = [dict(zip(NAMES, v, strict=True)) for v in itertools.product((1, 3), *[BOTH] * 3, (0, 2))]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def pair(route=None, cls="LSTM", **options):
    """Returns a module of fastlstm and one of torch.nn with the same weights."""
    options = {"dtype": torch.float64, "device": route.device if route else "cpu"} | options
    modules = []
    for package in (fastlstm, nn):
        torch.manual_seed(0)
        modules.append(getattr(package, cls)(3, 5, **options))
    if route:
        modules[0].engine = route.engine
    return modules


def state(route, module, *batch):
    rows = module.num_layers * (1 + module.bidirectional)
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    return tuple(draw(route, rows, *batch, size) for size in sizes)


def assert_same(ours, theirs, *arguments):
    def run(module):
        found = _pytree.tree_leaves(module(*arguments))
        leaves = [*module.parameters(), *(a for a in floating if a.is_leaf and a.requires_grad)]
        return found, torch.autograd.grad(sum(r.sin().sum() for r in found), leaves)

    tensors_given = [a for a in _pytree.tree_leaves(arguments) if isinstance(a, Tensor)]
    floating = [a.requires_grad_() for a in tensors_given if a.is_floating_point()]
    torch.testing.assert_close(run(ours), run(theirs), **CLOSE)


@every_module_route
@every_option
@pytest.mark.parametrize("with_state", [False, True])
def test_every_option(route, options, with_state):
    ours, theirs = pair(route, **options)
    batched, unbatched = draw(route, 4, 2, 3), draw(route, 4, 3)
    rows = 4 if options["batch_first"] else 2
    assert_same(ours, theirs, batched, state(route, theirs, rows) if with_state else None)
    assert_same(ours, theirs, unbatched, state(route, theirs) if with_state else None)


@every_module_route
@every_option
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences(route, options, enforce_sorted):
    ours, theirs = pair(route, **options)
    lengths = torch.tensor([4, 3, 1] if enforce_sorted else [1, 4, 3])
    x = draw(route, 3, 4, 3) if options["batch_first"] else draw(route, 4, 3, 3)
    packed = pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted)
    for hx in (None, state(route, theirs, 3)):
        found = ours(packed, hx)
        assert isinstance(found[0], PackedSequence)
        torch.testing.assert_close(found, theirs(packed, hx), **CLOSE)


@every_module_route
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_draws_the_mask_of_torch(route, p):
    if route.device != "cpu":
        pytest.skip("cuDNN draws dropout with a generator of its own")
    ours, theirs = pair(route, num_layers=3, dropout=p, bidirectional=True)
    x = draw(route, 4, 2, 3)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(flat(module(x)))
    torch.testing.assert_close(*results, **CLOSE)


@every_option
def test_parameters_are_those_of_torch(options):
    ours, theirs = pair(**options)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad
    assert repr(ours) == f"fastlstm.{theirs}"
    assert repr(fastlstm.LSTM(3, 4, zoneout_c=0.1)) == "fastlstm.LSTM(3, 4, zoneout_c=0.1)"
    assert str(nn.Sequential(ours)) == str(nn.Sequential(theirs)).replace("LSTM", "fastlstm.LSTM")
    shapes = [[[p.shape for p in w] for w in m.all_weights] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


@every_option
def test_state_dict_both_ways(options):
    ours, theirs = pair(**options)
    torch.manual_seed(1)
    for source, target in ((ours, theirs), (theirs, ours)):
        source.reset_parameters()
        target.load_state_dict(reloaded(source.state_dict(), weights_only=True))
        x = torch.randn(3, 2, 3, dtype=torch.float64)
        torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), **CLOSE)


def test_a_subclass_passes_keywords_to_its_other_bases():
    initialize = classmethod(lambda cls, **options: setattr(cls, "options", options))
    other = type("Other", (), {"__init_subclass__": initialize})
    assert type("Own", (fastlstm.LSTM, other), {}, tag=1).options == {"tag": 1}


def test_constructor_errors_and_warnings():
    # Older versions of torch accept numbers as flags.
    numbers_as_flags = ((3, 5, 1, 1), (3, 5, 1, True, 0)) if torch.__version__ >= (2, 13) else ()
    options = {"dropout": 2}, {"dropout": True}, {"proj_size": -1}, {"proj_size": 5}
    calls = [(sizes, {}) for sizes in ((3, 0), (3, 5, 0), (3.0, 5), *numbers_as_flags)]
    for sizes, more in (*calls, *(((3, 5), each) for each in options)):
        with pytest.raises((TypeError, ValueError)) as theirs:
            nn.LSTM(*sizes, **more)
        with pytest.raises(theirs.type) as ours:
            fastlstm.LSTM(*sizes, **more)
        assert str(ours.value) == str(theirs.value)
    with pytest.warns(UserWarning, match="num_layers greater than 1") as warned:
        fastlstm.LSTM(3, 5, dropout=0.5)
    assert len(warned) == 1


@every_module_route
@every_copy
def test_copies(route, copied):
    ours, _ = pair(route, num_layers=2, dropout=0.1, bidirectional=True)
    x = draw(route, 3, 2, 3)
    expected, other = flat(ours.eval()(x)), copied(ours)
    assert type(other) is fastlstm.LSTM and not other.training and repr(other) == repr(ours)
    torch.testing.assert_close(flat(other(x)), expected, rtol=0, atol=0)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert not torch.equal(other(x)[0], expected[0])
    torch.testing.assert_close(flat(ours(x)), expected, rtol=0, atol=0)


@every_module_route
def test_parametrizations(route):
    ours, theirs = pair(route)
    x = draw(route, 3, 2, 3)
    for module in (ours, theirs):
        torch.manual_seed(3)
        parametrizations.weight_norm(module, "weight_hh_l0")
        parametrizations.orthogonal(module, "weight_ih_l0")
    assert_same(ours, theirs, x)
    for module in (ours, theirs):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), **CLOSE)


@every_module_route
def test_weight_drop_by_a_hook(route):
    """A pre-forward hook sets the weight as an attribute, as implementations of DropConnect do."""

    def double(module, _):
        module.weight_hh_l0 = module.weight_hh_l0_raw * 2

    ours, theirs = pair(route)
    for module in (ours, theirs):
        raw = nn.Parameter(module._parameters.pop("weight_hh_l0").detach())
        module.register_parameter("weight_hh_l0_raw", raw)
        module.register_forward_pre_hook(double)
    assert_same(ours, theirs, draw(route, 3, 2, 3))


def test_data_parallel_replicas():
    """A replica as DataParallel makes it, without several devices."""
    ours, _ = pair(num_layers=2)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours._parameters.items():
        setattr(replica, name, parameter.clone())
    replica._parameters = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nn.LSTM warns if its weights are not one block of memory
        found = replica(x)
    torch.testing.assert_close(flat(found), flat(ours(x)), rtol=0, atol=0)
    found[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


@every_module_route
@pytest.mark.parametrize("bias", [False, True])
def test_cell(route, bias):
    ours, theirs = pair(route, "LSTMCell", bias=bias)
    for batch in ((), (1,), (4,), (0,)):
        x, h, c = (draw(route, *batch, size) for size in (3, 5, 5))
        assert_same(ours, theirs, x, (h, c))
        assert_same(ours, theirs, x)


@every_module_route
def test_state_of_a_cell_may_be_written_to(route):
    """Users often set the state of rows to zero in place when an episode begins."""
    ours, theirs = pair(route, "LSTMCell")
    x = draw(route, 4, 2, 3)
    results = []
    for cell in (ours, theirs):
        hx = cell(x[0])
        for t in range(1, 4):
            for state in hx:
                state[t % 2] = 0
            hx = cell(x[t], hx)
        hx[0].mul_(2)
        (hx[0].sin().sum() + hx[1].sum()).backward()
        results.append([*hx, *(p.grad for p in cell.parameters())])
    torch.testing.assert_close(*results, **CLOSE)


class Tagged(Tensor):
    """A subclass of Tensor, which results keep."""


@every_module_route
def test_results_keep_tensor_subclasses(route):
    """Results have the subclass of input, state or weights. A Parameter is not such a subclass."""
    lstm, cell = pair(route, num_layers=2), pair(route, "LSTMCell")
    steps, h, c = draw(route, 4, 3, 3), draw(route, 2, 3, 5), draw(route, 2, 3, 5)
    tagged = lambda t: t.as_subclass(Tagged)
    types = lambda result: {type(t) for t in _pytree.tree_leaves(result)}
    for (ours, theirs), x, state in ((lstm, steps, (h, c)), (cell, steps[0], (h[0], c[0]))):
        for expected_type, *arguments in (
            (Tensor, x),
            (Tensor, nn.Parameter(x), state),
            (Tagged, tagged(x)),
            (Tagged, tagged(x[0])),
            (Tagged, nn.Parameter(tagged(x))),
            (Tagged, x, (tagged(state[0]), state[1])),
        ):
            found, expected = ours(*arguments), theirs(*arguments)
            assert types(found) == types(expected) == {expected_type}
            torch.testing.assert_close(found, expected, **CLOSE)
        name, weight = next(theirs.named_parameters())
        for module in (ours, theirs):
            setattr(module, name, nn.Parameter(tagged(weight.detach())))
        assert types(ours(x)) == types(theirs(x)) == {Tagged}


def record(mode, func, types, args=(), kwargs=None):
    mode.names.append(str(func))
    return func(*args, **(kwargs or {}))


@every_op_route
@pytest.mark.parametrize("bias", [False, True])
def test_modes_see_the_op(route, bias):
    (lstm, _), (cell, _) = pair(route, num_layers=2), pair(route, "LSTMCell", bias=bias)
    members = {"__torch_function__": record, "__torch_dispatch__": record}
    kinds = {TorchFunctionMode: "fastlstm.lstm", TorchDispatchMode: "fastlstm.lstm.default"}
    for kind, name in kinds.items():
        with type("Seen", (kind,), members)() as seen:
            seen.names = []
            lstm(draw(route, 4, 2, 3))
            for batch in ((), (2,)):
                x, *hx = (draw(route, *batch, size) for size in (3, 5, 5))
                cell(x), cell(x, hx)
        assert seen.names.count(name) == 6


@every_module_route
@pytest.mark.parametrize("bias", [False, True])
def test_functional_is_the_module(route, bias):
    ours, _ = pair(route, num_layers=2, bias=bias, bidirectional=True, proj_size=2)
    x = draw(route, 3, 4, 3)
    packed = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]))
    options = {"num_layers": 2, "bidirectional": True, "engine": route.engine}
    for given, data, more in (
        (x, x, {}),
        (x, x, {"batch_first": True}),
        (packed, packed.data, {"batch_sizes": packed.batch_sizes}),
    ):
        ours.batch_first = "batch_first" in more
        found = functional.lstm(data, None, list(ours.parameters()), **more, **options)
        torch.testing.assert_close(flat(found), flat(ours(given)), rtol=0, atol=0)


@every_module_route
@pytest.mark.parametrize("kind", ["dense", "lengths", "packed"])
def test_a_seed_decides_every_bit(route, kind):
    """With an initial state the bits of nn.LSTM once differed between runs (pytorch#104697)."""
    if route.engine == "torch" and kind == "lengths":
        pytest.skip("'torch' serves lengths in two directions only without h_0 and c_0")
    lstm, _ = pair(route, num_layers=3, dropout=0.5, bidirectional=True, dtype=torch.float32)
    x, hx = draw(route, 20, 7, 3).float(), tuple(draw(route, 2, 6, 7, 5).float())
    lengths = torch.tensor([20, 17, 9, 9, 4, 2, 1])
    given = pack_padded_sequence(x, lengths) if kind == "packed" else x
    options = {"lengths": lengths} if kind == "lengths" else {}

    def run(seed):
        torch.manual_seed(seed)
        return with_gradients(flat(lstm(given, hx, **options)), list(lstm.parameters()))

    torch.use_deterministic_algorithms(True)
    try:
        first, second, other = run(1), run(1), run(2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second)) and not any(map(torch.equal, first[:3], other[:3]))
