"""engine="torch": the bits of nn.LSTM, and what aten lacks added; on a GPU by stand-ins for it."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import _build

STACKS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
    {"proj_size": 2, "bidirectional": True, "num_layers": 2, "dropout": 0.4},
]
every_stack = pytest.mark.parametrize("options", STACKS, ids=str)


def pair(cls: Any = nn.LSTM, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = cls(3, 5, **options)
    ours = getattr(fastlstm, cls.__name__)(3, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    ours.engine = "torch"
    return ours, theirs


def results(module: nn.Module, x: Any, hx: Any = None) -> list[Tensor]:
    """Outputs and gradients of a seeded call."""
    torch.manual_seed(1)
    output, state = module(x, hx)
    data = output.data if isinstance(output, PackedSequence) else output
    found = [data, *state]
    if torch.is_grad_enabled():
        leaf = x.data if isinstance(x, PackedSequence) else x
        loss = sum((t.float().sin().sum() for t in found), torch.zeros(()))
        found += torch.autograd.grad(loss, [leaf, *module.parameters()])
    return found


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@every_stack
@pytest.mark.parametrize("form", ["dense", "packed", "unbatched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["training", "eval", "inference"])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_bits(options: dict[str, Any], form: str, dtype: torch.dtype, mode: str) -> None:
    ours, theirs = (m.to(dtype).train(mode == "training") for m in pair(**options))
    x: Any = torch.randn(6, 4, 3).to(dtype).requires_grad_()
    if form == "unbatched":
        x = torch.randn(6, 3).to(dtype).requires_grad_()
    if form == "packed":
        lengths = torch.tensor([4, 3, 1, 1, 1, 1] if ours.batch_first else [2, 6, 5, 6])
        x = pack_padded_sequence(x, lengths, ours.batch_first, enforce_sorted=False)
    with torch.set_grad_enabled(mode != "inference"):
        assert same_bits(results(ours, x), results(theirs, x))


def test_bits_with_a_state_and_under_autocast() -> None:
    ours, theirs = pair(num_layers=2)
    x = torch.randn(6, 4, 3, requires_grad=True)
    hx = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    assert same_bits(results(ours, x, hx), results(theirs, x, hx))
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ours(x, hx), theirs(x, hx)
    assert torch.equal(a[0], b[0]) and a[0].dtype == b[0].dtype


@pytest.mark.parametrize("bias", [True, False])
def test_bits_of_a_cell(bias: bool) -> None:
    ours, theirs = pair(nn.LSTMCell, bias=bias)
    x = torch.randn(4, 3, requires_grad=True)

    def run(cell: nn.Module) -> list[Tensor]:
        h, c = cell(x, cell(x))
        return [h, c, *torch.autograd.grad((h * c).sum(), [x, *cell.parameters()])]

    assert same_bits(run(ours), run(theirs))
    with torch.autocast("cpu", torch.bfloat16):
        expected = [state.dtype for state in theirs(x)]
        for engine in ("torch", "reference", "auto"):
            ours.engine = engine
            assert [state.dtype for state in ours(x)] == expected


class Once(TorchDispatchMode):
    """Fails at the first operation; or `fail`, a hook, at its first call."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.seen = error, 0

    def fail(self, *args: Any) -> Any:
        self.seen += 1
        if self.seen == 1:
            raise self.error
        return args[0] if args else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fail()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["LSTM", "packed", "LSTMCell"])
@pytest.mark.parametrize("error", [RuntimeError("theirs"), IndexError("theirs")], ids=str)
def test_an_error_of_somebody_else_is_raised(what: str, error: Exception) -> None:
    """It was taken for one of bad arguments, and the call was made again."""
    if what == "LSTMCell":
        module, x = pair(nn.LSTMCell)[0], torch.zeros(2, 3)
    else:
        module, x = pair()[0], torch.zeros(4, 2, 3)
    given = pack_padded_sequence(x, [4, 2]) if what == "packed" else x
    mode, saved, weight = Once(error), Once(error), Once(error)
    with mode, pytest.raises(type(error), match="theirs"):
        module(given)
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.fail, saved.fail)
    with hooks, pytest.raises(type(error), match="theirs"):
        module(given)
    name = next(name for name, _ in module.named_parameters())
    nn.utils.parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
    module.parametrizations[name][0].forward = weight.fail
    with pytest.raises(type(error), match="theirs"):
        module(given)
    assert saved.seen == weight.seen == 1
    module(given)


def test_retain_graph_and_checkpoint() -> None:
    ours, theirs = pair(num_layers=2, dropout=0.5)
    x = torch.randn(6, 4, 3, requires_grad=True)
    for module in (ours, theirs):
        torch.manual_seed(1)
        output = module(x)[0].sum()
        first = torch.autograd.grad(output, x, retain_graph=True)
        assert torch.equal(first[0], torch.autograd.grad(output, x)[0])
    recomputed = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        output = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)[0]
        recomputed.append(torch.autograd.grad(output.sum(), [x, *module.parameters()]))
    assert same_bits(*recomputed)


def test_transforms_and_compilers_say_that_they_cannot() -> None:
    ours, _ = pair()
    x = torch.randn(6, 2, 3)
    for run in (
        lambda: torch.func.jvp(lambda x: ours(x)[0], (x,), (x,)),
        lambda: torch.func.vmap(lambda x: ours(x)[0])(x.expand(4, -1, -1, -1)),
        lambda: torch.export.export(ours.eval(), (x,)),
    ):
        with pytest.raises(RuntimeError, match="engine 'torch' cannot serve this call"):
            run()


OPTIONS = {
    "lengths": {"lengths": torch.tensor([2, 1])},
    "reset": {"reset": torch.zeros(4, 2)},
    "return_cell_states": {"return_cell_states": True},
}
ATTRIBUTES = {"zoneout_h": 0.5, "input_dropout": 0.5, "weight_dropout": 0.5}


def test_options_that_it_lacks_are_named() -> None:
    x = torch.zeros(4, 2, 3)
    ours, _ = pair()
    for name, words in OPTIONS.items():
        with pytest.raises(RuntimeError, match=f"'torch' cannot serve this call.* has no {name};"):
            ours(x, **words)
    for name, value in ATTRIBUTES.items():
        ours, _ = pair()
        setattr(ours, name, value)
        with pytest.raises(RuntimeError, match=f"'torch' cannot serve this call.* has no {name};"):
            ours(x)
    with pytest.raises(RuntimeError, match="has no lengths, reset;"):
        pair()[0](x, **OPTIONS["lengths"], **OPTIONS["reset"])
    norm = fastlstm.LayerNormLSTM(3, 5)
    norm.engine = "torch"
    with pytest.raises(RuntimeError, match="has no layer normalization;"):
        norm(x)


# flatten_parameters, with a stand-in for cuDNN's function, which copies all weights into one chunk.


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The lists of weights that were flattened, on what passes for a GPU."""
    seen: list[list[Tensor]] = []

    def flatten(self: nn.RNNBase) -> None:
        if len(self._flat_weights) == len(self._flat_weights_names):  # else under construction
            seen.append(list(self._flat_weights))

    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return seen


def is_flat(lstm: Any, seen: list[list[Tensor]]) -> bool:
    weights = list(lstm.parameters())
    return any(len(s) == len(weights) and all(map(lambda a, b: a is b, s, weights)) for s in seen)


def test_weights_are_flat_whatever_made_them(flat: list[list[Tensor]]) -> None:
    lstm = fastlstm.LSTM(3, 5, num_layers=2)
    assert is_flat(lstm, flat)
    flat.clear()
    assert is_flat(lstm.double(), flat)
    assert is_flat(copy.deepcopy(lstm), flat)
    flat.clear()
    assert is_flat(fastlstm.convert(nn.Sequential(nn.LSTM(3, 5)))[0], flat)
    flat.clear()
    lstm.load_state_dict(lstm.state_dict(), assign=True)
    lstm._fastlstm_keep_flat(list(lstm.parameters()))  # as a call on a GPU does
    assert is_flat(lstm, flat)
    flat.clear()
    lstm._fastlstm_keep_flat(list(lstm.parameters()))
    assert not flat


def test_weights_that_must_not_be_flattened(
    flat: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm = fastlstm.LSTM(3, 5)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    fastlstm.LayerNormLSTM(3, 5)
    flat.clear()
    lstm._fastlstm_keep_flat([getattr(lstm, name) for name in lstm._flat_weights_names])
    assert not flat
    lstm = fastlstm.LSTM(3, 5)
    lstm.load_state_dict(lstm.state_dict(), assign=True)
    flat.clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    lstm._fastlstm_keep_flat(list(lstm.parameters()))
    assert not flat
    fastlstm.LayerNormLSTM(3, 5).double()
    assert not flat


WITHOUT_EXTENSION = """
import torch, warnings
from torch import nn
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastlstm
assert len(caught) == 1, [str(w.message) for w in caught]
message = str(caught[0].message)
for part in ("plain calls run PyTorch's own LSTM", "reset=", "prepack", "To build it: "):
    assert part in message, message
calls = []
layer = fastlstm.reference.lstm_layer
fastlstm.reference.lstm_layer = lambda *args: (calls.append(1), layer(*args))[1]
theirs = nn.LSTM(3, 5, num_layers=2)
ours = fastlstm.LSTM(3, 5, num_layers=2)
ours.load_state_dict(theirs.state_dict())
x = torch.randn(6, 4, 3)
assert torch.equal(ours(x)[0], theirs(x)[0])
data, weights = nn.utils.rnn.pack_sequence([x[:, 0], x[:4, 1]]), ours._flat_weights
assert torch.equal(ours(data)[0].data, theirs(data)[0].data)
assert torch.equal(fastlstm.functional.lstm(x, None, weights, num_layers=2)[0], theirs(x)[0])
cell = fastlstm.LSTMCell(3, 5)
known = nn.LSTMCell(3, 5)
known.load_state_dict(cell.state_dict())
assert torch.equal(cell(x[0])[1], known(x[0])[1])
assert not calls
ours(x, lengths=torch.tensor([6, 2, 0, 1]))
ours(x, reset=torch.zeros(6, 4))
assert len(calls) == 4
"""


def test_without_the_extension(tmp_path: Path) -> None:
    """Plain calls are PyTorch's own, others the reference's, and one warning says so."""
    package = Path(fastlstm.__file__).parent
    leave = shutil.ignore_patterns("_C*", "_build_info.json", "__pycache__")
    shutil.copytree(package, tmp_path / "fastlstm", ignore=leave)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTENSION],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_error_of_a_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch adds how to debug kernels, which no user of an old driver has to do."""
    told = "CUDA driver version is insufficient\nCUDA kernel errors might be reported later."
    monkeypatch.setattr(torch.ops.fastlstm, "cuda_device", lambda index: (0, 0, told), False)
    assert _build.gpu(1 << 20) == (0, 0, "CUDA driver version is insufficient")
