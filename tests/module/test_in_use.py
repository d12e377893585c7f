"""What surrounds an LSTM in training: streams, seeds, processes, pruning, the examples."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Route, every_module_route
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def make(route: Route, **options: Any) -> fastlstm.LSTM:
    torch.manual_seed(0)
    options = {"num_layers": 2, "dtype": torch.float64} | options
    lstm = fastlstm.LSTM(3, 5, **options, device=route.device)
    lstm.engine = route.engine
    return lstm


def draw(route: Route, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(route.device)


def gradients(lstm: nn.Module) -> list[Tensor]:
    found = [p.grad for p in lstm.parameters()]
    lstm.zero_grad()
    return found  # type: ignore[return-value]


@every_module_route
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_of_a_stream_are_the_whole(route: Route, chunk: int) -> None:
    """The gradient too."""
    lstm, x = make(route), draw(route, 7, 2, 3)
    expected, last = lstm(x)
    (expected.sin().sum() + last[1].sum()).backward()
    whole = gradients(lstm)
    outputs, state = [], None
    for piece in x.split(chunk):
        output, state = lstm(piece, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), expected, **CLOSE)
    torch.testing.assert_close(state, last, **CLOSE)
    (torch.cat(outputs).sin().sum() + state[1].sum()).backward()
    torch.testing.assert_close(gradients(lstm), whole, **CLOSE)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_module_route
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ["dense", "lengths", "packed"])
def test_a_seed_decides_every_bit(route: Route, kind: str) -> None:
    """Of results and gradients, dropout included; an initial state given, as in pytorch#104697."""
    lstm = make(route, num_layers=3, dropout=0.5, bidirectional=True, dtype=torch.float32)
    x = draw(route, 20, 7, 3).float()
    hx = tuple(draw(route, 6, 7, 5).float() for _ in range(2))
    lengths = torch.tensor([20, 17, 9, 9, 4, 2, 1])

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        if kind == "packed":
            output, (h_n, c_n) = lstm(pack_padded_sequence(x, lengths), hx)
            output = output.data
        else:
            output, (h_n, c_n) = lstm(x, hx, lengths=lengths if kind == "lengths" else None)
        (output.sin().sum() + h_n.sum() + c_n.sum()).backward()
        return [output.detach(), h_n.detach(), c_n.detach(), *gradients(lstm)]

    if route.engine == "torch" and kind == "lengths":
        pytest.skip("an option that PyTorch's own LSTM lacks")
    first, second, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[:3], other[:3], strict=True))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


BRIEFLY = {
    "language_model": ["--steps", "2", "--hidden", "16", "--batch", "256", "--window", "16"],
    "recurrent_policy": ["--updates", "2", "--batch", "4", "--steps", "12", "--corridor", "4"],
}


@pytest.mark.parametrize("example", BRIEFLY, indirect=True)
def test_examples_run(example: Any) -> None:
    """Both LSTMs make the same of the same seed; from ours a few updates away, up to rounding."""
    results = example.main(BRIEFLY[example.__name__])
    assert list(results) == ["fastlstm", "torch"]
    assert results["fastlstm"][0] == pytest.approx(results["torch"][0], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("example", ["stream"], indirect=True)
def test_a_stream_runs(example: Any) -> None:
    """With onnxruntime too where it is installed; fewer bits change the scores a little."""
    threads = torch.get_num_threads()
    errors = example.main(["--hidden", "48", "--seconds", "1"])
    torch.set_num_threads(threads)
    limits = {"nn.LSTM": 0, "onnxruntime": 1e-5, "prepack, float32": 1e-5}
    limits |= {"prepack, bfloat16": 0.01, "prepack, int8": 0.05}
    if any(find_spec(name) is None for name in ("onnxruntime", "onnxscript")):
        del limits["onnxruntime"]
    assert list(errors) == list(limits)
    assert all(errors[name] <= limit for name, limit in limits.items()), errors


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, in order, in one namespace; its figure has a bar for every time."""
    pytest.importorskip("matplotlib", reason="the notebook plots")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "replace_an_lstm.ipynb").read_text())
    namespace: dict[str, Any] = {}
    for k, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"code cell {k + 1}", "exec"), namespace)
        assert cell["outputs"] or cell["execution_count"], "the notebook is stored with its outputs"
    training, single = (
        [bar.get_height() for bar in axes.patches] for axes in namespace["figure"].axes
    )
    assert training == [time for times in namespace["training"].values() for time in times]
    assert single == [time for times in namespace["single"].values() for time in times]
