"""docs/reference/differences.md, row by row: what nn.LSTM of torch 2.13 does, and what ours."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastlstm
from fastlstm import _build

pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="describes torch 2.13"),
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.filterwarnings("ignore"),  # torch's, about fallbacks and exporters
]
Class = type[nn.RNNBase]
Row = Callable[[Class], object]
ROWS: dict[str, tuple[Row, object, object]] = {}


def row(torch_does: object, ours_does: object) -> Callable[[Row], Row]:
    """A row of the page: what the function returns for each class, or "raises"."""

    def add(function: Row) -> Row:
        ROWS[function.__name__] = (function, torch_does, ours_does)
        return function

    return add


def example() -> Tensor:
    return torch.randn(5, 3, 4)


def loss(lstm: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(lstm, weights, (x,))[0].square().sum()


def weights_of(lstm: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in lstm.named_parameters()}


@row(True, False)
def isinstance_of_nn_lstm(cls: Class) -> object:
    return isinstance(cls(4, 8), nn.LSTM)


@row(True, True)
def the_values_of_a_seed(cls: Class) -> object:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
    both = []
    for each in (nn.LSTM, cls):
        torch.manual_seed(0)
        both.append(each(4, 8, **options).parameters())
    return all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@row(True, False)
def packed_input_takes_more_operators_for_more_steps(cls: Class) -> object:
    def operators(steps: int) -> int:
        lstm, lengths = cls(4, 8), torch.tensor([steps, steps - 1, steps - 2])
        packed = pack_padded_sequence(torch.randn(steps, 3, 4), lengths)
        with torch.profiler.profile() as profile:
            lstm(packed)
        return sum(event.count for event in profile.key_averages())

    return operators(40) > 2 * operators(10)


@row((3, 32, 8), (3, 32, 8))
def per_sample_gradients(cls: Class) -> object:
    lstm = cls(4, 8)
    gradients = vmap(grad(lambda w, x: loss(lstm, w, x)), in_dims=(None, 1))
    return gradients(weights_of(lstm), example())["weight_hh_l0"].shape


@row("raises", (2,))
def ensembles(cls: Class) -> object:
    lstm = cls(4, 8)
    members = {name: torch.stack([w, w]) for name, w in weights_of(lstm).items()}
    return vmap(lambda w, x: loss(lstm, w, x), in_dims=(0, None))(members, example()).shape


@row("raises", (5, 3, 8))
def forward_mode(cls: Class) -> object:
    lstm, x = cls(4, 8), example()
    return jvp(lambda x: functional_call(lstm, weights_of(lstm), (x,))[0], (x,), (x,))[1].shape


@row((7, 5, 3, 4), (7, 5, 3, 4))
def batched_gradients(cls: Class) -> object:
    x = example().requires_grad_()
    output = cls(4, 8)(x)[0]
    given = torch.randn(7, *output.shape)
    return torch.autograd.grad(output, x, given, is_grads_batched=True)[0].shape


def compiled(cls: Class) -> object:
    torch._dynamo.reset()
    return torch.compile(cls(4, 8), fullgraph=True, backend="aot_eager")(example())[0].shape


row("raises", (5, 3, 8))(compiled)


@row("raises", (5, 3, 8))
def compiled_with_allow_rnn(cls: Class) -> object:
    with torch._dynamo.config.patch(allow_rnn=True):
        return compiled(cls)


@row((5, 3, 8), (5, 3, 8))
def compiled_with_allow_rnn_without_gradients(cls: Class) -> object:
    with torch.no_grad():
        return compiled_with_allow_rnn(cls)


@row(0, 3 * 8 * 5 * 3 * 8 * (4 + 8))
def flops(cls: Class) -> object:
    counter = FlopCounterMode(display=False)
    with counter:
        cls(4, 8)(example())[0].sum().backward()
    return counter.get_total_flops()


@row("works", "works")
def scripting(cls: Class) -> object:
    torch.jit.script(cls(4, 8))
    return "works"


@row(2, 2)
def lstm_nodes_of_two_layers_in_onnx(cls: Class) -> object:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    options: dict[str, Any] = {"dynamo": True, "verbose": False}
    if cls is fastlstm.LSTM:
        options["custom_translation_table"] = fastlstm.onnx.translations()
    lstm = cls(4, 8, num_layers=2, bidirectional=True).eval()
    nodes = torch.onnx.export(lstm, (example(),), **options).model_proto.graph.node
    return [node.op_type for node in nodes].count("LSTM")


@row(2, 2)
def lstm_nodes_of_the_exporter_that_traces(cls: Class) -> object:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    file = io.BytesIO()
    lstm = cls(4, 8, num_layers=2, bidirectional=True).eval()
    torch.onnx.export(nn.Sequential(lstm), (example(),), file, dynamo=False)
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    return [node.op_type for node in nodes].count("LSTM")


def writing_to(name: str, module: nn.Module, x: Tensor) -> object:
    output = module(x)[0].sum()
    with torch.no_grad():
        getattr(module, name).add_(1)
    output.backward()
    return "works"


@row("raises", "raises")
def writing_to_a_bias(cls: Class) -> object:
    return writing_to("bias_ih_l0", cls(4, 8), example())


@row("raises", "raises")
def writing_to_a_weight_that_no_gradient_needs(cls: Class) -> object:
    return writing_to("weight_ih_l0", cls(4, 8), example())


@row("raises", "raises")
def writing_to_a_weight_that_the_gradient_of_the_input_needs(cls: Class) -> object:
    return writing_to("weight_ih_l0", cls(4, 8), example().requires_grad_())


@row("works", "raises")
def writing_to_a_bias_of_a_cell(cls: Class) -> object:
    cell = fastlstm.LSTMCell if cls is fastlstm.LSTM else nn.LSTMCell
    return writing_to("bias_ih", cell(4, 8), example()[0])


def writing_to_output(cls: Class, **options: Any) -> object:
    output, _ = cls(4, 8, **options)(example())
    output.mul_(2).sum().backward()
    return "works"


row("raises", "raises")(writing_to_output)


@row("works", "raises")
def writing_to_output_of_two_directions(cls: Class) -> object:
    return writing_to_output(cls, bidirectional=True)


@row("works", "works")
def writing_to_h_n_and_c_n(cls: Class) -> object:
    output, (h_n, c_n) = cls(4, 8)(example())
    (output.sum() + h_n.mul_(2).sum() + c_n.mul_(2).sum()).backward()
    return "works"


@row(True, True)
def the_gradient_of_a_cells_c(cls: Class) -> object:
    """Of the next step alone for ours, through h too for nn.LSTMCell on a CPU."""
    ours = cls is fastlstm.LSTM
    cell = (fastlstm.LSTMCell if ours else nn.LSTMCell)(4, 8)
    x, hx = torch.randn(2, 3, 4), (torch.zeros(3, 8), torch.zeros(3, 8))
    h_1, c_1 = cell(x[0], hx)
    c_1.retain_grad()
    cell(x[1], (h_1, c_1))[0].sum().backward()
    h, c = h_1.detach(), c_1.detach().requires_grad_()
    cell(x[1], (h, c))[0].sum().backward()
    return torch.allclose(c_1.grad, c.grad) is ours


@row("works", "works")
def complex_numbers(cls: Class) -> object:
    lstm = cls(4, 8, dtype=torch.complex64)
    lstm.engine = "auto"
    lstm(example().cfloat())
    return "works"


@row("works", "works")
def complex_numbers_of_the_engine_of_torch(cls: Class) -> object:
    lstm = cls(4, 8, dtype=torch.complex64)
    lstm.engine = "torch"
    lstm(example().cfloat())[0].abs().sum().backward()
    return "works"


@row(2, 1)
def times_a_parametrized_weight_is_computed(cls: Class) -> object:
    lstm, calls = cls(4, 8), []
    nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Identity())
    norm = lstm.parametrizations["weight_hh_l0"][0]
    norm.register_forward_hook(lambda *_: calls.append(1))
    lstm(example())
    return len(calls)


@row("quantized", "left alone")
def dynamic_quantization(cls: Class) -> object:
    model = nn.Sequential(cls(4, 8))
    quantized = torch.ao.quantization.quantize_dynamic(model, {cls}, dtype=torch.qint8)
    return "left alone" if type(quantized[0]) is cls else "quantized"


@row("accepted without effect", "multiplies in bfloat16")
def products_in_bfloat16(cls: Class) -> object:
    if not _build.library.build_info()["multiplies_bfloat16"]:
        pytest.skip("this processor has no products of bfloat16")
    lstm, x = cls(64, 64), torch.randn(20, 8, 64)
    exact = lstm(x)[0]
    torch.backends.mkldnn.rnn.fp32_precision = "bf16"
    try:
        rounded = lstm(x)[0]
    finally:
        torch.backends.mkldnn.rnn.fp32_precision = "none"
    return "accepted without effect" if torch.equal(exact, rounded) else "multiplies in bfloat16"


@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM], ids=["torch", "fastlstm"])
@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, cls: Class) -> None:
    function, torch_does, ours_does = ROWS[name]
    expected = torch_does if cls is nn.LSTM else ours_does
    if expected == "raises":
        with pytest.raises((RuntimeError, AssertionError, torch._dynamo.exc.Unsupported)):
            function(cls)
    else:
        assert function(cls) == expected
