"""Training: what it changes, that it learns, resumes exactly, and runs in several processes."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from captioning.__main__ import main
from captioning.cnn.features import DONE
from captioning.config import TrainConfig
from captioning.data.datasets import EncodedCaptions
from captioning.data.vocabulary import END, PAD, START, UNK
from captioning.errors import CaptioningError
from captioning.model.checkpoint import Checkpoint, load_checkpoint
from captioning.model.cider import CiderD
from captioning.training.preparation import origin_of
from captioning.training.request import TrainingRequest
from captioning.training.run import add_curves, train, validate
from captioning.training.trainer import Trainer, learning_rate

FAST = TrainConfig(epochs=2, batch_size=48, warmup=2)


def encoded(table, vocabulary) -> EncodedCaptions:
    return EncodedCaptions([image.captions for image in table.images], vocabulary)


def run(checkpoint, data, output, config=FAST, resume=False, val=True):
    """Train `checkpoint`, or the one in `output` whose run is resumed."""
    origin = None
    if resume:
        origin = origin_of(TrainingRequest(train=Path("x"), output=output, resume=True))
    if origin:
        checkpoint = origin.checkpoint
    table = data.val if val else None
    return train(checkpoint, config, data.train, table, output, resume=origin is not None)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def test_writes_checkpoints_that_caption_as_the_trained_model_does(new_checkpoint, data, tmp_path):
    checkpoint = new_checkpoint()
    before = {k: v.clone() for k, v in checkpoint.model.state_dict().items()}
    history = run(checkpoint, data, tmp_path)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"loss", "perplexity", "val_loss", "CIDEr-D", "BLEU-4"} <= set(history[0])
    assert history[1]["loss"] < history[0]["loss"]
    after = weights(tmp_path / "last.pt")
    assert all(not torch.equal(after[k], before[k]) for k in before)
    loaded = load_checkpoint(tmp_path / "last.pt")
    loss, scores, _ = validate(loaded, data.val)
    assert loss == pytest.approx(history[1]["val_loss"])
    assert scores.overall["CIDEr-D"] == pytest.approx(history[1]["CIDEr-D"])


def test_tensorboard_gets_the_curves(new_checkpoint, data, tmp_path):
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(new_checkpoint(), data, tmp_path)
    log = event.EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert {"train/loss", "epoch/CIDEr-D", "epoch/val_loss"} <= set(log.Tags()["scalars"])
    assert len(log.Scalars("epoch/loss")) == 2


def test_says_once_that_few_pictures_validate(new_checkpoint, data, tmp_path, capsys):
    run(new_checkpoint(), data, tmp_path)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert f"note: {len(data.val.images)} pictures are few: their CIDEr-D and" in notes[0]
    assert len(notes) == len(set(notes))


def test_says_what_it_leaves_out(new_checkpoint, data, tmp_path, monkeypatch, capsys):
    def said(config) -> list[str]:
        train(new_checkpoint(), config, data.train, None, tmp_path / str(config.max_words))
        words = ("TensorBoard", "were cut")
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if any(word in line for word in words)]

    once = replace(FAST, epochs=1)
    pytest.importorskip("tensorboard")
    assert said(once) == []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails
    lengths = encoded(data.train, data.vocabulary).lengths - 2
    count, limit = len(lengths), int(lengths.max()) - 1
    cut = int((lengths > limit).sum())
    assert said(replace(once, max_words=limit)) == [
        "no curves in TensorBoard: pip install tensorboard",
        f"{cut} of {count} captions were cut: they have more than {limit} words (--max-words)",
    ]


def test_validation_writes_on_its_own(new_checkpoint, data):
    """Free-running: the captions come from pictures alone, never from the reference words."""
    checkpoint, other = new_checkpoint(), copy.copy(data.val)
    for parameter in checkpoint.model.parameters():
        parameter.data *= 5  # opinions, so that captions differ
    other.references = {image: ["something else"] for image in data.val.ids}
    other.read = lambda *images: data.val.read(*images).flip(0)
    other.images = [replace(image, captions=["something else"]) for image in data.val.images]
    _, _, written = validate(checkpoint, data.val)
    words = torch.tensor([[START]] * len(data.val.images))
    with torch.no_grad():
        image = checkpoint.model.encoder.embed(data.val.read())
        while not (words == END).any(1).all() and words.size(1) <= 20:  # what it wrote, fed back
            state = checkpoint.model.decoder.start(image)
            for word in words.unbind(1):
                scores, state = checkpoint.model.decoder.step(word, state)
            scores[:, [PAD, START, UNK]] = -torch.inf
            words = torch.cat([words, scores.argmax(1, keepdim=True)], 1)
    expected = [data.vocabulary.decode(row) for row in words[:, 1:].tolist()]
    assert list(written.values()) == expected and len(set(expected)) > 1
    _, _, others = validate(checkpoint, other)
    assert list(others.values()) == expected[::-1]


@pytest.mark.parametrize("lstm", ["torch", "reference"])
def test_a_step_is_the_same_with_every_lstm(new_checkpoint, data, lstm):
    states, losses = [], []
    for kind in ("fastlstm", lstm):
        trainer = Trainer(new_checkpoint(kind), FAST, data.train)
        losses.append([trainer.train_step(torch.arange(40), 10) for _ in range(3)])
        states.append(trainer.model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] < losses[0][0]
    for name in states[0]:  # Adam turns rounding of tiny gradients into steps of up to the rate
        torch.testing.assert_close(states[0][name], states[1][name], atol=3e-3, rtol=1e-3)


def test_the_loss_that_is_reported_has_no_label_smoothing(new_checkpoint, data):
    first, second = [], []
    for smoothing in (0.0, 0.2):
        config = replace(FAST, label_smoothing=smoothing, learning_rate=1e-2, warmup=1)
        trainer = Trainer(new_checkpoint(), config, data.train)
        first.append(trainer.train_step(torch.arange(40), 10))
        second.append(trainer.train_step(torch.arange(40), 10))
    assert first[0] == first[1]  # of the same weights
    assert second[0] != second[1]  # the step itself was smoothed


def test_the_loss_that_is_reported_has_no_weights(new_checkpoint, data):
    reported = []
    for consensus in (0.0, 0.9):
        trainer = Trainer(new_checkpoint(), replace(FAST, consensus=consensus), data.train)
        reported.append(trainer.train_step(torch.arange(0, 40, 3), 10))
    assert reported[0] == pytest.approx(reported[1], rel=1e-6)


def test_captions_that_agree_with_the_others_weigh_more(new_checkpoint, data):
    trainer = Trainer(new_checkpoint(), replace(FAST, consensus=0.4), data.train)
    weights = trainer.caption_weights.unflatten(0, (-1, 5))
    torch.testing.assert_close(weights.mean(1), torch.ones(len(weights)))
    captions = [[data.vocabulary.encode(c)[1:] for c in i.captions] for i in data.train.images]
    expected = []
    for picture, own in enumerate(captions):
        for k in range(5):
            others = [own[:k] + own[k + 1 :] if p == picture else c for p, c in enumerate(captions)]
            cider = CiderD(others)
            cider.weights = CiderD(captions).weights
            expected += cider.scores(picture, [own[k]])
        if picture == 2:
            break
    agreement = torch.tensor(expected).view(3, 5)
    assert (weights[:3].argsort(1) == agreement.argsort(1)).all()
    floor = torch.tensor([CiderD(captions).consensus(c) for c in captions]).mean() / 5
    share = (agreement + floor) / (agreement + floor).mean(1, keepdim=True)
    torch.testing.assert_close(weights[:3], 0.6 + 0.4 * share)


def test_the_weight_of_a_caption_is_that_of_its_loss(new_checkpoint, data):
    trainer = Trainer(new_checkpoint(), FAST, data.train)
    batch = trainer.captions.batch(torch.arange(10))
    assert batch.indices[3] != 3  # they are sorted by length
    trainer.caption_weights[:] = 0
    trainer.caption_weights[3] = 2.0
    loss, _, _ = trainer.objective(torch.arange(10))
    expected, _ = trainer.model(
        data.train.read(batch.images), batch.rows, batch.captions, batch.lengths,
        2.0 * (batch.indices == 3),
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)


def test_captions_that_nobody_else_agrees_with_weigh_the_same(new_checkpoint, data):
    table = copy.copy(data.train)
    table.images = [replace(image, captions=image.captions[:1]) for image in table.images]
    config = replace(FAST, consensus=0.5)
    assert (Trainer(new_checkpoint(), config, table).caption_weights == 1).all()
    several = replace(table.images[1], captions=["a red circle", "a blue square", "a red circle"])
    strangers = replace(table.images[2], captions=["circle", "square"])
    table.images[1:3] = [several, strangers]
    weights = Trainer(new_checkpoint(), config, table).caption_weights
    assert (weights[[0, *range(4, len(weights))]] == 1).all()
    assert weights[1] == weights[3] > 1 > weights[2]


def test_learns_a_handful_of_pictures_by_heart(new_checkpoint, data):
    config = replace(FAST, learning_rate=1e-2)
    trainer = Trainer(new_checkpoint(hidden_size=48), config, data.train)
    features = data.train.read(torch.arange(8))
    for _ in range(150):
        trainer.train_step(torch.arange(0, 40, 5), 300)  # the first caption of each
    from captioning.search.generate import best_captions

    ids = data.train.ids[:8]
    written = best_captions(trainer.model, data.vocabulary, features, ids)
    right = sum(written[i.id] == i.captions[0] for i in data.train.images[:8])
    assert right >= 7


@pytest.mark.parametrize(
    "config",
    [replace(FAST, epochs=3), replace(FAST, epochs=3, label_smoothing=0.1, consensus=0.5, ema=0.9)],
)
def test_killed_and_resumed_equals_unbroken(new_checkpoint, data, tmp_path, monkeypatch, config):
    run(new_checkpoint(dropout=0.3), data, tmp_path / "whole", config)
    real, count = Trainer.train_step, 0

    def killed(self, *args):
        nonlocal count
        count += 1
        if count == 17:  # of 30, ten in each epoch
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(new_checkpoint(dropout=0.3), data, tmp_path / "broken", config)
    monkeypatch.setattr(Trainer, "train_step", real)
    stopped = load_checkpoint(tmp_path / "broken" / "last.pt").training["trainer"]["step"]
    assert stopped == 10
    torch.manual_seed(99)  # whatever the new process did before
    history = run(new_checkpoint(dropout=0.3), data, tmp_path / "broken", config, resume=True)
    whole = load_checkpoint(tmp_path / "whole" / "last.pt")
    for name, tensor in weights(tmp_path / "broken" / "last.pt").items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
    for a, b in zip(history, whole.training["history"], strict=True):
        assert a["loss"] == b["loss"] and a["CIDEr-D"] == b["CIDEr-D"]


def test_best_is_the_epoch_of_the_highest_cider(new_checkpoint, data, tmp_path, monkeypatch):
    import captioning.training.run as module

    values = iter([1.0, 3.0, 2.0])

    def validate_with(checkpoint, *args):
        scores = type("S", (), {"overall": {"CIDEr-D": next(values), "BLEU-4": 0.0}, "notes": []})
        return 1.0, scores, {}

    monkeypatch.setattr(module, "validate", validate_with)
    history = run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=3))
    assert [entry["CIDEr-D"] for entry in history] == [1.0, 3.0, 2.0]
    best = load_checkpoint(tmp_path / "best.pt").training["history"]
    assert len(best) == 2


@pytest.mark.parametrize("where", ["validation", "between the saves"])
def test_what_fails_behind_an_epoch_costs_neither_it_nor_its_best(
    new_checkpoint, data, tmp_path, monkeypatch, where
):
    import captioning.training.run as module

    def validate(checkpoint, *args):  # each epoch is better than the one before
        epoch = float(len(checkpoint.training["history"]))
        return 1.0, type("S", (), {"overall": {"CIDEr-D": epoch, "BLEU-4": 0.0}, "notes": []}), {}

    real, saved = Checkpoint.save, []

    def save(self, path):
        if "best.pt" in saved and len(self.training["history"]) == 2:
            raise KeyboardInterrupt
        real(self, path)
        saved.extend([path.name] * (len(self.training["history"]) == 2))

    monkeypatch.setattr(module, "validate", validate)
    whole = run(new_checkpoint(), data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if where == "validation":
            patch.setattr(module, "validate", lambda *_: 1 / 0)
        else:
            patch.setattr(Checkpoint, "save", save)
        with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
            run(new_checkpoint(), data, tmp_path / "broken")
    history = load_checkpoint(tmp_path / "broken" / "last.pt").training["history"]
    assert len(history) == (1 if where == "validation" else 2) and "CIDEr-D" not in history[-1]
    if where != "validation":
        best = load_checkpoint(tmp_path / "broken" / "best.pt").training["history"]
        assert [entry["CIDEr-D"] for entry in best] == [1.0, 2.0]
    history = run(new_checkpoint(), data, tmp_path / "broken", resume=True)
    for name in ("last.pt", "best.pt"):
        expected = weights(tmp_path / "whole" / name)
        for key, tensor in weights(tmp_path / "broken" / name).items():
            assert torch.equal(tensor, expected[key]), key
    for a, b in zip(history, whole, strict=True):
        assert a["loss"] == b["loss"] and a["CIDEr-D"] == b["CIDEr-D"]


def test_validation_may_come_and_go_with_resume(new_checkpoint, data, tmp_path):
    def go_on(epochs: int, val: bool) -> list[dict[str, float]]:
        return run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=epochs), True, val)

    assert "CIDEr-D" not in go_on(2, False)[-1]
    assert [("CIDEr-D" in e) for e in go_on(3, True)] == [False, True, True]
    best = (tmp_path / "best.pt").read_bytes()
    assert "CIDEr-D" not in go_on(4, False)[-1]
    assert (tmp_path / "best.pt").read_bytes() == best  # nobody knows whether epoch 4 is better


def test_autocast_trains_alike(new_checkpoint, data):
    losses = []
    for config in (FAST, replace(FAST, autocast="bfloat16")):
        trainer = Trainer(new_checkpoint(), config, data.train)
        losses.append([trainer.train_step(torch.arange(40), 10) for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=2**-7)  # bfloat16 has 8 bits


def test_gradients_are_clipped(new_checkpoint, data):
    trainer = Trainer(new_checkpoint(), replace(FAST, clip_norm=1e-3), data.train)
    trainer.train_step(torch.arange(40), 10)
    norm = torch.cat([p.grad.flatten() for p in trainer.parameters]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_rises_then_falls():
    config = TrainConfig(learning_rate=1.0, warmup=10)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1, abs=0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.02 <= rates[-1] < 0.021


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected >= 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected < 1, got 1.0"),
        ({"autocast": "int8"}, "autocast: expected one of"),
        ({"batches_of": "words"}, "batches_of: expected one of"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(CaptioningError, match=message):
        TrainConfig(**change)


def test_a_loss_that_explodes_stops_and_keeps_the_last_checkpoint(new_checkpoint, data, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.model.decoder.linear.weight.data.fill_(torch.nan)
    with pytest.raises(CaptioningError, match="the loss became nan in step 1"):
        run(checkpoint, data, tmp_path)


@pytest.mark.parametrize("count", [60, 10**5])
def test_curves_on_a_full_disk_are_a_message(tmp_path, small_files, capsys, count):
    """The thread that writes them printed a traceback, and the error named no file."""
    pytest.importorskip("tensorboard")
    with small_files(2000), pytest.raises(CaptioningError) as caught:
        add_curves(tmp_path, [("loss", 1.0, i) for i in range(count)])
    assert str(caught.value) == f"cannot write {tmp_path}: File too large"
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_cannot_save_ends_with_a_message(new_checkpoint, data, tmp_path, small_files):
    run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=1))
    kept = {name: (tmp_path / name).read_bytes() for name in ("last.pt", "best.pt")}
    told = "cannot write .*last.pt: File too large; what was there before is untouched"
    with small_files(len(kept["last.pt"]) // 2), pytest.raises(CaptioningError, match=told):
        run(new_checkpoint(), data, tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert {p.name for p in tmp_path.iterdir()} == {*kept, "tensorboard"}
    assert len(run(new_checkpoint(), data, tmp_path, resume=True)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("trainer"), "expected a run to resume, got none: no trainer"),
        (lambda t: t.pop("history"), "expected a run to resume, got none: no history"),
        (lambda t: t.pop("config"), "settings: expected settings by name, got None"),
        (lambda t: t["config"].update(epochs="2"), "settings: expected int as epochs, got '2'"),
        (lambda t: t["config"].update(speed=2), "settings: expected epochs, .*, got 'speed'"),
        (lambda t: t["trainer"].pop("optimizer"), "state of this trainer, got: KeyError"),
        (lambda t: t["trainer"].update(optimizer=5), "state of this trainer, got: "),
        (lambda t: t["trainer"].update(weights=[5]), "state of this trainer, got: "),
        (lambda t: t["trainer"].update(step="x"), "state of this trainer, got: ValueError"),
        (
            lambda t: t["trainer"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
            "state of this trainer, got: .*tensors of other shapes",
        ),
        (
            lambda t: t["trainer"]["weights"].__setitem__(0, torch.zeros(1)),
            "state of this trainer, got: .*tensors of other shapes",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(new_checkpoint, data, tmp_path, change, message):
    config = replace(FAST, epochs=1, ema=0.9)
    path = tmp_path / "last.pt"
    checkpoint = new_checkpoint()
    trainer = Trainer(checkpoint, config, data.train)
    trainer.train_step(trainer.batches(0)[0], 10)
    with trainer.averaged():
        state = copy.deepcopy(trainer.state_dict())
    checkpoint.training = {"config": asdict(config), "trainer": state, "history": []}
    change(checkpoint.training)
    checkpoint.save(path)
    with pytest.raises(CaptioningError, match=f"^{path}: .*{message}"):
        run(new_checkpoint(), data, tmp_path, config, resume=True)


def test_settings_that_an_older_version_lacked_have_their_default(new_checkpoint, data, tmp_path):
    run(new_checkpoint(), data, tmp_path, replace(FAST, epochs=1))
    older = load_checkpoint(tmp_path / "last.pt")
    del older.training["config"]["ema"]
    older.save(tmp_path / "last.pt")
    assert len(run(new_checkpoint(), data, tmp_path, resume=True)) == 2


def test_a_second_run_in_a_folder_is_refused(new_checkpoint, data, tmp_path, capsys):
    """Both ended well and left a mixture."""
    code = "import sys; from captioning.files import lock_folder; lock = lock_folder(sys.argv[1]); "
    code += "lock.__enter__(); print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline()
    before = set(tmp_path.iterdir())
    told = f"{tmp_path} is being written by another process"
    with pytest.raises(CaptioningError, match=told):
        run(new_checkpoint(), data, tmp_path)
    source = tmp_path / "captions.txt"
    source.write_text("image,caption\nx.png,a dog\n")
    for command in ("demo", "train --train none.json", f"prepare {source}"):
        assert main([*command.split(), "--output", str(tmp_path)]) == 1
        assert told in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before | {source}
    other.communicate(b"")
    assert len(run(new_checkpoint(), data, tmp_path)) == 2


def run_processes(count: int, *command: object) -> str:
    """Run Python with this command line, in several processes by torchrun; returns its output."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *(torchrun if count > 1 else []), *map(str, command)],
        env=environment,
        timeout=120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("stage", ["loss", "reward"])
def test_two_processes_do_what_one_does(scenes_root, data, tmp_path, stage):
    """torchrun with gloo, the same global batches; the sums are only in another order."""
    results = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        script = Path(__file__).parent / "distributed.py"
        run_processes(count, script, out, scenes_root, data.train.cache.path.parent, stage)
        results.append(json.loads(out.read_text()))
    one, two = results
    assert len(one[stage]) == 2
    assert two[stage] == pytest.approx(one[stage], rel=1e-5)
    assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-3)


def test_the_first_process_encodes_the_pictures_for_all(scenes_root, tmp_path):
    captions = scenes_root / "annotations" / "captions_val.json"
    sizes = ["--hidden-size", 8, "--embed-size", 8, "--min-count", 1]
    out = run_processes(
        *(2, "-m", "captioning", "train", "--train", captions, "--output", tmp_path),
        *("--cnn", "scenes_cnn", "--epochs", 1, "--batch-size", 20, *sizes),
    )
    assert out.count("12 pictures, ") == 1  # said by the first alone
    (cache,) = (tmp_path / "features").iterdir()
    assert torch.load(cache)["state"].tolist() == [DONE] * 12
    assert len(load_checkpoint(tmp_path / "last.pt").training["history"]) == 1


def test_batches_of_one_picture_are_too_small_for_batchnorm(new_checkpoint, data):
    config = TrainConfig(batch_size=5, batches_of="pictures")
    with pytest.raises(CaptioningError, match="batches of 5, of 480 captions, are too small"):
        Trainer(new_checkpoint(), config, data.train)
    with pytest.raises(CaptioningError, match="batches of 1, of 480 captions, are too small"):
        Trainer(new_checkpoint(), replace(config, batch_size=1), data.train)
    assert len(Trainer(new_checkpoint(), replace(config, batch_size=10), data.train).batches(0))
