"""One file holds the captioner, opens without running code, and is never half written."""

import os
import pickle
import signal
import threading

import pytest
import torch

from captioning.checkpoint import load_checkpoint, training_history
from captioning.errors import CaptioningError
from captioning.files import write_text
from captioning.vocabulary import Vocabulary


def test_goes_to_disk_and_back(new_checkpoint, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.training = {"step": 3}
    checkpoint.save(tmp_path / "c.pt")
    again = load_checkpoint(tmp_path / "c.pt")
    assert again.vocabulary.words == checkpoint.vocabulary.words
    assert again.cnn == checkpoint.cnn and again.training == {"step": 3}
    assert again.model.config == checkpoint.model.config and not again.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert again.cnn.load().fingerprint() == checkpoint.cnn.fingerprint


@pytest.mark.parametrize("lstm", ["torch", "reference"])
def test_any_lstm_reads_it(new_checkpoint, tmp_path, lstm):
    checkpoint = new_checkpoint()
    checkpoint.save(tmp_path / "c.pt")
    other = load_checkpoint(tmp_path / "c.pt", lstm)
    features = torch.randn(2, checkpoint.model.config.feature_size)
    batch = (torch.tensor([1, 0]), torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([4, 3]))
    torch.testing.assert_close(other.model(features, *batch), checkpoint.model(features, *batch))


def test_attention_without_places_is_refused(attentive, tmp_path):
    """What an older version wrote."""
    path = tmp_path / "c.pt"
    attentive.save(path)
    data = torch.load(path, weights_only=True)
    del data["model"]["grid"], data["weights"]["decoder.row"], data["weights"]["decoder.column"]
    torch.save(data, path)
    with pytest.raises(CaptioningError, match="c.pt: its attention decoder is of an older version"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("what", ["bomb", "text", "empty", "cut", "tensor"])
def test_other_files_are_refused_and_run_nothing(new_checkpoint, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    if what == "bomb":
        path.write_bytes(pickle.dumps(Bomb()))
    elif what == "cut":
        new_checkpoint().save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif what == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        path.write_text("hello" * (what == "text"))
    with pytest.raises(CaptioningError, match="c.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CaptioningError, match="cannot read .*none.pt"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_folder_is_refused_with_the_captioner_in_it(new_checkpoint, tmp_path):
    with pytest.raises(CaptioningError, match="cannot read .*: Is a directory$"):
        load_checkpoint(tmp_path)
    new_checkpoint().save(tmp_path / "best.pt")
    with pytest.raises(CaptioningError, match="Is a directory; expected a file, such as .*best.pt"):
        load_checkpoint(str(tmp_path))


def test_a_full_disk_leaves_the_old_checkpoint(new_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaptioningError, match="No space left on device; what was there before"):
        new_checkpoint().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("when", ["write", "fsync", "replace"])
def test_an_interrupt_waits_for_the_file(new_checkpoint, tmp_path, monkeypatch, when):
    """Ctrl-C in torch.save became a RuntimeError, and behind os.replace a missing file."""
    real = torch.save if when == "write" else getattr(os, when)

    def interrupted(*args):
        if when != "write":
            real(*args)
            signal.raise_signal(signal.SIGINT)
            return

        class File:  # stands between torch.save and the file
            def write(self, data):
                signal.raise_signal(signal.SIGINT)
                return args[1].write(data)

            def flush(self):
                args[1].flush()

        real(args[0], File())

    monkeypatch.setattr(*((torch, "save") if when == "write" else (os, when)), interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_checkpoint().save(tmp_path / "c.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    assert load_checkpoint(tmp_path / "c.pt").training == {}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_write_too(tmp_path):
    thread = threading.Thread(target=write_text, args=(tmp_path / "t", "text"))
    thread.start()
    thread.join()
    assert (tmp_path / "t").read_text() == "text"


def test_another_cnn_than_the_one_it_was_trained_on_is_refused(new_checkpoint, monkeypatch):
    import captioning.checkpoint as module

    real = module.load_cnn

    def other(config):
        cnn = real(config)
        cnn.trunk.body[0].weight.data += 1e-3
        return cnn

    monkeypatch.setattr(module, "load_cnn", other)
    with pytest.raises(CaptioningError, match="not those that this captioner was trained on"):
        new_checkpoint().cnn.load()


def test_a_vocabulary_of_another_size_is_refused(new_checkpoint, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.vocabulary = Vocabulary([*checkpoint.vocabulary.words, "zebra"])
    checkpoint.save(tmp_path / "c.pt")
    with pytest.raises(CaptioningError, match="its vocabulary has"):
        load_checkpoint(tmp_path / "c.pt")


def test_the_history_goes_on_behind_the_best_epoch(new_checkpoint, tmp_path):
    epochs = [{"epoch": e, "loss": 1 / e} for e in (1, 2, 3)]
    best = new_checkpoint()
    best.training = {"history": epochs[:1]}
    path = tmp_path / "best.pt"
    assert training_history(best, path) == epochs[:1]
    last = new_checkpoint()
    last.training = {"history": epochs}
    last.save(tmp_path / "last.pt")
    assert training_history(best, path) == epochs
    last.training = {"history": [{"epoch": 1, "loss": 7.0}, epochs[1]]}  # of another run
    last.save(tmp_path / "last.pt")
    assert training_history(best, path) == epochs[:1]
    assert training_history(new_checkpoint(), path) == []  # an imported one
