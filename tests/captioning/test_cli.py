"""The command line: all commands from pictures to scores, and their messages."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import captioning
from captioning.__main__ import Parser, main
from captioning.commands import COMMANDS
from captioning.model.checkpoint import load_checkpoint
from captioning.settings import preset


def call(*words):
    return main([str(word) for word in words])


@pytest.fixture
def no_cnn(monkeypatch):
    """Fails if a command loads a CNN."""
    monkeypatch.setattr("captioning.training.setup.load_cnn", lambda _: pytest.fail("loaded"))


@pytest.fixture
def no_captioner(monkeypatch):
    """Fails if a command loads a captioner."""
    for name in ("caption", "evaluate"):
        path = f"captioning.commands.{name}.load_captioner"
        monkeypatch.setattr(path, lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_explains_its_arguments(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and len(capsys.readouterr().out) > 200
    parser = Parser()
    importlib.import_module(f"captioning.commands.{command}").add(parser)
    for action in parser._actions:
        text = action.help % {"default": action.default}  # as argparse does
        assert len(text) > 4 and "`" not in text, action.option_strings


@pytest.mark.parametrize("arguments, told", [
    (["--version"], [f"captioning {captioning.__version__}\n"]),
    ([], ["begin with:  captioning demo", *COMMANDS]),
])  # fmt: skip
def test_introduces_itself(arguments, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out = capsys.readouterr().out
    assert stop.value.code == 0 and all(text in out for text in told)


@pytest.mark.parametrize("arguments, message", [
    (["trian"], "captioning: argument COMMAND: invalid choice: 'trian' (choose from "),
    (["train"], "captioning train: the following arguments are required: --output"),
    (["demo", "--epoch=x"], "argument --epochs: invalid int value: 'x'"),
    (["demo", "again"], "captioning demo: unrecognized arguments: again"),
    (["prepare"], "prepare: the following arguments are required: source, --output"),
    (["caption", "c.pt", "x.png", "--nothing"], "caption: unrecognized arguments: --nothing\n"),
    (["prepare", "c", "--output", "o", "--nothing"], "(captioning prepare --help says"),
    (["--nothing"], "captioning: unrecognized arguments: --nothing"),
])  # fmt: skip
def test_a_wrong_call_gets_a_line_or_two(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize("name, command", [
    ("PIL", "demo --help"),
    ("safetensors", "train --help"),
    ("nltk", "train --train {val} --output {tmp}/o --cnn scenes_cnn"),  # nltk is imported late
    ("tqdm", "demo --output {tmp}/o"),  # tqdm prints most messages
])  # fmt: skip
def test_a_library_that_is_missing_is_named(name, command, captions_of, tmp_path):
    words = command.format(val=captions_of("val"), tmp=tmp_path).split()
    code = f"import sys; sys.modules[{name!r}] = None; from captioning.__main__ import main; "
    code += f"sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    hint = "pip install './captioning[serve]', in a clone of fastlstm"
    assert (done.returncode, done.stderr) == (1, f"captioning: needs {name}: {hint}\n")


SMALL = [*("--hidden-size", 16, "--embed-size", 16, "--set", "min-count=1", "--cnn", "scenes_cnn")]
OPTIONS = [*SMALL, "--set", "pool=2x2", "--batch-size", 48]


@pytest.fixture(scope="module")
def trained(captions_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    files = "--train", captions_of("train"), "--val", captions_of("val"), "--output", folder
    assert call("train", *files, *OPTIONS, "--epochs", 1) == 0
    return folder


@pytest.fixture(scope="module")
def best(trained):
    return trained / "best.pt"


def test_trains_captions_and_evaluates(best, captions_of, tmp_path, capsys):
    val, report = captions_of("val"), tmp_path / "report.html"
    results, scores = tmp_path / "r.json", tmp_path / "s.json"
    assert call("caption", best, "--annotations", val, "--json", results) == 0
    assert len(json.loads(results.read_text())) == 12
    given = best, val, "--report", report, "--json", scores
    assert call("evaluate", *given) == 0
    assert "BLEU-4" in capsys.readouterr().out and "<svg" in report.read_text()
    written = json.loads(scores.read_text())
    assert set(written) == {"scores", "notes", "per_image"}
    captions = {str(row["image_id"]): row["caption"] for row in json.loads(results.read_text())}
    assert {i: row["caption"] for i, row in written["per_image"].items()} == captions


def test_a_missing_reference(best, scenes_root, captions_of, tmp_path, no_captioner, capsys):
    data = json.loads(captions_of("val").read_text())
    lonely = data["images"][3]["id"]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != lonely]
    (tmp_path / "c.json").write_text(json.dumps(data))
    files = tmp_path / "c.json", "--images", scenes_root / "val"
    assert call("evaluate", best, *files) == 1
    assert f"pictures without a reference, by their id: [{lonely}]" in capsys.readouterr().err


def test_missing_pictures_are_scored_and_named(best, scenes_root, captions_of, tmp_path, capsys):
    """Scores need only the references and the captions, not the picture files."""
    val, folder = captions_of("val"), tmp_path / "some"
    shutil.copytree(scenes_root / "val", folder)
    results, report = tmp_path / "r.json", tmp_path / "report.html"
    assert call("caption", best, "--annotations", val, "--json", results) == 0
    scores = ["evaluate", results, val]
    capsys.readouterr()
    assert call(*scores) == 0
    expected, missing = capsys.readouterr().out, sorted(folder.iterdir())[:2]
    for path in missing:
        path.unlink()
    assert call(*scores, "--report", report, "--images", folder) == 0
    assert capsys.readouterr().out.startswith(expected)
    assert report.read_text().count("<figure>") == 8 + 8 + 8
    assert f"{missing[0].name}: no such file" in report.read_text()
    assert call("caption", best, "--annotations", val, "--images", folder, "--json", results) == 1
    err = capsys.readouterr().err
    assert all(f"{path}: no such file" in err for path in missing)
    assert "10 pictures, " in err and " a second; 2 failed" in err
    assert len(json.loads(results.read_text())) == 10


def test_cached_features(best, scenes_root, captions_of, tmp_path, monkeypatch, capsys):
    folder, results, cache = tmp_path / "val", tmp_path / "r.json", tmp_path / "f"
    shutil.copytree(scenes_root / "val", folder)
    broken = sorted(folder.iterdir())[3]
    broken.write_text("no picture")
    files = "--annotations", captions_of("val"), "--images", folder, "--json", results
    written = []
    for extra in ([], ["--features", cache], ["--features", cache]):
        if written[1:]:  # the third call reads features that the second has encoded
            monkeypatch.setattr("captioning.data.images.load_image", lambda *_: pytest.fail("read"))
        assert call("caption", best, *files, *extra) == 1
        written.append(json.loads(results.read_text()))
        err = capsys.readouterr().err
        assert broken.name in err and "11 pictures, " in err and "; 1 failed" in err
    assert written[0] == written[1] == written[2] and len(written[0]) == 11
    assert call("caption", best, folder, "--features", cache) == 1
    assert "--features: expected --annotations" in capsys.readouterr().err


def test_training_leaves_broken_pictures_out(scenes_root, tmp_path, capsys):
    root, run, results = tmp_path / "scenes", tmp_path / "run", tmp_path / "r.json"
    shutil.copytree(scenes_root, root)
    broken = [sorted((root / split).iterdir())[5] for split in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    files, val = root / "annotations", root / "annotations" / "captions_val.json"
    train = ["train", "--train", files / "captions_train.json", "--val", val, "--output", run]
    train += [*SMALL, "--epochs", 1]
    assert call(*train) == 1
    err = capsys.readouterr().err
    assert "000006.png: broken picture" in err and "--on-error skip" in err
    assert call(*train, "--on-error", "skip") == 0
    out, err = capsys.readouterr()
    assert "95 pictures, " in out
    assert all(f"{path.name}: broken picture" in out + err for path in broken)
    history = load_checkpoint(run / "last.pt").training["history"]
    assert len(history) == 1 and "CIDEr-D" in history[0]
    assert call("caption", run / "best.pt", "--annotations", val, "--json", results) == 1
    assert len(json.loads(results.read_text())) == 11


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions_files_folders_and_globs(best, scenes_root, tmp_path, capsys, method):
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    (tmp_path / "val" / "broken.png").write_text("no picture")
    unseen, sheet = scenes_root / "unseen", tmp_path / "sheet.png"
    first = next(unseen.iterdir())
    more = "--method", method, tmp_path / "val", unseen / "**" / "*.png"
    assert call("caption", best, "--sheet", sheet, first, *more) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 24 and str(first) in out.splitlines()[0]
    assert "broken.png: not a picture" in err and " a second; 1 failed" in err
    with Image.open(sheet) as image:
        assert image.height > 2 * image.width  # eight rows of three pictures


def test_captions_with_weights_of_fewer_bits(best, scenes_root, capsys):
    picture = next((scenes_root / "unseen").iterdir())
    assert call("caption", best, picture, "--lstm-weights", "int8") == 0
    assert re.fullmatch(r"device: cpu, .*\n1 picture, [\d.]+ a second\n", capsys.readouterr().err)


STRANGE = {
    b"new\nline.png": r"new\nline.png",
    b"\x1b[31mred.png": r"\x1b[31mred.png",
    b"caf\xe9.png": r"caf\udce9.png",
    "café\u202e.png".encode(): r"café\u202e.png",
}


@pytest.fixture
def strange(scenes_root, tmp_path):
    """A folder of pictures with strange names, and of other things that are named like pictures."""
    folder = tmp_path / "strange"
    folder.mkdir()
    sources = sorted((scenes_root / "val").iterdir())
    for name, source in zip(STRANGE, sources, strict=False):
        shutil.copy(source, os.path.join(os.fsencode(folder), name))
    os.mkfifo(folder / "pipe.png")
    socket.socket(socket.AF_UNIX).bind(str(folder / "socket.png"))
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to("nowhere")
    return folder


def test_strange_names_are_printed_on_one_line_and_come_back(best, strange, tmp_path, capsys):
    """The pipe in the folder must not block, and a name that is not UTF-8 must not be an error."""
    results = tmp_path / "r.json"
    assert call("caption", best, strange, "--sheet", tmp_path / "sheet.png") == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    printed = [str(strange / name) for name in STRANGE.values()]
    assert sorted(line.split(": ")[0] for line in lines) == sorted(printed)
    assert call("caption", best, strange, "--json", results) == 0
    names = [os.fsencode(entry["file_name"]) for entry in json.loads(results.read_text("utf-8"))]
    assert sorted(names) == sorted(os.path.join(os.fsencode(strange), name) for name in STRANGE)


@pytest.mark.parametrize("option", ["--json", "--sheet", "--attention"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_unwritable_results(option, kind, best, scenes_root, tmp_path, no_captioner, capsys):
    path = tmp_path / "x"
    {"folder": Path.mkdir, "pipe": os.mkfifo, "below a file": Path.touch}[kind](path)
    path = path / "y" if kind == "below a file" else path
    assert call("caption", best, scenes_root / "val", option, path) == 1
    assert f"captioning: cannot write {path}: " in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_second_stage_starts_from_the_first(best, captions_of, tmp_path, capsys):
    train = ["train", "--train", captions_of("train"), "--start", best, "--output", tmp_path]
    assert call(*train, "--self-critical", 2, "--epochs", 1) == 0
    assert not (tmp_path / "features").exists()  # the features of the first stage are used
    first, second = load_checkpoint(best), load_checkpoint(tmp_path / "best.pt")
    assert second.vocabulary.words == first.vocabulary.words and second.cnn == first.cnn
    assert second.model.config == first.model.config
    config = second.training["config"]
    assert config["self_critical"] == 2
    assert config["learning_rate"] == preset(1, self_critical=True)["learning_rate"]
    assert "reward" in second.training["history"][0]


def test_attention_trains_resumes_and_searches(scenes_root, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", scenes_root / "annotations", "--output", run, "--cnn", "scenes_cnn"]
    train += "--decoder attention --learning-rate 0.01 --batch-size 48 --hidden-size 32".split()
    train += "--embed-size 24 --set warmup=5 --set dropout=0 --set label-smoothing=0".split()
    train += ["--set", "ema=0"]
    assert call(*train, "--epochs", 2) == 0 and call(*train, "--epochs", 6, "--resume") == 0
    training = load_checkpoint(run / "last.pt").training
    assert training["config"]["batches_of"] == "pictures"
    history = training["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    best = max(history, key=lambda entry: entry["CIDEr-D"])
    assert load_checkpoint(run / "best.pt").training["history"][-1] == best
    capsys.readouterr()
    for method in ("greedy", "beam"):
        assert call("caption", run / "best.pt", scenes_root / "val", "--method", method) == 0
        captions = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
        assert len(captions) == 12 and len(set(captions)) > 1


def test_the_last_lines_of_training(best, scenes_root, captions_of, tmp_path, capsys):
    unseen, path, scores = captions_of("unseen"), tmp_path / "best.pt", tmp_path / "s.json"
    train = ["train", scenes_root / "annotations", "--epochs", 2, "--start", best]
    assert call(*train, "--test", unseen, "--output", tmp_path) == 0
    first, *_, chosen, search, test, following = capsys.readouterr().out.splitlines()
    assert first.startswith("device: cpu, ")
    history = load_checkpoint(tmp_path / "last.pt").training["history"]
    entry = max(history, key=lambda e: e["CIDEr-D"])
    epoch = f"best of 2 epochs: {entry['epoch']}, CIDEr-D {entry['CIDEr-D']:.3f}, "
    assert chosen.startswith(epoch) and chosen.endswith(f"on --val: {path}")
    size = load_checkpoint(path).search.beam_size
    assert search.startswith(f"search chosen on --val: {size} beams, length penalty ")
    assert test.startswith("test, 12 pictures: greedy CIDEr-D ")
    assert following == f"next: captioning caption {path} PICTURE"
    # `evaluate` uses the search that training chose, so it gets the score that training printed.
    assert call("evaluate", path, unseen, "--json", scores) == 0
    overall = json.loads(scores.read_text())["scores"]
    assert test.endswith(f"beam CIDEr-D {overall['CIDEr-D']:.3f}, BLEU-4 {overall['BLEU-4']:.3f}")


def test_kept_training_pictures(best, scenes_root, captions_of, tmp_path, monkeypatch, capsys):
    """best.pt keeps the pictures only if --val of the last call chose a weight above 0 for them."""
    run = tmp_path / "run"
    train = ["train", "--train", captions_of("train"), "--output", run]
    val = ["--val", captions_of("val")]
    # After so few steps all weights have the same CIDEr-D, 0, and the first of them is chosen.
    monkeypatch.setattr("captioning.search.tune.NEIGHBOR_WEIGHTS", (5, 0))
    kept = lambda: load_checkpoint(run / "best.pt").neighbors
    assert call(*train, "--start", best, "--epochs", 1) == 0
    assert kept() is None  # without --val no weight is chosen
    assert call(*train, *val, "--resume", "--epochs", 2) == 0
    assert len(kept().captions) == 96 and load_checkpoint(run / "best.pt").search.neighbors == 5
    assert call(*train, *val, "--resume", "--no-neighbors") == 0 and kept() is None
    capsys.readouterr()
    caption = ["caption", run / "last.pt", scenes_root / "val", "--neighbors"]
    assert call(*caption, 0) == 0 and call(*caption, 1) == 1
    told = "--neighbors: expected a captioner with captions of training pictures"
    assert told in capsys.readouterr().err


TRAIN = ["train", "--train", "x", "--output", "o"]


@pytest.mark.parametrize("arguments, message", [
    (["caption", "none.pt", "x.png"], "x.png: no such file or folder"),
    (["caption", "none.pt", "*.png"], "*.png: no picture found"),
    (["caption", "none.pt"], "expected pictures to caption, or --annotations; got neither"),
    (["caption", "c.pt", "x", "--annotations", "x"], "or --annotations; got both"),
    (["caption", "x.jpg", "c.pt"], "expected a captioner, then pictures; got x.jpg first"),
    (["caption", ".", "c.pt"], "expected a captioner, then pictures; got . first"),
    (["evaluate", "none.json", "none.json"], "none.json: No such file"),
    (["evaluate", "none.pt", "none.json"], "none.json: No such file"),
    (["evaluate", "none.pt", "."], ".: expected a folder with captions_test.json or captions_val"),
    (["evaluate", "a.json", "b.pt", "c.json"], "or one file of captions; got a.json, b.pt"),
    (["prepare", "none.txt", "--output", "o"], "none.txt: No such file"),
    (["train", "--output", "o"], "expected the folder that prepare wrote, or --train"),
    (["train", ".", "--output", "o"], "captions_train.json, or --train FILE; got .\n"),
    (["train", os.devnull, "--output", "o"], f"--train FILE; got {os.devnull}\n"),
    ([*TRAIN, "--decoder", "attention", "--set", "pool=2x2"], "pool: expected grid with this"),
    ([*TRAIN, "--set", "pool=grid"], "pool: expected avg or 2x2 with this decoder, got grid"),
    ([*TRAIN, "--set", "speed=2"], "--set: expected NAME=VALUE, NAME one of pool, min_count,"),
    ([*TRAIN, "--set", "warmup"], "--set: expected NAME=VALUE"),
    ([*TRAIN, "--set", "warmup=x"], "--set warmup: expected a number, got x"),
    ([*TRAIN, "--set", "dropout=nan"], "dropout: expected a number from 0 to"),
    ([*TRAIN, "--hidden-size", "0"], "hidden_size: expected an integer from 1"),
    ([*TRAIN, "--learning-rate=-1"], "learning_rate: expected a number from"),
    ([*TRAIN, "--members", "0"], "members: expected 1 or more, got 0"),
    ([*TRAIN, "--self-critical", "1"], "at least 2 captions"),
    ([*TRAIN, "--start", "none.pt"], "none.pt: no such file; expected a captioner"),
    (["serve", "none.pt"], "none.pt: no such file; expected a captioner"),
    (["serve", "c.pt", "--port", "80000"], "--port: expected a number from 1 to 65535, got"),
    (["serve", "c.pt", "--host", "192.0.2.1"], "192.0.2.1: Cannot assign requested addr"),
    ([*TRAIN[:-1], os.devnull], f"--output {os.devnull}: expected a folder, but {os.devnull}"),
    (["prepare", "x", "--output", f"{os.devnull}/x"], f"a folder, but {os.devnull} is"),
    ([*TRAIN, "--device", "abacus"], "--device: no device 'abacus' here: "),
    (["demo", "--output", "/dev/null/x"], "/dev/null/x"),
    (["demo", "--epochs", "0"], "epochs: expected an integer from 1"),
    (["caption", "c.pt", "x", "--beam-size", "3", "--method", "greedy"], "expected --method"),
    (["caption", "c.pt", "x", "--seed", "3"], "--seed: expected --method sample, got beam"),
    (["caption", "c.pt", "x", "--beam-size", "0"], "beam_size: expected an integer from 1"),
    (["caption", "c.pt", "x", "--neighbors", "nan"], "neighbors: expected a number from 0"),
])  # fmt: skip
def test_bad_input_gets_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    told = [line for line in capsys.readouterr().err.splitlines(True) if line[:6] != "device"]
    assert message in told[0] and len(told) == 1
    assert not [*tmp_path.iterdir()]  # a run that did not begin leaves no folder


def test_a_folder_may_be_called_like_a_captioner(best, scenes_root, tmp_path, capsys):
    shutil.copytree(scenes_root / "val", tmp_path / "x.pt")
    assert call("caption", best, tmp_path / "x.pt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_training_does_not_overwrite_a_captioner(trained, captions_of, capsys):
    before = (trained / "last.pt").read_bytes()
    assert call("train", "--train", captions_of("train"), "--output", trained) == 1
    assert "holds a captioner already" in capsys.readouterr().err
    assert (trained / "last.pt").read_bytes() == before


@pytest.mark.parametrize("wrong", ["--train", "--val"])
def test_bad_files_are_noticed_before_the_cnn(wrong, captions_of, tmp_path, no_cnn, capsys):
    cut, train = tmp_path / "cut.json", captions_of("train")
    cut.write_text('{"images": [')
    files = {"--train": train, "--val": train, wrong: cut, "--output": tmp_path / "run"}
    assert call("train", *(word for pair in files.items() for word in pair)) == 1
    assert "cut.json is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["start", "resume"])
@pytest.mark.parametrize("option, message", [
    ("--hidden-size 512", "hidden_size: expected 16, as in {path}, got 512"),
    ("--set dropout=0.1", "dropout: expected 0.4, as in {path}, got 0.1"),
    ("--set image-at=first", "image_at: expected every, as in {path}, got first"),
    ("--decoder attention", "decoder: expected lstm, as in {path}, got attention"),
    ("--cnn resnet18", "cnn: expected scenes_cnn, as in {path}, got resnet18"),
    ("--cnn-weights V1", "cnn_weights: expected DEFAULT, as in {path}, got V1"),
    ("--set pool=avg", "pool: expected 2x2, as in {path}, got avg"),
])  # fmt: skip
def test_options_that_contradict_the_start(
    which, option, message, trained, captions_of, tmp_path, no_cnn, capsys
):
    path = trained / ("best.pt" if which == "start" else "last.pt")
    start = ["--start", path, "--output", tmp_path / "run"]
    more = start if which == "start" else ["--resume", "--output", trained]
    assert call("train", "--train", captions_of("train"), *more, *option.split()) == 1
    assert message.format(path=path) in capsys.readouterr().err


@pytest.mark.parametrize("option, message", [
    ("--start {path}", "start: expected no captioner, as in {path}, got {path}"),
    ("--train {val}", "train: expected the captions of {path}, got {val}"),
    ("--members 2", "members: expected 1, as in {path.parent}, got 2"),
])  # fmt: skip
def test_what_resume_refuses(option, message, trained, scenes_root, captions_of, no_cnn, capsys):
    names = {"path": trained / "last.pt", "val": captions_of("val")}
    train = ["train", scenes_root / "annotations", "--resume", "--output", trained]
    assert call(*train, *option.format(**names).split()) == 1
    assert message.format(**names) in capsys.readouterr().err


def test_fewer_captioners_than_the_folder_holds_are_not_resumed(trained, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        shutil.copy(trained / "last.pt", tmp_path / name)
    assert call("train", "--train", "x", "--output", tmp_path, "--resume") == 1
    assert f"members: expected at least 2, as in {tmp_path}, got 1" in capsys.readouterr().err


def test_resume_keeps_the_options(trained, captions_of, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("last.pt", "best.pt"):
        shutil.copy(trained / name, run)
    files = "--train", captions_of("train"), "--val", captions_of("val"), "--output", run
    train = ["train", *files, "--resume"]
    assert call(*train, "--learning-rate", 1) == 1
    told = capsys.readouterr().err
    assert f"learning_rate: expected 0.003, as in {run / 'last.pt'}, got 1.0" in told
    assert call(*train, "--epochs", 2) == 0
    before, after = load_checkpoint(trained / "last.pt"), load_checkpoint(run / "last.pt")
    assert [entry["epoch"] for entry in after.training["history"]] == [1, 2]
    assert after.training["config"] == before.training["config"] | {"epochs": 2}
    assert after.model.config == before.model.config and after.cnn == before.cnn
    assert after.vocabulary.words == before.vocabulary.words
    assert not (run / "features").exists()  # the features of the first call are used
    assert call(*train, *OPTIONS, "--epochs", 2) == 0  # the options of the first call may be given
