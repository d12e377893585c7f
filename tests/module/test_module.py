"""fastlstm.LSTM and LSTMCell behave as torch.nn.LSTM and torch.nn.LSTMCell."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from samples import every_module_route, every_op_route
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import functional

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
OPTIONS = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional", "proj_size"), v, strict=True))
    for v in itertools.product((1, 3), (True, False), (False, True), (False, True), (0, 2))
]
every_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items())
)


def pair(route=None, **options):
    """Returns a fastlstm.LSTM and an nn.LSTM with the same weights."""
    options = {"dtype": torch.float64} | options
    device = route.device if route else "cpu"
    torch.manual_seed(0)
    ours = fastlstm.LSTM(3, 5, **options, device=device)
    torch.manual_seed(0)
    theirs = nn.LSTM(3, 5, **options, device=device)
    if route:
        ours.engine = route.engine
    return ours, theirs


def cell_pair(route=None, **options):
    options = {"dtype": torch.float64} | options
    device = route.device if route else "cpu"
    torch.manual_seed(0)
    ours = fastlstm.LSTMCell(3, 5, **options, device=device)
    torch.manual_seed(0)
    theirs = nn.LSTMCell(3, 5, **options, device=device)
    if route:
        ours.engine = route.engine
    return ours, theirs


def draw(route, *shape):
    return torch.randn(*shape, dtype=torch.float64).to(route.device)


def state(route, module, *batch):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    return tuple(draw(route, rows, *batch, size) for size in sizes)


def tensors(result):
    """Returns output, h_n and c_n of an LSTM's result; of a PackedSequence its data."""
    output, (h_n, c_n) = result
    return [output.data if isinstance(output, PackedSequence) else output, h_n, c_n]


def assert_same(ours, theirs, *arguments):
    """Compares results, gradients of the parameters, and gradients of the arguments."""

    def run(module):
        found = tensors(module(*arguments)) if isinstance(module, LSTMS) else module(*arguments)
        leaves = [*module.parameters(), *(a for a in flat if a.is_leaf and a.requires_grad)]
        return found, torch.autograd.grad(sum(r.sin().sum() for r in found), leaves)

    flat = [
        a.requires_grad_()
        for argument in arguments
        for a in (argument if isinstance(argument, tuple) else (argument,))
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    found, expected = run(ours), run(theirs)
    torch.testing.assert_close([*found[0]], [*expected[0]], **CLOSE)
    torch.testing.assert_close(found[1], expected[1], **CLOSE)


LSTMS = (fastlstm.LSTM, nn.LSTM)


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
        (found, found_state), (expected, expected_state) = ours(packed, hx), theirs(packed, hx)
        assert isinstance(found, PackedSequence)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, **CLOSE)
        torch.testing.assert_close(found_state, expected_state, **CLOSE)


@every_module_route
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_draws_the_mask_of_torch(route, p):
    """On a CPU both draw dropout alike, so that the same seed gives the same results."""
    if route.device != "cpu":
        pytest.skip("cuDNN draws dropout with a generator of its own")
    ours, theirs = pair(route, num_layers=3, dropout=p, bidirectional=True)
    x = draw(route, 4, 2, 3)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(tensors(module(x)))
    torch.testing.assert_close(*results, **CLOSE)


@every_option
def test_parameters_are_those_of_torch(options):
    ours, theirs = pair(**options)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad
    assert repr(ours) == f"fastlstm.{theirs}"
    assert str(nn.Sequential(ours)) == str(nn.Sequential(theirs)).replace("LSTM", "fastlstm.LSTM")
    assert [[p.shape for p in w] for w in ours.all_weights] == [
        [p.shape for p in w] for w in theirs.all_weights
    ]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


@every_option
def test_state_dict_both_ways(options):
    ours, theirs = pair(**options)
    torch.manual_seed(1)
    for source, target in ((ours, theirs), (theirs, ours)):
        source.reset_parameters()
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        x = torch.randn(3, 2, 3, dtype=torch.float64)
        torch.testing.assert_close(tensors(ours(x)), tensors(theirs(x)), **CLOSE)


def test_constructor_errors_and_warnings():
    # Older versions of torch accept numbers as flags.
    numbers_as_flags = ((3, 5, 1, 1), (3, 5, 1, True, 0)) if torch.__version__ >= (2, 13) else ()
    for arguments in ((3, 0), (3, 5, 0), (3.0, 5), *numbers_as_flags):
        with pytest.raises((TypeError, ValueError)) as theirs:
            nn.LSTM(*arguments)
        with pytest.raises(theirs.type) as ours:
            fastlstm.LSTM(*arguments)
        assert str(ours.value) == str(theirs.value)
    for options in ({"dropout": 2}, {"dropout": True}, {"proj_size": -1}, {"proj_size": 5}):
        with pytest.raises(ValueError) as theirs:
            nn.LSTM(3, 5, **options)
        with pytest.raises(ValueError) as ours:
            fastlstm.LSTM(3, 5, **options)
        assert str(ours.value) == str(theirs.value)
    with pytest.warns(UserWarning, match="num_layers greater than 1") as warned:
        fastlstm.LSTM(3, 5, dropout=0.5)
    assert len(warned) == 1


@every_module_route
@pytest.mark.parametrize("copies", ["pickle", "deepcopy", "torch.save"])
def test_copies(route, copies):
    ours, _ = pair(route, num_layers=2, dropout=0.1, bidirectional=True)
    ours.eval()
    x = draw(route, 3, 2, 3)
    expected = tensors(ours(x))
    if copies == "pickle":
        other = pickle.loads(pickle.dumps(ours))
    elif copies == "deepcopy":
        other = copy.deepcopy(ours)
    else:
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is fastlstm.LSTM and not other.training and repr(other) == repr(ours)
    torch.testing.assert_close(tensors(other(x)), expected, rtol=0, atol=0)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert not torch.equal(other(x)[0], expected[0])
    torch.testing.assert_close(tensors(ours(x)), expected, rtol=0, atol=0)


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
    torch.testing.assert_close(tensors(ours(x)), tensors(theirs(x)), **CLOSE)


@every_module_route
def test_weight_drop_by_a_hook(route):
    """A pre-forward hook sets the weight as an attribute, as implementations of DropConnect do."""
    ours, theirs = pair(route)
    for module in (ours, theirs):
        raw = nn.Parameter(module._parameters.pop("weight_hh_l0").detach())
        module.register_parameter("weight_hh_l0_raw", raw)
        module.register_forward_pre_hook(
            lambda module, _: setattr(module, "weight_hh_l0", module.weight_hh_l0_raw * 2)
        )
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
    torch.testing.assert_close(tensors(found), tensors(ours(x)), rtol=0, atol=0)
    found[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


@every_module_route
@pytest.mark.parametrize("bias", [False, True])
def test_cell(route, bias):
    ours, theirs = cell_pair(route, bias=bias)
    for batch in ((), (1,), (4,), (0,)):
        x, h, c = (draw(route, *batch, size) for size in (3, 5, 5))
        assert_same(ours, theirs, x, (h, c))
        assert_same(ours, theirs, x)


@every_module_route
def test_state_of_a_cell_may_be_written_to(route):
    """Users often set the state of rows to zero in place when an episode begins."""
    ours, theirs = cell_pair(route)
    x = draw(route, 4, 2, 3)
    found = []
    for cell in (ours, theirs):
        hx = cell(x[0])
        for t in range(1, 4):
            for state in hx:
                state[t % 2] = 0
            hx = cell(x[t], hx)
        hx[0].mul_(2)
        (hx[0].sin().sum() + hx[1].sum()).backward()
        found.append([*hx, *(p.grad for p in cell.parameters())])
    torch.testing.assert_close(*found, **CLOSE)


class Tagged(Tensor):
    """A subclass of Tensor, which results keep."""


def tensor_types(result):
    return [type(t) for t in _pytree.tree_leaves(result) if isinstance(t, Tensor)]


@every_module_route
def test_results_keep_tensor_subclasses(route):
    """Results have the subclass of input, state or weights. A Parameter is not such a subclass."""
    lstm, cell = pair(route, num_layers=2), cell_pair(route)
    steps, h, c = draw(route, 4, 3, 3), draw(route, 2, 3, 5), draw(route, 2, 3, 5)
    tagged = lambda t: t.as_subclass(Tagged)
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
            assert set(tensor_types(found)) == set(tensor_types(expected)) == {expected_type}
            torch.testing.assert_close(found, expected, **CLOSE)
        name, weight = next(theirs.named_parameters())
        for module in (ours, theirs):
            setattr(module, name, nn.Parameter(tagged(weight.detach())))
        assert set(tensor_types(ours(x))) == set(tensor_types(theirs(x))) == {Tagged}


class SeenFunctions(TorchFunctionMode):
    """Records the names of all calls of __torch_function__."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenOps(TorchDispatchMode):
    """Records the names of all dispatched ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@every_op_route
def test_modes_see_the_op(route):
    lstm, _ = pair(route, num_layers=2)
    cell, _ = cell_pair(route)
    for kind, name in ((SeenFunctions, "fastlstm.lstm"), (SeenOps, "fastlstm.lstm.default")):
        with kind() as seen:
            lstm(draw(route, 4, 2, 3))
            cell(draw(route, 2, 3))
        assert seen.names.count(name) == 3


@every_module_route
def test_functional_is_the_module(route):
    ours, _ = pair(route, num_layers=2, bidirectional=True, proj_size=2)
    x = draw(route, 3, 4, 3)
    weights = list(ours.parameters())
    options = {"num_layers": 2, "bidirectional": True, "engine": route.engine}
    exact = {"rtol": 0, "atol": 0}
    found = functional.lstm(x, None, weights, **options)
    torch.testing.assert_close(tensors(found), tensors(ours(x)), **exact)
    ours.batch_first = True
    found = functional.lstm(x, None, weights, batch_first=True, **options)
    torch.testing.assert_close(tensors(found), tensors(ours(x)), **exact)
    packed = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]))
    found = functional.lstm(packed.data, None, weights, batch_sizes=packed.batch_sizes, **options)
    torch.testing.assert_close(tensors(found), tensors(ours(packed)), **exact)
