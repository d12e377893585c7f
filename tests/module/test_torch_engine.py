"""Engine "torch": the bits of nn.LSTM, and lengths."""

import itertools
import random

import pytest
import torch
from op_call import MAX_ERROR_RATIO
from oracle import oracle
from prepacked_layers import flat
from samples import TORCH_ROUTES
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm.engine import torch_lstm
from fastlstm.engine.call import LstmCall

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
every_device = pytest.mark.parametrize("route", TORCH_ROUTES)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EXACT = {"rtol": 1e-9, "atol": 1e-11}
WITH_LENGTHS = {}, {"bidirectional": True, "proj_size": 7}, {"num_layers": 2, "bias": False}
STACKS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
    {"proj_size": 2, "bidirectional": True, "num_layers": 2, "dropout": 0.4},
]


def pair(cls=nn.LSTM, **options):
    torch.manual_seed(0)
    theirs = cls(3, 5, **options)
    ours = getattr(fastlstm, cls.__name__)(3, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    ours.engine = "torch"
    return ours, theirs


def results(module, x, hx=None):
    """Returns outputs and gradients of a call after setting the seed."""
    torch.manual_seed(1)
    tensors = flat(module(x, hx))
    if torch.is_grad_enabled():
        leaf = x.data if isinstance(x, PackedSequence) else x
        loss = sum((t.float().sin().sum() for t in tensors), torch.zeros(()))
        tensors += torch.autograd.grad(loss, [leaf, *module.parameters()])
    return tensors


def same_bits(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("form", ["dense", "packed", "unbatched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bits(options, form, dtype):
    ours, theirs = (m.to(dtype) for m in pair(**options))
    x = torch.randn(6, 3) if form == "unbatched" else torch.randn(6, 4, 3)
    x = x.to(dtype).requires_grad_()
    if form == "packed":
        lengths = torch.tensor([4, 3, 1, 1, 1, 1] if ours.batch_first else [2, 6, 5, 6])
        x = pack_padded_sequence(x, lengths, ours.batch_first, enforce_sorted=False)
    for training in (True, False):
        both = results(ours.train(training), x), results(theirs.train(training), x)
        assert same_bits(*both)
    with torch.no_grad():
        assert same_bits(results(ours, x), results(theirs, x))


def test_bits_with_a_state_of_a_cell_and_under_autocast():
    ours, theirs = pair(num_layers=2)
    x = torch.randn(6, 4, 3, requires_grad=True)
    hx = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    assert same_bits(results(ours, x, hx), results(theirs, x, hx))
    cell, torch_cell = pair(nn.LSTMCell)
    assert same_bits([*cell(x[0])], [*torch_cell(x[0])])
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits([ours(x, hx)[0]], [theirs(x, hx)[0]])
        for engine in ("torch", "reference", "auto"):
            cell.engine = engine
            assert [s.dtype for s in cell(x[0])] == [s.dtype for s in torch_cell(x[0])]


class Case:
    """An LSTM on engine "torch", the arguments of a call, and gradients of its results."""

    def __init__(self, lstm, lengths, steps, has_state=False, device="cpu"):
        self.lstm = lstm.to(device)
        lstm.engine = "torch"
        self.lengths = torch.tensor(lengths, dtype=torch.long)
        self.real = (torch.arange(steps)[:, None] < self.lengths)[..., None]
        D, P = 1 + lstm.bidirectional, lstm.proj_size or lstm.hidden_size
        batch, states = len(lengths), lstm.num_layers * D
        state = (states, batch, P), (states, batch, lstm.hidden_size)
        shapes = (steps, batch, lstm.input_size), *state, (steps, batch, D * P), *state
        values = (torch.randn(shape).to(device, lstm.weight_ih_l0.dtype) for shape in shapes)
        x, h_0, c_0, *self.grads = values
        self.leaves = [x, h_0, c_0] if has_state else [x]

    def results(self, module, padding=torch.nan):
        """Returns output (steps first), h_n, c_n, and the gradients of input, state and weights.

        `padding` is the value of x after the end of a row; None stands for no lengths.
        """
        leaves = [t.detach().clone().requires_grad_() for t in self.leaves]
        x, options = leaves[0], {}
        if padding is not None:
            x = torch.where(self.real.to(x.device), x, padding)
            options["lengths"] = self.lengths
        x = x.transpose(0, 1) if module.batch_first else x
        output, state = module(x, tuple(leaves[1:]) or None, **options)
        output = output.transpose(0, 1) if module.batch_first else output
        return self._with_gradients([output, *state], [*leaves, *module.parameters()])

    def truth(self, of_all_steps=False):
        """Returns the same tensors, computed by the oracle in float64."""
        lstm, D = self.lstm, 1 + self.lstm.bidirectional
        tensors = [t.detach().cpu().double() for t in (*self.leaves, *lstm.parameters())]
        leaves = [t.requires_grad_() for t in tensors]
        hx, weights = leaves[1 : len(self.leaves)], leaves[len(self.leaves) :]
        h_0, c_0 = hx or (torch.zeros_like(g, dtype=torch.float64).cpu() for g in self.grads[1:])
        lengths = None if of_all_steps else self.lengths.tolist()
        output, per_layer, states = leaves[0], len(weights) // lstm.num_layers, []
        for k in range(lstm.num_layers):
            layer, rows = weights[k * per_layer : (k + 1) * per_layer], slice(k * D, (k + 1) * D)
            output, *state, _ = oracle(output, h_0[rows], c_0[rows], layer, lengths)
            states.append(state)
        h_n, c_n = (torch.cat(layers) for layers in zip(*states, strict=True))
        return self._with_gradients([output, h_n, c_n], leaves)

    def _with_gradients(self, results, leaves):
        pairs = zip(results, self.grads, strict=True)
        differentiable = [(r, g.to(r.device, r.dtype)) for r, g in pairs if r.requires_grad]
        outputs, given = zip(*differentiable, strict=True) if differentiable else ((), ())
        gradients = torch.autograd.grad(outputs, leaves, given, materialize_grads=True)
        return [t.detach() for t in (*results, *gradients)]


@every_device
@pytest.mark.parametrize("seed", range(80))
def test_any_call(route, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    H, I, layers = draw.randint(1, 20), draw.choice([1, 3, 7, 8, 9, 128]), draw.choice([1, 1, 2, 3])
    names = {"bias": 0.7, "batch_first": 0.3, "bidirectional": 0.5}
    options = {name: draw.random() < probability for name, probability in names.items()}
    proj_size = draw.randint(1, H - 1) if H > 1 and draw.random() < 0.4 else 0
    lstm = fastlstm.LSTM(I, H, layers, **options, proj_size=proj_size, dtype=torch.float64)
    steps, batch = draw.randint(1, 8), draw.randint(0, 5)
    lengths = [draw.randint(0, steps) for _ in range(batch)]
    if draw.random() < 0.2:
        lengths = [draw.choice([0, steps])] * batch
    has_state = not lstm.bidirectional and draw.random() < 0.6
    case = Case(lstm, lengths, steps, has_state, route.device)
    found = case.results(lstm)
    assert not torch.where(case.real.to(found[0].device), 0.0, found[0]).any()
    truth = case.truth()
    lstm.engine = "auto"
    for k, each in enumerate(zip(found, truth, case.results(lstm, 1e30), strict=True)):
        a, b, c = (t.cpu() for t in each)
        torch.testing.assert_close(a, b, **EXACT, msg=lambda m, k=k: f"{k}, {lstm}: {m}")
        torch.testing.assert_close(a, c, **EXACT, msg=lambda m, k=k: f"{k}, {lstm}: {m}")


@every_device
@pytest.mark.parametrize("dtype", [*DTYPES[1:], "autocast"], ids=str)
@pytest.mark.parametrize("options", WITH_LENGTHS, ids=str)
def test_error_against_nn_lstm(route, dtype, options):
    """Errors are at most a small multiple of nn.LSTM's errors in a call without lengths."""
    torch.manual_seed(0)
    options = options | {"dtype": torch.float32 if dtype == "autocast" else dtype}
    lstm, theirs = (cls(24, 32, **options) for cls in (fastlstm.LSTM, nn.LSTM))
    theirs.load_state_dict(lstm.state_dict())
    case = Case(lstm, [12, 3, 7, 1, 9, 5], 12, not lstm.bidirectional, route.device)
    with torch.autocast(route.device, torch.bfloat16, enabled=dtype == "autocast"):
        found, plain = case.results(lstm), case.results(theirs.to(route.device), None)
    assert [t.dtype for t in found] == [t.dtype for t in plain]

    def errors(results, truth):
        pairs = [(r.cpu().double(), t) for r, t in zip(results, truth, strict=True)]
        return [((r - t).norm() / t.norm()).item() for r, t in pairs]

    plain_errors = errors(plain, case.truth(of_all_steps=True))
    ratios = [a / b for a, b in zip(errors(found, case.truth()), plain_errors, strict=True)]
    assert all(ratio <= MAX_ERROR_RATIO for ratio in ratios), ratios


@every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("size", [0.5, 30000.0])
def test_the_cell_state_keeps_its_bits(route, dtype, proj_size, size):
    """Padding leaves c as it is, even if the bias works against the weights that shut the gates."""
    torch.manual_seed(0)
    options = {"dtype": dtype, "device": route.device}
    lstm = fastlstm.LSTM(3, 5, proj_size=proj_size, **options)
    lstm.engine = "torch"
    with torch.no_grad():  # the bias opens i and shuts f
        lstm.bias_ih_l0[:5], lstm.bias_ih_l0[5:10] = size, -size
    h_0, c_0 = (torch.randn(1, 4, n).to(lstm.bias_ih_l0) for n in (proj_size or 5, 5))
    x, c_0 = torch.randn(310, 4, 3).to(c_0), c_0.requires_grad_()
    hx, lengths = (h_0, c_0), torch.tensor([8, 8, 8, 0])
    _, (_, expected) = lstm(x[:8], hx)
    _, (h_n, found) = lstm(x, hx, lengths=lengths)
    _, (_, once_more) = lstm(x[:9], hx, lengths=lengths)
    assert torch.equal(found, once_more) and torch.equal(found[:, 3], c_0[:, 3])
    assert torch.equal(h_n[:, 3], h_0[:, 3])
    roundoff = torch.finfo(dtype).eps
    torch.testing.assert_close(found[:, :3], expected[:, :3], rtol=8 * roundoff, atol=roundoff)
    (gradient,) = torch.autograd.grad(found.sum(), c_0)
    assert (gradient[:, 3] == 1).all()


@every_device
def test_every_engine_draws_the_same_dropout(route):
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(3, 4, num_layers=3, dropout=0.4, dtype=torch.float64)
    case, results = Case(lstm, [5, 0, 3, 5], 5, device=route.device), []
    for engine in ("torch", "reference"):
        lstm.engine = engine
        torch.manual_seed(1)
        results.append(case.results(lstm))
    torch.testing.assert_close(*results, **EXACT)
    assert not torch.equal(results[0][0], case.results(lstm.eval())[0])


def test_no_value_is_read():
    """The call works with meta tensors, so on a GPU neither forward nor backward synchronizes."""
    lstm = fastlstm.LSTM(3, 4, num_layers=2, bidirectional=True, device="meta")
    lstm.engine = "torch"
    x, lengths = torch.empty(5, 2, 3, device="meta"), torch.empty(2, device="meta").long()
    output, (h_n, c_n) = lstm(x, lengths=lengths)
    (output.sum() + h_n.sum() + c_n.sum()).backward()
    assert lstm.weight_ih_l0.grad.shape == lstm.weight_ih_l0.shape


def test_cudnn_keeps_what_backward_needs_only_in_training_mode(monkeypatch):
    lstm = fastlstm.LSTM(3, 4, device="meta")
    lstm.engine, seen = "torch", []
    note = lambda x, hx, _, *options: seen.append((hx[0].is_contiguous(), options[3])) or (x, *hx)
    monkeypatch.setattr(torch._VF, "lstm", note)
    x, state = torch.empty(5, 2, 3, device="meta"), torch.empty(1, 4, 2, device="meta").mT
    for training, enabled, needed in itertools.product((False, True), repeat=3):
        with torch.set_grad_enabled(enabled):
            lstm.train(training).requires_grad_(needed)(x, (state, state))
    assert seen == [(True, training) for training in [False] * 3 + [True] * 5]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_weights_lie_as_cudnn_needs_them(bidirectional, bias):
    """All weights are parts of one tensor, matrices before biases. Otherwise torch warns."""
    lstm = nn.LSTM(24, 16, bidirectional=bidirectional, bias=bias)
    state = torch.zeros(1 + bidirectional, 2, 16)
    layout, parameters = "bias" * bias, list(lstm.parameters())
    call = LstmCall(torch.zeros(3, 2, 24), state, state, parameters, layout)
    wide = torch_lstm._wide_weights(call, 8)
    assert [w.shape[1:] for w in wide] == [(32,), (16,), (), ()] * (1 + bidirectional)
    matrices, biases = ([w for w in wide if w.dim() == dim] for dim in (2, 1))
    expected = wide[0].data_ptr()
    for weight in (*matrices, *biases):
        assert weight.data_ptr() == expected and weight.is_contiguous()
        expected += weight.nbytes
    assert wide[0].untyped_storage().nbytes() == expected - wide[0].data_ptr()


@pytest.mark.parametrize("input_size, wide", [(1, 8), (7, 8), (8, 16), (60, 64), (128, 256)])
def test_the_input_size_is_padded_to_a_multiple_of_8(input_size, wide, monkeypatch):
    seen, run = [], torch_lstm.run_torch
    monkeypatch.setattr(torch_lstm, "run_torch", lambda call: seen.append(call) or run(call))
    lstm = fastlstm.LSTM(input_size, 3)
    lstm.engine = "torch"
    lstm(torch.randn(4, 2, input_size), lengths=torch.tensor([4, 1]))
    assert [(call.input.size(-1), call.training) for call in seen] == [(wide, False)]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_calls_that_auto_gives_to_another_engine(bidirectional):
    why, c_dtype = "no c_0 of .* with an input of torch.bfloat16", torch.float32
    if bidirectional:
        why, c_dtype = "two directions it takes no initial state", torch.bfloat16
    lstm = fastlstm.LSTM(3, 4, bidirectional=bidirectional, dtype=torch.bfloat16)
    x, lengths = torch.randn(5, 2, 3).bfloat16(), torch.tensor([5, 1])
    state = torch.zeros(1 + lstm.bidirectional, 2, 4).bfloat16()
    lstm(x, (state, state.to(c_dtype)), lengths=lengths)
    lstm.engine = "torch"
    with pytest.raises(RuntimeError, match=f"'torch' cannot serve this call: .*{why}; use one of"):
        lstm(x, (state, state.to(c_dtype)), lengths=lengths)
