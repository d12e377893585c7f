"""Self-critical training: the reward, the gradient, that captions get better, and resuming."""

import copy
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from captioning.data.vocabulary import END, PAD, START, UNK
from captioning.model.checkpoint import load_checkpoint
from captioning.model.cider import CiderD
from captioning.settings import TrainConfig
from captioning.training.loop import train
from captioning.training.self_critical import SelfCriticalTrainer, advantage
from captioning.training.setup import Setup

FIRST = TrainConfig(epochs=6, batch_size=48, warmup=2, learning_rate=1e-2, autocast="none")
STAGE = TrainConfig(epochs=2, batch_size=24, warmup=2, self_critical=4, autocast="none")


def test_the_reward_is_pycocoevalcaps_cider_d():
    from pycocoevalcap.cider.cider import Cider

    rng = random.Random(0)
    caption = lambda: [*rng.choices(range(4, 10), k=rng.randint(1, 8)), END]
    text = lambda tokens: " ".join(f"w{token}" for token in tokens)
    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(30)]
    written = [caption() for _ in range(28)] + [references[28][0], [END]]
    wanted = {i: [text(r) for r in group] for i, group in enumerate(references)}
    _, expected = Cider().compute_score(wanted, {i: [text(c)] for i, c in enumerate(written)})
    cider = CiderD(references)
    found = [cider.scores(i, [c])[0] for i, c in enumerate(written)]
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert found[28] > 1 and len({round(value, 6) for value in found}) > 20
    assert cider.scores(3, written[:4])[3] == found[3]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_consensus_is_the_mean_score_against_the_others(count):
    captions = [[5], [5, 6, END], [5, 6, 7, 8, END]][:count]
    cider = CiderD([*([caption] for caption in captions), [[9]]])
    scores = [[cider.scores(j, [c])[0] for j in range(count)] for c in captions]
    expected = [(sum(row) - row[i]) / max(1, count - 1) for i, row in enumerate(scores)]
    assert cider.consensus(captions) == pytest.approx(expected, abs=1e-12)


def test_the_advantage_compares_with_the_mean_of_the_others():
    reward = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    expected = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantage(reward), expected)


@pytest.fixture(params=["lstm", "attention"])
def start(request, new_checkpoint, data):
    """A function that makes captioners of each decoder, and a table with features for them."""
    if request.param == "lstm":
        return new_checkpoint, data.train
    cells = copy.copy(data.train)  # the means of the four quarters are the cells of a 2 x 2 grid
    cells.read = lambda images=None: data.train.read(images).unflatten(1, (5, 48))[:, 1:]
    return partial(new_checkpoint, feature_size=48, decoder="attention", grid=2), cells


def test_the_gradient_is_that_of_the_expected_reward(start):
    """With captions of one word the expected reward is a sum over words, with a known gradient."""
    make, table = start
    config = replace(STAGE, self_critical=40_000)
    trainer = SelfCriticalTrainer(make(max_seq_length=1), config, table)
    model, bias = trainer.model, trainer.model.decoder.linear.bias
    torch.manual_seed(0)
    loss, count, reward = trainer.objective(torch.tensor([0]))
    found = torch.autograd.grad(loss / count, bias)[0]
    image = model.encoder.embed(table.read(torch.tensor([0])))
    scores, _ = model.decoder.step(torch.tensor([START]), model.decoder.start(image))
    gains = [trainer.cider.scores(0, [[word]])[0] for word in range(scores.size(1))]
    scores[:, [PAD, START, UNK]] = -torch.inf
    expected_reward = scores.softmax(1) @ torch.tensor(gains)
    expected = torch.autograd.grad(-expected_reward.sum(), bias)[0]
    assert reward.item() == pytest.approx(expected_reward.item(), rel=0.1)
    # 40,000 draws have an error of about 2 % of the largest entry.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06 * expected.abs().max().item())


def test_training_raises_the_reward_and_does_not_change_batch_norm(start, tmp_path):
    make, table = start
    train(Setup(make(max_seq_length=16), FIRST, {"train": table}), tmp_path / "first")
    best = load_checkpoint(tmp_path / "first" / "best.pt")
    statistics = best.model.encoder.bn.running_mean.clone()
    stage = replace(STAGE, epochs=10, learning_rate=2e-3)
    history = train(Setup(best, stage, {"train": table}), tmp_path / "second")
    reward = [entry["reward"] for entry in history]
    assert sum(reward[-3:]) / 3 > 1.15 * reward[0]
    assert torch.equal(best.model.encoder.bn.running_mean, statistics)


def test_a_resumed_run_equals_a_whole_one(start, tmp_path, interrupted):
    make, table = start
    config = replace(STAGE, ema=0.9)
    train(Setup(make(), config, {"train": table}), tmp_path / "whole")
    again = lambda: train(Setup(make(), config, {"train": table}), tmp_path / "broken")
    interrupted(SelfCriticalTrainer, 6, again)  # of 8 steps, four in each epoch
    stopped = load_checkpoint(tmp_path / "broken" / "last.pt")
    train(Setup(stopped, config, {"train": table}, resumes=True), tmp_path / "broken")
    whole, broken = (load_checkpoint(tmp_path / n / "last.pt") for n in ("whole", "broken"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, broken.model.state_dict()[name]), name
    for a, b in zip(whole.training["history"], broken.training["history"], strict=True):
        assert a["reward"] == b["reward"]
