"""Dtypes, layouts, devices and types of arguments: the results or types of errors of torch.nn."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree

import fastlstm
from fastlstm import _build

pytestmark = [
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of sparse CSR and of oneDNN
]
FLOATS = torch.float32, torch.float64, torch.bfloat16, torch.float16
OTHERS = *FLOATS, torch.int64, torch.complex64
OPTIONS = [{}, {"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False}]
OPTIONS += [{"batch_first": True}]
T, B, I, H = 4, 2, 3, 5


def modules(cls, **options):
    """Returns the module of torch.nn, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = cls(I, H, **options)
    made = [
        theirs,
        getattr(fastlstm, cls.__name__)(I, H, **options),
        fastlstm.convert(cls(I, H, **options)),
        fastlstm.convert(cls(I, H, **options), keep_class=False),
    ]
    for module in made:
        module.load_state_dict(theirs.state_dict())
    return made


def outcome(call, module):
    """Returns the results of a call and its gradients, or the type of its error."""
    try:
        results = [t for t in _pytree.tree_leaves(call(module)) if isinstance(t, Tensor)]
        floating = [t for t in results if t.is_floating_point()]
        if not floating[0].is_meta:
            sum(t.double().sin().sum() for t in floating).backward()
    except Exception as error:
        kinds = RuntimeError, TypeError, AttributeError, ValueError, IndexError
        return next(kind for kind in kinds if isinstance(error, kind))
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return [t.detach() for t in results], gradients


def compare(cls, options, call, context=""):
    theirs, *ours = [outcome(call, module) for module in modules(cls, **options)]
    for found in ours:
        if isinstance(theirs, type) or isinstance(found, type):
            assert found is theirs, f"{context} {options}: {found}, torch.nn: {theirs}"
        else:
            dtype = options.get("dtype", torch.float32)
            tolerance = 4 * torch.finfo(dtype).eps ** (0.5 if dtype.itemsize == 2 else 0.75)
            message = lambda text: f"{context} {options}: {text}"
            torch.testing.assert_close(found, theirs, rtol=0, atol=tolerance, msg=message)


def state(options, h_dtype, c_dtype, batched=True):
    layers = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    rows = T if options.get("batch_first") else B
    torch.manual_seed(1)
    h = torch.randn(layers, *[rows] * batched, options.get("proj_size", H)).to(h_dtype)
    return h, torch.randn(layers, *[rows] * batched, H).to(c_dtype)


def draw(*shape, dtype=torch.float32):
    torch.manual_seed(2)
    return torch.randn(*shape).to(dtype)


def is_wider_state(dtype, h, c):
    """A row of differences.md: c in float32 with weights in 16 bits."""
    return dtype.itemsize == 2 and h == dtype and c == torch.float32


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_of_a_cell(dtype):
    for h, c in itertools.product(FLOATS, repeat=2):
        if is_wider_state(dtype, h, c):
            continue
        for batch in ((B,), ()):
            hx = draw(*batch, H, dtype=h), draw(*batch, H, dtype=c)
            for bias in (True, False):
                options = {"dtype": dtype, "bias": bias}
                call = lambda m: m(draw(*batch, I, dtype=dtype), hx)  # noqa: B023
                compare(nn.LSTMCell, options, call, f"h {h}, c {c}")
    for x in OTHERS:
        compare(nn.LSTMCell, {"dtype": dtype}, lambda m: m(draw(B, I, dtype=x)), f"x {x}")  # noqa: B023


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dtypes_of_a_layer(options, dtype):
    options = {**options, "dtype": dtype}

    def pack(x):
        return pack_padded_sequence(x, [T] * x.size(0 if first else 1), first)

    first = options.get("batch_first", False)
    for change, other in itertools.product((lambda x: x, pack), OTHERS):
        x = draw(T, B, I, dtype=dtype)
        if change is pack and first:
            x = draw(T, T, I, dtype=dtype)
        compare(nn.LSTM, options, lambda m: m(change(x.to(other))), f"x {other}")  # noqa: B023
        for h, c in ((other, other), (dtype, other), (other, dtype)):
            if not is_wider_state(dtype, h, c):
                hx = state(options, h, c)
                compare(nn.LSTM, options, lambda m: m(change(x), hx), f"h {h}, c {c}")  # noqa: B023


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_sparse_arguments_of_a_cell(dtype):
    x, h, c = draw(B, I, dtype=dtype), draw(B, H, dtype=dtype), draw(B, H, dtype=dtype)
    for bias in (True, False):
        options = {"dtype": dtype, "bias": bias}
        for sparse in (Tensor.to_sparse, Tensor.to_sparse_csr):
            compare(nn.LSTMCell, options, lambda m: m(sparse(x)))  # noqa: B023
            compare(nn.LSTMCell, options, lambda m: m(sparse(x), (h, c)))  # noqa: B023
            compare(nn.LSTMCell, options, lambda m: m(x, (sparse(h), c)))  # noqa: B023
            compare(nn.LSTMCell, options, lambda m: m(x, (h, sparse(c))))  # noqa: B023
        compare(nn.LSTMCell, options, lambda m: m(x[0].to_sparse()))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sparse_arguments_of_a_layer(options, dtype):
    options = {**options, "dtype": dtype}
    x, (h_0, c_0) = draw(T, B, I, dtype=dtype), state(options, dtype, dtype)
    compare(nn.LSTM, options, lambda m: m(x.to_sparse()))
    compare(nn.LSTM, options, lambda m: m(x, (h_0.to_sparse(), c_0)))
    compare(nn.LSTM, options, lambda m: m(x, (h_0, c_0.to_sparse())))
    packed = PackedSequence(draw(6, I, dtype=dtype), torch.tensor([B, B, 1, 1]))
    sparse = PackedSequence(packed.data.to_sparse(), packed.batch_sizes)
    compare(nn.LSTM, options, lambda m: m(sparse))
    compare(nn.LSTM, options, lambda m: m(packed, (h_0[:, :B].to_sparse(), c_0[:, :B])))


@pytest.mark.parametrize("bias", [True, False])
def test_meta_arguments(bias):
    options, meta = {"bias": bias}, lambda *shape: torch.empty(*shape, device="meta")
    packed = PackedSequence(meta(6, I), torch.tensor([B, B, 1, 1]))
    for x in (meta(T, B, I), meta(T, I), packed):
        compare(nn.LSTM, options, lambda m: m(x))  # noqa: B023
    for x, h in itertools.product((meta(B, I), draw(B, I)), (meta(B, H), draw(B, H))):
        compare(nn.LSTMCell, options, lambda m: m(x, (h, h)))  # noqa: B023
    compare(nn.LSTMCell, options, lambda m: m(meta(I)))


@pytest.mark.parametrize("bad", [None, [1.0], draw(2, 3).numpy(), "a", 3], ids=str)
def test_an_input_that_is_no_tensor(bad):
    for options in OPTIONS:
        compare(nn.LSTM, options, lambda m: m(bad))
        compare(nn.LSTM, options, lambda m: m(bad, state(options, *FLOATS[:1] * 2)))  # noqa: B023
    compare(nn.LSTMCell, {}, lambda m: m(bad))
    compare(nn.LSTMCell, {}, lambda m: m(bad, (draw(B, H), draw(B, H))))


@pytest.mark.parametrize("training", [1, 0, None, "deleted"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_that_is_no_bool(options, training):
    def call(module, x):
        if training == "deleted":
            del module.training
        else:
            module.training = training
        return module(x)

    x = draw(T, B, I)
    for given in (x, x[:, 0], pack_padded_sequence(x, [T, 1])):
        compare(nn.LSTM, options, lambda m: call(m, given))  # noqa: B023
    if options.keys() <= {"bias"}:
        compare(nn.LSTMCell, options, lambda m: call(m, x[0]))
