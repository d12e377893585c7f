"""Recurrent policies of other libraries train alike with nn.LSTM, converted, and with resets."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
# The programs of examples/, and the package that each needs: pip install ".[works-with]".
NEEDS = {"ppo_sb3": "sb3_contrib", "ppo_cleanrl": "gymnasium"}
NEEDS |= {"ppo_rl_games": "rl_games", "ppo_torchrl": "torchrl"}


@pytest.fixture
def example(monkeypatch, request):
    pytest.importorskip(NEEDS[request.param])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    threads = torch.get_num_threads()
    yield importlib.import_module(request.param)
    torch.set_num_threads(threads)


@pytest.fixture
def norms(monkeypatch):
    """The gradient norm of every batch, recorded where the library clips it."""
    found = []
    clip = nn.utils.clip_grad_norm_

    def record(*args, **kwargs):
        norm = clip(*args, **kwargs)
        found.append(norm.item())
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", record)
    if importlib.util.find_spec("rl_games"):
        monkeypatch.setattr("rl_games.common.a2c_common.clip_grad_norm_", record)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("example", NEEDS, indirect=True)
def test_the_gradients_are_those_of_nn_lstm(example, norms):
    """From the same seed, all episodes are the same, and all gradient norms to four digits."""
    returns, every = {}, {}
    for lstm in example.LSTMS:
        norms.clear()
        returns[lstm], every[lstm] = example.train(lstm, 2048, 32), [*norms]
    assert len(every["nn.LSTM"]) >= 32
    for lstm in example.LSTMS:
        assert returns[lstm] == returns["nn.LSTM"]
        assert every[lstm] == pytest.approx(every["nn.LSTM"], rel=1e-4)
