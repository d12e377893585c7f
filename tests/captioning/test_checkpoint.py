"""One file holds the captioner, opens without running code, and is never half written."""

import collections
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pytest
import torch

from captioning.data.vocabulary import SPECIAL, Vocabulary
from captioning.errors import CaptioningError
from captioning.files.atomic import write_text
from captioning.model.checkpoint import load_checkpoint
from captioning.model.tensors import load_tensors


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
    with pytest.raises(
        CaptioningError, match="c.pt: grid: expected .*, got 0 .captioners of an older version"
    ):
        load_checkpoint(path)


def contents(path):
    """Everything that a checkpoint holds, in a form that compares."""
    found = load_checkpoint(path)
    weights = {name: tensor.tolist() for name, tensor in found.model.state_dict().items()}
    return weights, found.vocabulary.words, found.model.config, found.cnn, found.training


def test_a_flipped_bit_is_refused_or_means_nothing(new_checkpoint, tmp_path):
    """77 of 300 loaded with other weights or words: PyTorch does not look at the CRCs."""
    path = tmp_path / "c.pt"
    checkpoint = new_checkpoint(embed_size=4, hidden_size=6)
    checkpoint.training = {"history": [{"epoch": 1, "loss": 2.0}], "features": "features"}
    checkpoint.save(path)
    good, expected = path.read_bytes(), contents(path)
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(good)), 300):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert contents(path) == expected, bit
        except CaptioningError as error:
            assert str(path) in str(error), bit
            refused += 1
    assert refused > 150  # of 300, most are in the weights


def test_no_bit_of_a_directory_changes_what_is_loaded(tmp_path):
    """Each of them: one marks a record as a folder, which PyTorch does not read then."""
    path, saved = tmp_path / "t.pt", {"tensor": torch.arange(30.0), "word": "cat"}
    torch.save(saved, path)
    good = path.read_bytes()
    record = good.rindex(b"t/data/0") - 46
    end = good.rindex(b"PK\6\6")  # two records about all of the directory
    outcomes = collections.Counter()
    for bit in (*range(8 * record, 8 * record + 8 * 54), *range(8 * end, 8 * len(good))):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            loaded = load_tensors(path)
        except CaptioningError:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            assert loaded["word"] == "cat" and torch.equal(loaded["tensor"], saved["tensor"]), bit
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("vocabulary"), "expected vocabulary, a list, got None"),
        (lambda d: d.update(vocabulary={}), "expected vocabulary, a list, got {}"),
        (lambda d: d.update(vocabulary=[*SPECIAL, 5]), "vocabulary: expected words, got 5"),
        (lambda d: d.update(vocabulary=[*SPECIAL, ["a"]]), r"expected words, got \['a'\]"),
        (lambda d: d["model"].pop("vocab_size"), "model: expected vocab_size, got none"),
        (lambda d: d["model"].update(depth=3), "model: expected feature_size, .*, got 'depth'"),
        (lambda d: d["model"].update({7: 3}), "model: expected feature_size, .*, got 7"),
        (lambda d: d["model"].update(hidden_size="24"), "expected int as hidden_size, got '24'"),
        (lambda d: d["model"].update(hidden_size=True), "expected int as hidden_size, got True"),
        (
            lambda d: d["model"].update(hidden_size=25),
            r"lstm.weight_ih_l0 \(100, 16\), got \(96, 16\)",
        ),
        (lambda d: d["model"].update(num_layers=2), r"weight_ih_l1 \(96, 24\), got none"),
        (
            lambda d: d["model"].update(hidden_size=2**20),
            r"lstm.weight_ih_l0 \(4194304, 16\), got \(96, 16\)",
        ),
        (lambda d: d["model"].update(hidden_size=2**70), "hidden_size: expected <= 1,048,576"),
        (lambda d: d["model"].update(grid=2**30), "grid: expected <= 4,096, got 1073741824"),
        (lambda d: d["model"].update(dropout=2), "model: dropout: expected < 1, got 2"),
        (
            lambda d: d["model"].update(decoder="x"),
            r"decoder: expected one of \('attention', 'lstm'\), got 'x'",
        ),
        (lambda d: d.update(model=[]), r"expected model, a dict, got \[\]"),
        (lambda d: d["weights"].pop("encoder.bn.bias"), r"encoder.bn.bias \(16,\), got none"),
        (lambda d: d["weights"].update(extra=d["weights"]["encoder.bn.bias"]), "expected no extra"),
        (lambda d: d["weights"].update({"encoder.bn.bias": 5}), r"bias \(16,\), got int"),
        (
            lambda d: d["weights"].update({"encoder.bn.bias": torch.ones(16, dtype=torch.int8)}),
            r"expected encoder.bn.bias \(16,\), got \(16,\) int8",
        ),
        (lambda d: d["cnn"].pop("config"), "expected config, a dict, got None"),
        (lambda d: d["cnn"]["config"].update(name=5), "cnn: expected str as name, got 5"),
        (lambda d: d["cnn"].pop("fingerprint"), "expected fingerprint, a str, got None"),
        (lambda d: d["cnn"]["transform"].update(mean=["a"]), "cnn: expected numbers as mean"),
        (lambda d: d["cnn"]["transform"].update(mean=[1, 2]), "a mean and a std for each of three"),
        (lambda d: d["cnn"]["transform"].update(crop_size=10**6), "crop_size <= resize_size"),
        (lambda d: d["cnn"]["transform"].update(interpolation="x"), "no interpolation 'x'"),
        (lambda d: d.pop("training"), "expected training, a dict, got None"),
        (lambda d: d["training"].update(history=5), "expected history, a list, got 5"),
        (lambda d: d["training"].update(history=[{"epoch": 1}]), "history: expected numbers"),
        (lambda d: d["training"].update(features=5), "expected features, a str, got 5"),
    ],
)
def test_what_does_not_fit_is_named(new_checkpoint, tmp_path, change, message):
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    data = torch.load(path)
    change(data)
    torch.save(data, path)
    with pytest.raises(CaptioningError, match=f"^{path}: (.*{message})"):
        load_checkpoint(path)


def with_nan(tensor):
    return tensor.clone().flatten().index_fill(0, torch.tensor(0), float("nan")).view_as(tensor)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("decoder.lstm.weight_hh_l0", with_nan, "some that are not finite"),
        ("decoder.linear.bias", lambda t: t.double() + 1e300, "some that are not finite"),
        ("encoder.bn.running_var", lambda t: t / 0, "some that are not finite"),
        ("encoder.linear.weight", lambda t: t.to("meta"), "a meta tensor"),
        ("decoder.embed.weight", lambda t: t.to_sparse(), "a sparse_coo tensor"),
        (
            "decoder.embed.weight",
            lambda t: t[:1].clone().expand_as(t),
            "more of them than the file has",
        ),
    ],
)
def test_weights_that_are_no_numbers_are_named(new_checkpoint, tmp_path, name, change, problem):
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    data = torch.load(path)
    data["weights"][name] = change(data["weights"][name])
    torch.save(data, path)
    told = f"{path}: weights: expected numbers as '{name}', got {problem}"
    with pytest.raises(CaptioningError, match=f"^{re.escape(told)}$"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_seq_length": 10**9}, "max_seq_length: expected <= 1,000, got 1000000000"),
        ({"num_layers": 10**6}, "num_layers: expected <= 100, got 1000000"),
        ({"hidden_size": 10**6}, r"expected decoder.lstm.weight_ih_l0 \(4000000, 16\), got"),
    ],
)
def test_a_checkpoint_asks_for_no_more_than_it_holds(new_checkpoint, tmp_path, sizes, message):
    """Its words and the layers around the LSTM may fit while the LSTM would take terabytes."""
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    data = torch.load(path)
    data["model"] |= sizes
    if size := sizes.get("hidden_size"):
        data["weights"]["decoder.linear.weight"] = torch.zeros(len(data["vocabulary"]), size)
    torch.save(data, path)
    with pytest.raises(CaptioningError, match=f"{path}: .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
def test_reading_imports_no_compiler(new_checkpoint, attentive, tmp_path, decoder):
    """It takes seconds, which captioning a photograph need not wait for."""
    (attentive if decoder == "attention" else new_checkpoint()).save(tmp_path / "c.pt")
    code = "import sys; from captioning.model.checkpoint import load_checkpoint; "
    code += "load_checkpoint(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "c.pt")]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert out.stdout == "False\n"


def test_weights_of_a_cnn_that_do_not_fit_are_named(new_checkpoint, tmp_path):
    path = tmp_path / "c.pt"
    checkpoint = new_checkpoint()
    weights = checkpoint.cnn.load().state_dict()
    name = next(iter(weights))
    checkpoint.cnn = replace(checkpoint.cnn, weights=weights | {name: torch.zeros(2)})
    checkpoint.save(path)
    loaded = load_checkpoint(path)
    with pytest.raises(CaptioningError, match=rf"^{path}: weights of its CNN: .*{name}.*\(2,\)"):
        loaded.cnn.load()


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("what", ["bomb", "text", "empty", "cut", "tensor", "pipe", "packed"])
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
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "packed":  # a few kilobytes can become gigabytes
        new_checkpoint().save(tmp_path / "stored")
        stored = zipfile.ZipFile(tmp_path / "stored")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for record in stored.namelist():
                packed.writestr(record, stored.read(record))
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
    with pytest.raises(CaptioningError, match="is a folder: expected a file, such as .*best.pt"):
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


def test_a_disk_that_fills_up_is_told_by_its_own_name(new_checkpoint, tmp_path, small_files):
    """torch.save made a RuntimeError of it: unexpected pos 4096 vs 4042."""
    path = tmp_path / "c.pt"
    new_checkpoint().save(path)
    before = path.read_bytes()
    for size in (10, 5000, len(before) - 10):
        with small_files(size), pytest.raises(CaptioningError) as caught:
            new_checkpoint().save(path)
        told = "File too large; what was there before is untouched"
        assert str(caught.value) == f"cannot write {path}: {told}"
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
    import captioning.model.checkpoint as module

    real = module.load_cnn

    def other(config):
        cnn = real(config)
        cnn.trunk.body[0].weight.data += 1e-3
        return cnn

    monkeypatch.setattr(module, "load_cnn", other)
    with pytest.raises(CaptioningError, match="not those that it was trained on"):
        new_checkpoint().cnn.load()


def test_a_vocabulary_of_another_size_is_refused(new_checkpoint, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.vocabulary = Vocabulary([*checkpoint.vocabulary.words, "zebra"])
    checkpoint.save(tmp_path / "c.pt")
    with pytest.raises(CaptioningError, match="its vocabulary has"):
        load_checkpoint(tmp_path / "c.pt")
