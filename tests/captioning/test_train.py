"""Training: steps, losses, checkpoints, resuming, several processes, errors."""

import json
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import distributed
import native_programs
import numpy as np
import pytest
import torch
from filelock import FileLock

from captioning.__main__ import main
from captioning.cnn.features import DONE
from captioning.data.batches import random_batches
from captioning.errors import CaptioningError
from captioning.model.checkpoint import load_checkpoint
from captioning.model.cider import CiderD
from captioning.search.generate import best_captions
from captioning.settings import DecodeConfig, TrainConfig
from captioning.training.loop import train, validate
from captioning.training.pipeline import summary
from captioning.training.setup import Setup
from captioning.training.trainer import Trainer, learning_rate

FAST = TrainConfig(epochs=2, batch_size=48, warmup=2, autocast="none")


def run(checkpoint, data, output, config=FAST, resume=False, val=True):
    """Trains `checkpoint`, or with `resume` continues the run in `output`."""
    resume = resume and (output / "last.pt").exists()
    if resume:
        checkpoint = load_checkpoint(output / "last.pt")
    tables = {"train": data.train} | ({"val": data.val} if val else {})
    return train(Setup(checkpoint, config, tables, resume), output)


def weights(path):
    return load_checkpoint(path).model.state_dict()


def test_writes_checkpoints_that_caption_as_the_trained_model_does(new_checkpoint, data, tmp_path):
    checkpoint = new_checkpoint()
    before = {k: v.clone() for k, v in checkpoint.model.state_dict().items()}
    history = run(checkpoint, data, tmp_path)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"loss", "val_loss", "CIDEr-D", "BLEU-4"} <= set(history[0])
    assert history[1]["loss"] < history[0]["loss"]
    after = weights(tmp_path / "last.pt")
    assert all(not torch.equal(after[k], before[k]) for k in before)
    loaded = load_checkpoint(tmp_path / "last.pt")
    loss, scores = validate(loaded, data.val)
    assert loss == pytest.approx(history[1]["val_loss"])
    assert scores.overall["CIDEr-D"] == pytest.approx(history[1]["CIDEr-D"])


def test_tensorboard_gets_the_curves(new_checkpoint, data, tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(new_checkpoint(), data, tmp_path)
    log = event.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert {"train/loss", "epoch/CIDEr-D", "epoch/val_loss"} <= set(log.Tags()["scalars"])
    assert len(log.Scalars("epoch/loss")) == 2


@pytest.mark.parametrize("lstm", ["torch", "reference"])
def test_a_step_is_the_same_with_every_lstm(new_checkpoint, data, lstm):
    states, losses = [], []
    for kind in ("fastlstm", lstm):
        trainer = Trainer(new_checkpoint(kind), FAST, data.train)
        losses.append([trainer.train_step(torch.arange(40), 10) for _ in range(3)])
        states.append(trainer.model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][2] < losses[0][0]
    # Adam turns rounding errors of tiny gradients into steps as large as the learning rate.
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize("change", [{"label_smoothing": 0.2}, {"consensus": 0.9}])
def test_the_loss_that_is_reported_is_plain(new_checkpoint, data, change):
    """The reported loss has neither label smoothing nor weights of captions; the steps have."""
    losses = []
    for options in ({}, change):
        config = replace(FAST, learning_rate=1e-2, warmup=1, **options)
        trainer = Trainer(new_checkpoint(), config, data.train)
        losses.append([trainer.train_step(torch.arange(0, 40, 3), 10) for _ in range(2)])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][1] != pytest.approx(losses[1][1], rel=1e-6)  # the first steps differ


def test_captions_that_agree_with_the_others_weigh_more(new_checkpoint, data):
    trainer = Trainer(new_checkpoint(), replace(FAST, consensus=0.4), data.train)
    weights = trainer.caption_weights.unflatten(0, (-1, 5))
    torch.testing.assert_close(weights.mean(1), torch.ones(len(weights)))
    captions = [[data.vocabulary.encode(c)[1:] for c in i.captions] for i in data.train.images]
    agreement = torch.tensor([*map(CiderD(captions).consensus, captions)])
    agreement += agreement.mean() / 5
    factor = agreement / agreement.mean(1, keepdim=True)
    torch.testing.assert_close(weights, 0.6 + 0.4 * factor)


def test_the_weight_of_a_caption_is_that_of_its_loss(new_checkpoint, data):
    trainer = Trainer(new_checkpoint(), FAST, data.train)
    batch = trainer.captions.make_batch(torch.arange(10))
    assert batch.indices[3] != 3  # captions are sorted by length
    trainer.caption_weights[:] = 0
    trainer.caption_weights[3] = 2.0
    loss, _, _ = trainer.objective(torch.arange(10))
    given = data.train.read(batch.pictures), batch.rows, batch.captions, batch.lengths
    expected, _ = trainer.model(*given, 2.0 * (batch.indices == 3))
    torch.testing.assert_close(loss, expected)


def test_learns_a_few_pictures_by_heart(new_checkpoint, data):
    config, checkpoint = replace(FAST, learning_rate=1e-2), new_checkpoint(hidden_size=48)
    trainer = Trainer(checkpoint, config, data.train)
    for _ in range(150):
        trainer.train_step(torch.arange(0, 40, 5), 300)  # the first caption of each picture
    features, found = data.train.read(torch.arange(8)), replace(checkpoint, models=[trainer.model])
    written = best_captions(found, features, data.train.ids[:8], config=DecodeConfig("greedy"))
    assert sum(written[i.id] == i.captions[0] for i in data.train.images[:8]) >= 7


@pytest.mark.parametrize("change", [{}, {"label_smoothing": 0.1, "consensus": 0.5, "ema": 0.9}])
def test_a_resumed_run_equals_a_whole_one(new_checkpoint, data, tmp_path, interrupted, change):
    config = replace(FAST, epochs=3, **change)
    run(new_checkpoint(dropout=0.3), data, tmp_path / "whole", config)
    again = lambda: run(new_checkpoint(dropout=0.3), data, tmp_path / "broken", config)
    interrupted(Trainer, 17, again)  # of 30 steps, ten in each epoch
    assert load_checkpoint(tmp_path / "broken" / "last.pt").training["trainer"]["step"] == 10
    torch.manual_seed(99)  # a new process may be in any state
    history = run(new_checkpoint(dropout=0.3), data, tmp_path / "broken", config, resume=True)
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    for name, tensor in weights(tmp_path / "broken" / "last.pt").items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
    for a, b in zip(history, whole.training["history"], strict=True):
        assert a["loss"] == b["loss"] and a["CIDEr-D"] == b["CIDEr-D"]


def test_best_is_the_epoch_of_the_highest_cider(new_checkpoint, data, tmp_path, monkeypatch):
    values = (1.0, 3.0, 3.0)  # of equal epochs the first is the best, and is named
    scores = [SimpleNamespace(overall={"CIDEr-D": v, "BLEU-4": 0.0}, notes=[]) for v in values]
    validations = Mock(side_effect=[(1.0, score) for score in scores])
    monkeypatch.setattr("captioning.training.loop.validate", validations)
    history = run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=3))
    assert "best of 3 epochs: 2, " in summary(history, tmp_path / "best.pt")
    assert len(load_checkpoint(tmp_path / "best.pt").training["history"]) == 2


def test_autocast_trains_alike(new_checkpoint, data):
    losses = []
    for config in (FAST, replace(FAST, autocast="bfloat16")):
        trainer = Trainer(new_checkpoint(), config, data.train)
        losses.append([trainer.train_step(torch.arange(40), 10) for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=2**-7)  # bfloat16 has 8 bits


def test_the_learning_rate_rises_then_falls():
    config = TrainConfig(learning_rate=1.0, warmup=10)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1, abs=0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.02 <= rates[-1] < 0.021


@pytest.mark.parametrize("change, message", [
    ({"epochs": 0}, "epochs: expected an integer from 1 to .*, got 0"),
    ({"epochs": 1.5}, "epochs: expected an integer"),
    ({"label_smoothing": 1.0}, "label_smoothing: expected a number from 0 to .* got 1.0"),
    ({"learning_rate": float("nan")}, "learning_rate: expected a number"),
    ({"autocast": "int8"}, "autocast: expected one of"),
    ({"batches_of": "words"}, "batches_of: expected one of"),
    ({"beam_size": 0}, "beam_size: expected an integer from 1 to .* got 0"),
    ({"length_penalty": -1.0}, "length_penalty: expected a number"),
    ({"temperature": 0.0}, "temperature: expected a number from"),
])  # fmt: skip
def test_wrong_settings_are_refused(change, message):
    kind = TrainConfig if hasattr(TrainConfig, *change) else DecodeConfig
    with pytest.raises(CaptioningError, match=message):
        kind(**change)


def test_an_exploding_loss_names_the_last_checkpoint(new_checkpoint, data, tmp_path, monkeypatch):
    checkpoint = new_checkpoint()
    checkpoint.model.decoder.linear.weight.data.fill_(torch.nan)
    with pytest.raises(CaptioningError, match="loss became nan in step 1: lower .*-rate$"):
        run(checkpoint, data, tmp_path)
    run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=1))
    monkeypatch.setattr(Trainer, "train_step", lambda *_: math.nan)
    with pytest.raises(CaptioningError, match=f"rate. {tmp_path / 'last.pt'} holds epoch 1$"):
        run(new_checkpoint(), data, tmp_path, resume=True)


def test_a_second_run_in_a_folder_is_refused(scenes_root, tmp_path, capsys):
    """Two runs in a folder would leave a mixture of their files."""
    train = ["train", str(scenes_root / "annotations"), "--output", str(tmp_path)]
    with FileLock(tmp_path / ".lock"):
        assert main(train) == 1
    assert f"{tmp_path} is being written by another process" in capsys.readouterr().err


def in_two_processes(*command):
    """Runs Python with this command line in two processes of torchrun; returns the output."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return native_programs.check(*torchrun, *command, env=environment, timeout=120)


def test_two_processes_do_what_one_does(scenes_root, data, tmp_path):
    """The global batches are the same, and only the order of sums differs."""
    paths, out = [scenes_root, data.train.cache.path.parent], tmp_path / "two.json"
    in_two_processes(distributed.__file__, *paths, tmp_path / "two", out)
    two = json.loads(out.read_text())
    for metric in ("loss", "reward"):
        values, gradient = distributed.train_by(metric, *paths, tmp_path / "one")
        assert len(values) == 2 and two[metric][0] == pytest.approx(values, rel=1e-5)
        assert two[metric][1] == pytest.approx(gradient, rel=1e-3)


def test_the_first_process_encodes_the_pictures_for_all(captions_of, tmp_path):
    sizes = ["--hidden-size", 8, "--embed-size", 8, "--set", "min-count=1", "--batch-size", 20]
    files = ["--train", captions_of("val"), "--output", tmp_path, "--cnn", "scenes_cnn"]
    out = in_two_processes("-m", "captioning", "train", *files, "--epochs", 1, *sizes)
    assert out.count("12 pictures, ") == 1  # only the first process prints
    (state,) = (tmp_path / "features").glob("*.state.npy")
    assert np.load(state).tolist() == [DONE] * 12
    assert len(load_checkpoint(tmp_path / "last.pt").training["history"]) == 1


def test_batches_of_one_picture_are_too_small_for_batchnorm(new_checkpoint, data):
    config = TrainConfig(batch_size=5, batches_of="pictures")
    for size in (5, 1):
        few = f"two pictures in each batch, for BatchNorm, .* got {size} for 480"
        with pytest.raises(CaptioningError, match=few):
            Trainer(new_checkpoint(), replace(config, batch_size=size), data.train)
    assert len(Trainer(new_checkpoint(), replace(config, batch_size=10), data.train).batches(0))


def test_captions_of_one_picture_are_refused_before_the_first_step(new_checkpoint, data):
    """With this seed the first batch of two captions of one picture is in the second epoch."""
    pictures = lambda batch: {row // 5 for row in batch.tolist()}
    of_one = lambda *seeds: 1 in (len(pictures(batch)) for batch in random_batches(480, 2, *seeds))
    seed = next(seed for seed in range(1000) if not of_one(seed, 0) and of_one(seed, 1))
    config = replace(FAST, batch_size=2, seed=seed)
    with pytest.raises(CaptioningError, match="two pictures in each batch.* got 2 for 480"):
        Trainer(new_checkpoint(), config, data.train)
    Trainer(new_checkpoint(), replace(config, epochs=1), data.train)


@pytest.mark.parametrize("seed", [-1, -(2**31) + 1, 2**31 - 1])
def test_any_seed_trains(new_checkpoint, data, seed):
    trainer = Trainer(new_checkpoint(dropout=0.3), replace(FAST, seed=seed), data.train)
    assert math.isfinite(trainer.train_step(trainer.batches(0)[0], 10))
