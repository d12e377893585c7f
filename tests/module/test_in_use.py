"""What surrounds an LSTM in training: streams, seeds, processes, pruning, the examples."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from samples import Route, every_module_route
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
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
    """Without detach the gradient too; with it, each chunk's is that of the chunk alone."""
    lstm, x = make(route), draw(route, 7, 2, 3)
    expected, last = lstm(x)
    (expected.sin().sum() + last[1].sum()).backward()
    whole = gradients(lstm)

    for detached in (False, True):
        outputs, state, alone = [], None, None
        for piece in x.split(chunk):
            if detached and state is not None:
                state = (state[0].detach(), state[1].detach())
            before = state
            output, state = lstm(piece, state)
            outputs.append(output)
            if detached:
                output.sin().sum().backward()
                truncated = gradients(lstm)
                given = None if before is None else tuple(s.clone() for s in before)
                lstm(piece, given)[0].sin().sum().backward()
                alone = gradients(lstm)
                torch.testing.assert_close(truncated, alone, **CLOSE)
        torch.testing.assert_close(torch.cat(outputs), expected, **CLOSE)
        torch.testing.assert_close(state, last, **CLOSE)
        if not detached:
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


@every_module_route
def test_pruning(route: Route) -> None:
    """Pruned weights stay zero in training, and are those of a pruned nn.LSTM."""
    ours = make(route)
    theirs = fastlstm.convert(make(route), to="torch")
    x = draw(route, 4, 2, 3)
    for module in (ours, theirs):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
        prune.ln_structured(module, "weight_ih_l1", amount=0.25, n=2, dim=0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            module(x)[0].sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
    assert (ours.weight_hh_l0 == 0).sum() == 50 and (ours.weight_ih_l1 == 0).all(1).sum() == 5


@every_module_route
def test_weight_norm_trains(route: Route) -> None:
    ours = make(route)
    theirs = fastlstm.convert(make(route), to="torch")
    x = draw(route, 4, 2, 3)
    for module in (ours, theirs):
        for name in ("weight_hh_l0", "weight_hh_l1"):
            parametrizations.weight_norm(module, name)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            module(x)[0].sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


class Critic(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm
        torch.manual_seed(1)
        self.score = nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.lstm(x)[0][-1])


@every_module_route
def test_a_gradient_penalty_trains(route: Route) -> None:
    """WGAN-GP (Gulrajani et al., 2017): the loss holds the norm of the critic's gradient."""
    ours = Critic(make(route)).to(route.device)
    theirs = Critic(fastlstm.convert(make(route), to="torch")).to(route.device)
    real, fake, share = draw(route, 6, 4, 3), draw(route, 6, 4, 3), draw(route, 4, 1).sigmoid()
    losses = []
    for critic in (ours, theirs):
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
        for _ in range(10):
            between = (share * real + (1 - share) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:10], losses[10:], **CLOSE)
    assert losses[9] < losses[0] / 2


@every_module_route
def test_hessian_vector_products(route: Route) -> None:
    """With respect to all parameters, as second-order optimizers need them."""
    ours, x = make(route, bidirectional=True), draw(route, 4, 2, 3)
    products = []
    for lstm in (ours, fastlstm.convert(make(route, bidirectional=True), to="torch")):
        weights = list(lstm.parameters())
        first = torch.autograd.grad(lstm(x)[0].sin().sum(), weights, create_graph=True)
        along = sum((g * torch.linspace(-1, 1, g.numel()).to(g).view_as(g)).sum() for g in first)
        products.append(torch.autograd.grad(along, weights))
    torch.testing.assert_close(*products, **CLOSE)
    assert all(p.abs().max() > 1e-3 for p in products[0])


def _zero(lstm: nn.Module) -> None:
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()


def test_memory_shared_with_another_process() -> None:
    lstm = make(Route("auto")).share_memory()
    process = mp.get_context("spawn").Process(target=_zero, args=(lstm,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert lstm.weight_hh_l0.is_shared() and lstm.weight_hh_l0.count_nonzero() == 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_distributed_data_parallel(tmp_path: Path, engine: str) -> None:
    lstm, x = make(Route(engine)), torch.randn(4, 2, 3, dtype=torch.float64)
    lstm(x)[0].sin().sum().backward()
    expected = gradients(lstm)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(lstm)
        parallel(x)[0].sin().sum().backward()
        torch.testing.assert_close(gradients(lstm), expected, rtol=0, atol=0)
    finally:
        # Before the group: if the model's reducer were its last owner, its destructor would wait,
        # with the GIL, for a thread that may want the GIL.
        parallel = None
        gc.collect()
        torch.distributed.destroy_process_group()


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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("resemblyzer") is None, reason="resemblyzer is not installed")
@pytest.mark.parametrize("example", ["published_model"], indirect=True)
def test_a_published_model_converted(example: Any) -> None:
    """Its vectors have length 1; 16-bit and 8-bit weights change them a little."""
    limits = {"nn.LSTM": 0, "converted": 1e-6, "prepacked": 1e-6}
    limits |= {"prepacked in bfloat16": 0.02, "prepacked in int8": 0.1}
    found = {row.name: row.difference for row in example.main(["--windows=2", "--seconds=0.01"])}
    assert list(found) == list(limits)
    assert all(found[way] <= limit for way, limit in limits.items()), found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("language_model", 2.8), ("recurrent_policy", 0.9)])
def test_examples_reach_their_numbers(name: str, limit: float) -> None:
    """As they stand: bits per character below the limit, the share of right turns above it."""
    # The fastlstm of this test, not one that is installed from another folder.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env=environment,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[-2:]:
        value = float(line.split(":")[1].split()[0].rstrip("%"))
        assert value < limit if name == "language_model" else value / 100 > limit, done.stdout
