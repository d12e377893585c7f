"""Checkpoints: reading and writing, damaged files, files that run code, full disks."""

import io
import os
import pickle
import random
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from captioning.cnn.pretrained import load_cnn
from captioning.errors import CaptioningError
from captioning.model.checkpoint import load_checkpoint


def test_a_checkpoint_is_read_as_it_was_written(new_checkpoint, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.training = {"step": 3}
    checkpoint.save(tmp_path / "c.pt")
    again = load_checkpoint(tmp_path / "c.pt")
    assert again.vocabulary.words == checkpoint.vocabulary.words
    assert again.cnn == checkpoint.cnn and again.training == {"step": 3}
    assert again.model.config == checkpoint.model.config and not again.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert load_cnn(again.cnn).fingerprint() == checkpoint.cnn.fingerprint


@pytest.mark.parametrize("lstm", ["torch", "reference"])
def test_any_lstm_reads_a_checkpoint(new_checkpoint, tmp_path, lstm):
    checkpoint = new_checkpoint()
    checkpoint.save(tmp_path / "c.pt")
    other = load_checkpoint(tmp_path / "c.pt", lstm)
    features = torch.randn(2, checkpoint.model.config.feature_size)
    batch = (torch.tensor([1, 0]), torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([4, 3]))
    torch.testing.assert_close(other.model(features, *batch), checkpoint.model(features, *batch))


def contents(path):
    found = load_checkpoint(path)
    weights = {name: tensor.tolist() for name, tensor in found.model.state_dict().items()}
    return weights, found.vocabulary.words, found.model.config, found.cnn, found.training


def test_a_flipped_bit_is_refused_or_changes_nothing(new_checkpoint, tmp_path):
    """PyTorch does not check CRCs. Without our check 77 of 300 files load with other contents."""
    path, checkpoint = tmp_path / "c.pt", new_checkpoint(embed_size=4, hidden_size=6)
    checkpoint.training = {"history": [{"epoch": 1, "loss": 2.0}], "features": "features"}
    checkpoint.save(path)
    good, expected, refused = path.read_bytes(), contents(path), 0
    for bit in random.Random(0).sample(range(8 * len(good)), 300):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert contents(path) == expected, bit
        except CaptioningError as error:
            assert str(path) in str(error), bit
            refused += 1
    assert refused > 150  # of 300; most of the file is weights


@pytest.mark.parametrize("change, message", [
    (lambda d: d.pop("format"), "format"),
    (lambda d: d.update(format="x"), "expected a checkpoint of fastlstm.captioning/3, got 'x'"),
    (lambda d: d.pop("vocabulary"), "vocabulary"),
    (lambda d: d.update(vocabulary=["a", "b"]), "vocabulary: expected .*, then words"),
    (lambda d: d["model"].pop("vocab_size"), "vocab_size"),
    (lambda d: d["model"].update(depth=3), "depth"),
    (lambda d: d["model"].update(hidden_size="24"), "hidden_size: expected an integer from 1"),
    (lambda d: d["model"].update(hidden_size=True), "hidden_size: expected an integer from 1"),
    (lambda d: d["model"].update(hidden_size=25), "size mismatch for decoder.lstm"),
    (lambda d: d["model"].update(dropout=2), "dropout: expected a number from 0"),
    (lambda d: d["model"].update(decoder="x"), "decoder: expected one of"),
    (lambda d: d["weights"].pop("encoder.bn.bias"), "Missing key.*encoder.bn.bias"),
    (lambda d: d["weights"].update(extra=torch.zeros(1)), "Unexpected key.*extra"),
    (lambda d: d["cnn"].update(depth=5), "depth"),
    (lambda d: d["search"].update(beam_size=0), "beam_size: expected an integer from 1"),
    (lambda d: d.pop("training"), "training"),
])  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(new_checkpoint, tmp_path, change, message):
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    data = torch.load(path)
    change(data)
    torch.save(data, path)
    with pytest.raises(CaptioningError, match=f"^{path} is damaged, .*{message}"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_other_files_are_refused_and_run_nothing(new_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    contents = [pickle.dumps(Bomb()), path.read_bytes()[:3000], b"hello", b""]
    for value in (torch.zeros(3), Bomb()):
        torch.save(value, file := io.BytesIO())
        contents.append(file.getvalue())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CaptioningError, match="c.pt"):
            load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CaptioningError, match=f"{path}: no such file; expected a captioner"):
            load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint(new_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    before, full = path.read_bytes(), OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left on device"):
        new_checkpoint().save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_another_cnn_than_the_one_it_was_trained_on_is_refused(new_checkpoint):
    other = replace(new_checkpoint().cnn, fingerprint="0" * 32)
    with pytest.raises(CaptioningError, match="trained with other weights of scenes_cnn"):
        load_cnn(other)
