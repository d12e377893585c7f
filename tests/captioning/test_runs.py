"""Commands that do several runs: members, and both stages of self-critical training."""

from unittest.mock import DEFAULT, Mock

import pytest
import torch

from captioning.__main__ import main
from captioning.model.checkpoint import load_checkpoint
from captioning.settings import DecodeConfig
from captioning.training import pipeline, setup


@pytest.fixture
def train(scenes_root, tmp_path):
    files = [str(scenes_root / "annotations"), "--output", str(tmp_path / "run")]
    return ["train", *files, "--cnn", "scenes_cnn", "--hidden-size", "24", "--embed-size", "16"]


@pytest.fixture
def quick(monkeypatch):
    """Makes the first stage short, which no option can do."""
    preset, epochs = setup.preset, {False: {"epochs": 2}, True: {}}
    monkeypatch.setattr(setup, "preset", lambda *args: preset(*args) | epochs[args[2]])


def test_members_share_features_and_are_scored_together(train, tmp_path, scenes_root, capsys):
    test = str(scenes_root / "annotations/captions_unseen.json")
    command = [*train, "--members", "2", "--epochs", "1", "--seed", "5", "--test", test]
    assert main(command) == 0
    run = tmp_path / "run"
    assert len(list(run.rglob("*-*.npy"))) == len(list((run / "features").iterdir())) == 6
    found = [load_checkpoint(run / name / "best.pt") for name in "12"]
    assert [c.training["config"]["seed"] for c in found] == [5, 6]
    assert found[0].vocabulary.words == found[1].vocabulary.words
    assert not torch.equal(*(c.model.decoder.linear.weight for c in found))
    out = capsys.readouterr().out
    assert out.count("ensemble of 2: search chosen on --val: ") == out.count("chosen on") == 1
    assert out.count("ensemble of 2: test, 12 pictures: greedy") == out.count("test, 12") == 1
    assert out.endswith(f"caption {run}/*/best.pt PICTURE\n")
    caption = ["caption", str(run / "1/best.pt"), str(run / "2/best.pt")]
    assert main([*caption, str(scenes_root / "val")]) == 0 and main(command) == 1
    assert "1 holds a captioner already: --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--epochs", "2"]) == 0
    for name in "12":
        assert len(load_checkpoint(run / name / "last.pt").training["history"]) == 2


def test_one_search_is_chosen_for_all_members_and_kept_in_each(train, tmp_path, monkeypatch):
    def choose(checkpoint, val, neighbors):
        assert len(checkpoint.models) == 2 and checkpoint.neighbors is None
        checkpoint.search, checkpoint.neighbors = DecodeConfig("beam", 3, 0.5, 2.0), neighbors
        return "chosen"

    monkeypatch.setattr(pipeline, "choose_search", choose)
    command = [*train, "--members", "2", "--epochs", "1"]
    files = [tmp_path / "run" / name / "best.pt" for name in "12"]
    for more, kept in ((), True), (("--resume", "--no-neighbors"), False):
        assert main([*command, *more]) == 0
        found = [load_checkpoint(path) for path in files]
        assert [one.search for one in found] == [DecodeConfig("beam", 3, 0.5, 2.0)] * 2
        assert [one.neighbors is not None for one in found] == [kept] * 2


def test_a_captioner_to_start_from_may_lie_in_the_output(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*train, "--epochs", "1"]) == 0
    (run / "last.pt").unlink()
    assert main([*train, "--epochs", "1", "--start", str(run / "best.pt")]) == 0
    assert capsys.readouterr().out.count("search chosen on --val: ") == 2


def test_self_critical_training_begins_with_cross_entropy(train, tmp_path, quick, capsys):
    command = [*train, "--self-critical", "2", "--epochs", "1", "--set", "dropout=0.1"]
    assert main(command) == 0
    run, out = tmp_path / "run", capsys.readouterr().out
    first, second = (load_checkpoint(run / name) for name in ("cross-entropy/last.pt", "last.pt"))
    assert ["loss" in entry for entry in first.training["history"]] == [True, True]
    assert ["reward" in entry for entry in second.training["history"]] == [True]
    assert first.training["config"]["self_critical"] == 0
    assert second.training["config"]["learning_rate"] == 2e-4
    assert first.model.config == second.model.config and first.model.config.dropout == 0.1
    assert len(list(run.rglob("*-*.npy"))) == len(list((run / "features").iterdir())) == 4
    assert out.index("epoch 1: loss") < out.index("epoch 1: reward")
    assert out.count("search chosen on --val") == 1 and out.count("next:") == 1


def test_both_stages_resume_where_they_stopped(train, tmp_path, quick, monkeypatch, capsys):
    command, run = [*train, "--self-critical", "2", "--epochs", "2"], tmp_path / "run"
    stopped = Mock(wraps=pipeline.train, side_effect=[DEFAULT, KeyboardInterrupt])  # of stage two
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train", stopped)
        assert main(command) == 130 and not (run / "last.pt").exists()
    written = (run / "cross-entropy" / "last.pt").stat().st_mtime_ns
    assert main(command) == 1 and "cross-entropy holds a captioner" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert (run / "cross-entropy" / "last.pt").stat().st_mtime_ns == written
    assert len(load_checkpoint(run / "last.pt").training["history"]) == 2
    assert main([*command[:-1], "3", "--resume"]) == 0
    assert len(load_checkpoint(run / "last.pt").training["history"]) == 3


def test_members_with_both_stages(train, tmp_path, quick):
    command = [*train, "--members", "2", "--self-critical", "2", "--epochs", "1"]
    assert main(command) == 0
    run = tmp_path / "run"
    found = [load_checkpoint(path) for path in sorted(run.rglob("best.pt"))]
    assert len(found) == 4
    assert ["loss" in c.training["history"][0] for c in found] == [False, True, False, True]
