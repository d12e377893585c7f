"""Each row of docs/reference/differences.md: what nn.LSTM of torch 2.13 and fastlstm.LSTM do."""

import io
import itertools
import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree
from torch.utils.flop_counter import FlopCounterMode

import fastlstm
from fastlstm import _build

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "differences.md"
pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="describes torch 2.13"),
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of fallbacks and exporters
]
# For each row, its functions with the results expected of nn.LSTM and of fastlstm.LSTM.
ROWS = {}
REGULARIZERS = "module/test_regularizers.py"
# Rows that need a GPU or that other files test.
TESTED_ELSEWHERE = {
    "rows of different length": "module/test_sequences.py",
    "state reset inside a sequence": "module/test_sequences.py",
    "all cell states": "module/test_sequences.py",
    "dropout of inputs, of h and of weights; zoneout; layer normalization": REGULARIZERS,
    "second derivatives": "op/test_layer.py",
    "the same seed, dropout included": "module/test_module.py",
    "tools that ask `type(m) is nn.LSTM`": "works_with.py",
    "16-bit types on a CPU": "op/test_numerics.py",
    "TF32 on a GPU": "cuda/test_cuda_op.py",
    "gradients in eval mode": "module/test_torch_engine.py",
    "float16 or bfloat16 under autocast": "module/test_differences.py",
    "which engine runs": "module/test_engine.py",
}


def row(name, torch_does, ours_does):
    """Adds the decorated function(class, Case) to a row of the page. A row may have several.

    `torch_does` and `ours_does` are its results for nn.LSTM and fastlstm.LSTM, or "raises".
    """

    def add(function):
        ROWS.setdefault(name, []).append((function, torch_does, ours_does))
        return function

    return add


class Case:
    def __init__(self, seed):
        torch.manual_seed(seed)
        draw = random.Random(seed).randint
        self.T, self.B, self.I, self.H = draw(2, 7), draw(1, 5), draw(1, 6), draw(2, 9)

    def layer(self, cls, **options):
        return cls(self.I, self.H, **options)

    @property
    def x(self):
        return torch.randn(self.T, self.B, self.I)


def loss(lstm, weights, x):
    return functional_call(lstm, weights, (x,))[0].square().sum()


def weights_of(lstm):
    return {name: p.detach() for name, p in lstm.named_parameters()}


@row("nested tensors", "raises", "jagged")
def _(cls, case):
    rows = [torch.randn(steps, case.I) for steps in (case.T, 1)]
    output, _ = case.layer(cls)(torch.nested.nested_tensor(rows, layout=torch.jagged))
    return str(output.layout).removeprefix("torch.")


@row("packed input on a CPU", "more operators for more steps", "no more")
def _(cls, case):
    def operators(steps):
        packed = pack_padded_sequence(torch.randn(steps, 3, case.I), [steps, steps - 1, steps - 2])
        lstm = case.layer(cls)
        with torch.profiler.profile() as profile:
            lstm(packed)
        return sum(event.count for event in profile.key_averages())

    return "more operators for more steps" if operators(40) > 2 * operators(10) else "no more"


@row("`torch.func`: grad, vmap(grad)", "works", "works")
def _(cls, case):
    lstm, x = case.layer(cls), case.x
    gradients = vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(None, 1))(weights_of(lstm), x)
    (expected,) = torch.autograd.grad(lstm(x[:, 0])[0].square().sum(), lstm.weight_hh_l0)
    torch.testing.assert_close(gradients["weight_hh_l0"][0], expected)
    return "works"


@row("`torch.func`: vmap without grad", "raises", "works")
def _(cls, case):
    lstm, x = case.layer(cls), case.x
    members = {name: torch.stack([w, w]) for name, w in weights_of(lstm).items()}
    found = vmap(lambda w: loss(lstm, w, x))(members)
    torch.testing.assert_close(found, torch.stack([loss(lstm, weights_of(lstm), x)] * 2))
    return "works"


@row("`torch.func`: jvp, jacfwd, hessian", "raises", "works")
def _(cls, case):
    lstm, x = case.layer(cls), case.x
    jvp(lambda x: functional_call(lstm, weights_of(lstm), (x,))[0], (x,), (x,))
    return "works"


def compiled(cls, case):
    torch._dynamo.reset()
    lstm, x = case.layer(cls), case.x
    found = torch.compile(lstm, fullgraph=True, backend="aot_eager")(x)[0]
    torch.testing.assert_close(found, lstm(x)[0])
    return "works"


row("`torch.compile(fullgraph=True)`", "raises", "works")(compiled)


@row("`torch.compile(fullgraph=True)`", "works", "works")
def _(cls, case):
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        return compiled(cls, case)


@row("ONNX", 2, 2)
def _(cls, case):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    options = {"dynamo": True, "verbose": False}
    if cls is fastlstm.LSTM:
        options["custom_translation_table"] = fastlstm.onnx.translations()
    lstm = case.layer(cls, num_layers=2, bidirectional=True).eval()
    nodes = torch.onnx.export(lstm, (case.x,), **options).model_proto.graph.node
    return [node.op_type for node in nodes].count("LSTM")


@row("ONNX", 2, 2)
def _(cls, case):
    """The same with dynamo=False, which exports by tracing."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    lstm, file = case.layer(cls, num_layers=2, bidirectional=True).eval(), io.BytesIO()
    torch.onnx.export(nn.Sequential(lstm), (case.x,), file, dynamo=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    return [node.op_type for node in nodes].count("LSTM")


@row("`FlopCounterMode` on a CPU", "nothing", "the matrix products")
def _(cls, case):
    """Forward counts two operations for each weight, row and step; backward counts four."""
    T, B, I, H, P = case.T, case.B, case.I, case.H, case.H // 2
    counts, expected = [], []
    projected = [({"proj_size": P}, I + P + P / 4)] if cls is fastlstm.LSTM else []
    for options, per_step in (({}, I + H), *projected):
        lstm = case.layer(cls, **options)
        with FlopCounterMode(display=False) as counter:
            lstm(case.x)[0].sum().backward()
        counts.append(counter.get_total_flops())
        expected.append(3 * 2 * T * B * 4 * H * per_step)
    return "the matrix products" if counts == expected else "nothing" if not any(counts) else counts


@row("`isinstance(m, nn.LSTM)`", True, False)
def _(cls, case):
    layer = case.layer(cls)
    assert isinstance(fastlstm.convert(nn.LSTM(case.I, case.H)), nn.LSTM)
    return isinstance(layer, nn.LSTM)


@row("`torch.jit.script`", "works", "an error")
def _(cls, case):
    layer = case.layer(cls)
    try:
        torch.jit.script(layer)
    except RuntimeError:
        torch.jit.script(fastlstm.convert(layer, to="torch"))
        return "an error"
    return "works"


@row("dynamic quantization by torch.ao", "converts it", "leaves it unchanged")
def _(cls, case):
    model = nn.Sequential(case.layer(cls))
    quantized = torch.ao.quantization.quantize_dynamic(model, {cls}, dtype=torch.qint8)
    return "leaves it unchanged" if type(quantized[0]) is cls else "converts it"


def cell_of(cls):
    return fastlstm.LSTMCell if cls is fastlstm.LSTM else nn.LSTMCell


@row("`retain_grad` of a cell's c", "by h and by c", "by c only")
def _(cls, case):
    cell, x = case.layer(cell_of(cls)), case.x
    h_1, c_1 = cell(x[0])
    c_1.retain_grad()
    cell(x[1], (h_1, c_1))[0].sum().backward()
    h, c = h_1.detach(), c_1.detach().requires_grad_()
    cell(x[1], (h, c))[0].sum().backward()
    return "by c only" if torch.allclose(c_1.grad, c.grad) else "by h and by c"


WRITING = "`output`, or a cell's bias, written to before backward"


def writing_to(name, module, x):
    output = module(x)[0].sum()
    with torch.no_grad():
        getattr(module, name).add_(1)
    output.backward()
    return "works"


@row(WRITING, "works", "raises")
def _(cls, case):
    return writing_to("bias_ih", case.layer(cell_of(cls)), case.x[0])


@row(WRITING, "raises", "raises")
def _(cls, case):
    name = random.choice([name for name, _ in case.layer(cls).named_parameters()])
    return writing_to(name, case.layer(cls), case.x)


def writing_to_output(cls, case, **options):
    case.layer(cls, **options)(case.x)[0].mul_(2).sum().backward()
    return "works"


row(WRITING, "raises", "raises")(writing_to_output)
row(WRITING, "works", "raises")(partial(writing_to_output, bidirectional=True))


@row(WRITING, "works", "works")
def _(cls, case):
    output, (h_n, c_n) = case.layer(cls)(case.x)
    (output.sum() + h_n.mul_(2).sum() + c_n.mul_(2).sum()).backward()
    return "works"


@row("a parametrized weight", 2, 1)
def _(cls, case):
    lstm, calls = case.layer(cls), []
    nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Identity())
    norm = lstm.parametrizations["weight_hh_l0"][0]
    norm.register_forward_hook(lambda *_: calls.append(1))
    lstm(case.x)
    return len(calls)


@row("`torch.backends.mkldnn.rnn.fp32_precision`", "changes nothing", "multiplies in bfloat16")
def _(cls, case):
    if not _build.library.build_info()["multiplies_bfloat16"]:
        pytest.skip("this processor has no products of bfloat16")
    lstm, x = cls(64, 64), torch.randn(20, 8, 64)
    exact = lstm(x)[0]
    torch.backends.mkldnn.rnn.fp32_precision = "bf16"
    try:
        rounded = lstm(x)[0]
    finally:
        torch.backends.mkldnn.rnn.fp32_precision = "none"
    return "changes nothing" if torch.equal(exact, rounded) else "multiplies in bfloat16"


NAN = "NaN or infinity in W_hh, one step without a state"


@row(NAN, "NaN", "finite")
def _(cls, case):
    """With a state both are NaN, or saturated by an infinity."""
    number = random.choice([float("nan"), float("inf")])
    options = random.choice([{}, {"batch_first": True}, {"bias": False}])
    lstm, cell = case.layer(cls, **options), case.layer(cell_of(cls))
    torch.nn.init.constant_(lstm.weight_hh_l0, number)
    torch.nn.init.constant_(cell.weight_hh, number)
    x, zeros = torch.randn(1, 1, case.I), torch.zeros(1, 1, case.H)
    mixed = zeros.clone().index_fill_(2, torch.tensor(0), 1)  # 0 * inf in all rows of W_hh but one
    for module, given, state in ((lstm, x, mixed), (cell, x[0], mixed[0])):
        assert module(given, (state, state))[0].isnan().any()
    results = lstm(x)[0], lstm(pack_padded_sequence(x, [1]))[0].data, cell(x[0])[0]
    if all(r.isnan().all() for r in results):
        return "NaN"
    return "finite" if all(r.isfinite().all() for r in results) else "mixed"


WIDE_C = "c in float32, input and h in 16 bits"


def with_wide_c(module, case, dtype, *layers):
    x, h = torch.ones(*layers, 1, case.I, dtype=dtype), torch.ones(*layers, 1, case.H, dtype=dtype)
    results = _pytree.tree_leaves(module(x, (h, h.float())))
    return [str(t.dtype).removeprefix("torch.") for t in results]


@row(WIDE_C, ["float32", "float32"], "16 bits and float32")
def _(cls, case):
    for dtype in (torch.bfloat16, torch.float16):
        found = with_wide_c(case.layer(cell_of(cls), dtype=dtype), case, dtype)
        if found == [str(dtype).removeprefix("torch."), "float32"]:
            found = "16 bits and float32"
    return found


@row(WIDE_C, "raises", ["bfloat16", "bfloat16", "float32"])
def _(cls, case):
    lstm = cls(case.I, case.H, proj_size=1, dtype=torch.bfloat16)
    x = torch.ones(1, 1, case.I, dtype=torch.bfloat16)
    output, (h, c) = lstm(x, (x[..., :1], torch.ones(1, 1, case.H)))
    return [str(t.dtype).removeprefix("torch.") for t in (output, h, c)]


@row("types of errors", "NotImplementedError", "TypeError")
def _(cls, case):
    with pytest.raises((NotImplementedError, TypeError)) as error:
        case.layer(cls)(torch.nested.nested_tensor([torch.randn(2, case.I)]))
    return error.type.__name__


@row("types of errors", "TypeError", "RuntimeError")
def _(cls, case):
    with pytest.raises((RuntimeError, TypeError)) as error:
        case.layer(cls)(PackedSequence(torch.randn(3, case.I), torch.tensor([2.0, 1.0])))
    return error.type.__name__


FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}
FORMS = [("LSTM", "dense"), ("LSTM", "packed"), ("LSTM, proj_size", "dense")]
FORMS += [("LSTM, proj_size", "packed"), ("LSTMCell", "dense")]


def dtypes_under_autocast(cls, module, form, dtype, autocast, **options):
    """The dtypes of output, h and c as a row of the page has them, or "an error"."""
    dtype, x = FLOATS.get(dtype, torch.float64), torch.randn(3, 2, 4)
    given = x.to(dtype) if form == "dense" else pack_padded_sequence(x.to(dtype), [3, 1])
    if module == "LSTMCell":
        call = lambda: cell_of(cls)(4, 6, dtype=dtype)(given[0])
    else:
        options |= {"proj_size": 2} if "proj" in module else {}
        call = lambda: cls(4, 6, dtype=dtype, **options)(given)
    try:
        with torch.autocast("cpu", FLOATS[autocast]):
            results = _pytree.tree_leaves(call())
    except RuntimeError:
        return "an error"
    floating = [t for t in results if t is not None and t.is_floating_point()]
    return ", ".join(str(t.dtype).removeprefix("torch.") for t in floating)


def autocast_rows(**options):
    for (module, form), dtype, autocast in itertools.product(FORMS, FLOATS, [*FLOATS][1:]):
        call = module, form, dtype, autocast
        yield *call, *(dtypes_under_autocast(c, *call, **options) for c in (nn.LSTM, fastlstm.LSTM))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": True}], ids=str)
def test_the_table_of_autocast(options):
    table = re.findall(r"^\| (LSTM.*) \|$", PAGE.read_text(), re.M)
    expected = [tuple(line.split(" | ")) for line in table]
    for wanted, found in zip(expected, autocast_rows(**options), strict=True):
        *_, torch_does, ours_does = wanted
        assert found[:4] == wanted[:4] and found[5] == ours_does, (found, wanted)
        if torch_does == "an error":  # some processors have instructions for it
            assert found[4] in ("an error", ours_does)
        else:
            assert found[4] == torch_does, (found, wanted)
    assert dtypes_under_autocast(
        fastlstm.LSTM, "LSTM", "dense", "float64", "bfloat16", **options
    ) == ("float64, float64, float64")


@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM], ids=["torch", "fastlstm"])
@pytest.mark.parametrize("name, k", [(name, k) for name in ROWS for k in range(len(ROWS[name]))])
def test_row(name, k, cls):
    function, torch_does, ours_does = ROWS[name][k]
    expected = torch_does if cls is nn.LSTM else ours_does
    for seed in range(2):
        if expected == "raises":
            with pytest.raises((RuntimeError, AssertionError, torch._dynamo.exc.Unsupported)):
                function(cls, Case(seed))
        else:
            assert function(cls, Case(seed)) == expected


def test_every_row_of_the_page_has_a_test():
    text = PAGE.read_text().partition("## Autocast")[0]  # the table of autocast has its own test
    names = re.findall(r"^\| ([^|]+?) \|", text, re.M)
    assert {*names} == {*ROWS, *TESTED_ELSEWHERE}
    assert all((PAGE.parents[2] / "tests" / file).exists() for file in TESTED_ELSEWHERE.values())
