"""The recurrent policies of other libraries train the same with nn.LSTM, converted, with resets."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastlstm

ROOT = Path(__file__).resolve().parents[2]
# The programs, and what must be installed for them: pip install ".[works-with]".
NEEDS = {
    "ppo_sb3": "sb3_contrib",
    "ppo_cleanrl": "gymnasium",
    "ppo_rl_games": "rl_games",
    "ppo_torchrl": "torchrl",
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip(NEEDS[request.param])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    threads = torch.get_num_threads()
    yield importlib.import_module(request.param)
    torch.set_num_threads(threads)


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The norm of the gradient of every batch, which each library clips."""
    found: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        norm = clip(*args, **kwargs)
        found.append(norm.item())
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", record)
    if importlib.util.find_spec("rl_games"):
        monkeypatch.setattr("rl_games.common.a2c_common.clip_grad_norm_", record)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("example", NEEDS, indirect=True)
def test_the_gradients_are_those_of_nn_lstm(example: Any, norms: list[float]) -> None:
    """From the same seed: the episodes are the same, and so is every norm, to four digits."""
    returns, every = {}, {}
    for lstm in example.LSTMS:
        norms.clear()
        returns[lstm], every[lstm] = example.train(lstm, 2048, 32), [*norms]
    assert len(every["nn.LSTM"]) >= 32
    for lstm in example.LSTMS:
        assert returns[lstm] == returns["nn.LSTM"]
        assert every[lstm] == pytest.approx(every["nn.LSTM"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["ppo_sb3"], indirect=True)
def test_a_loaded_policy_is_converted(example: Any, tmp_path: Path) -> None:
    make = lambda policy: example.RecurrentPPO(policy, example.hidden_velocities(), device="cpu")
    own, plain = make(example.WithResets), make("MlpLstmPolicy")
    for model, options in ((own, {}), (plain, {"policy_class": example.WithResets})):
        model.save(tmp_path / "model")
        loaded = example.RecurrentPPO.load(tmp_path / "model", custom_objects=options)
        assert isinstance(loaded.policy, example.WithResets)
        assert isinstance(loaded.policy.lstm_actor, fastlstm.LSTM)
        weights = model.policy.state_dict()
        torch.testing.assert_close(loaded.policy.state_dict(), weights, rtol=0, atol=0)


def test_the_page_shows_the_programs() -> None:
    page = (ROOT / "docs" / "howto" / "recurrent-ppo.md").read_text()
    snippets = re.findall(r"^```py\n(.*?)^```$", page, re.M | re.S)
    programs = "".join((ROOT / "examples" / f"{name}.py").read_text() for name in NEEDS)
    assert snippets
    assert all(snippet in programs for snippet in snippets)
