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
from captioning.data.convert import read_source
from captioning.model.checkpoint import load_checkpoint
from captioning.settings import preset


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"captioning {captioning.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_is_explained(command):
    parser = Parser()
    importlib.import_module(f"captioning.commands.{command}").add(parser)
    for action in parser._actions:
        text = action.help % {"default": action.default}  # argparse formats help so
        assert len(text) > 4 and "`" not in text, action.option_strings


def test_without_arguments_it_introduces_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS) and "begin with:  captioning demo" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "captioning: argument COMMAND: invalid choice: 'trian' (choose from "),
        (["train"], "captioning train: the following arguments are required: --output"),
        (["demo", "--epoch=x"], "argument --epochs: invalid int value: 'x'"),
        (["demo", "again"], "captioning demo: unrecognized arguments: again"),
        (["prepare"], "prepare: the following arguments are required: source, --output"),
        (["caption", "c.pt", "x.png", "--nothing"], "caption: unrecognized arguments: --nothing\n"),
        (["prepare", "c", "--output", "o", "--nothing"], "(captioning prepare --help says"),
        (["--nothing"], "captioning: unrecognized arguments: --nothing"),
    ],
)
def test_a_wrong_call_gets_a_line_or_two(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("PIL", "demo --help"),
        ("safetensors", "train --help"),
        ("nltk", "train --train {val} --output {tmp}/o --cnn scenes_cnn"),  # imported late
        ("tqdm", "demo --output {tmp}/o"),  # prints most messages
    ],
)
def test_a_library_that_is_missing_is_named(name, command, scenes_root, tmp_path):
    """The module is hidden, as if it were not installed."""
    val = scenes_root / "annotations" / "captions_val.json"
    words = command.format(val=val, tmp=tmp_path).split()
    code = (
        f"import sys; sys.modules[{name!r}] = None; from captioning.__main__ import main; "
        f"sys.exit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.stderr
        == f"captioning: needs {name}: pip install './captioning[serve]', in a clone of fastlstm\n"
    )
    assert done.returncode == 1


@pytest.fixture(scope="module")
def trained(scenes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    annotations = scenes_root / "annotations"
    code = main(
        [
            *("train", "--train", str(annotations / "captions_train.json")),
            *("--val", str(annotations / "captions_val.json"), "--output", str(folder)),
            *("--cnn", "scenes_cnn", "--set", "pool=2x2", "--epochs", "1", "--batch-size", "48"),
            *("--hidden-size", "16", "--embed-size", "16", "--set", "min-count=1"),
        ]
    )
    assert code == 0
    return folder


def test_trains_captions_and_evaluates(trained, scenes_root, tmp_path, capsys):
    val = str(scenes_root / "annotations" / "captions_val.json")
    results = str(tmp_path / "r.json")
    assert main(["caption", str(trained / "best.pt"), "--annotations", val, "--json", results]) == 0
    assert len(json.loads(Path(results).read_text())) == 12
    report, scores = tmp_path / "report.html", tmp_path / "scores.json"
    arguments = ["evaluate", results, "--references", val, "--report", str(report)]
    extra = ["--json", str(scores), str(trained / "best.pt")]
    assert main(arguments + extra) == 0
    assert "BLEU-4" in capsys.readouterr().out and "<svg" in report.read_text()
    assert set(json.loads(scores.read_text())) == {"scores", "notes", "per_image"}


def test_a_picture_without_a_reference_is_refused_before_the_work(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    data = json.loads((scenes_root / "annotations" / "captions_val.json").read_text())
    lonely = data["images"][3]["id"]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != lonely]
    (tmp_path / "c.json").write_text(json.dumps(data))
    monkeypatch.setattr("captioning.commands.evaluate.load_captioner", lambda *_: pytest.fail("go"))
    command = ["evaluate", str(trained / "best.pt"), "--references", str(tmp_path / "c.json")]
    assert main([*command, "--images", str(scenes_root / "val")]) == 1
    assert f"pictures without a reference, by their id: [{lonely}]" in capsys.readouterr().err


def test_pictures_that_are_missing_are_scored_and_named(trained, scenes_root, tmp_path, capsys):
    """Scores need only the references and the captions, not the picture files."""
    val, folder = scenes_root / "annotations" / "captions_val.json", tmp_path / "some"
    shutil.copytree(scenes_root / "val", folder)
    results, report = tmp_path / "r.json", tmp_path / "report.html"
    best = str(trained / "best.pt")
    assert main(["caption", best, "--annotations", str(val), "--json", str(results)]) == 0
    scores = ["evaluate", str(results), "--references", str(val)]
    capsys.readouterr()
    assert main(scores) == 0
    expected = capsys.readouterr().out
    missing = sorted(folder.iterdir())[:2]
    for path in missing:
        path.unlink()
    assert main([*scores, "--report", str(report), "--images", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(expected)
    assert report.read_text().count("<figure>") == 8 + 8 + 8
    assert f"{missing[0].name}: no such file" in report.read_text()

    command = ["caption", best, "--annotations", str(val), "--images", str(folder)]
    assert main([*command, "--json", str(results)]) == 1
    err = capsys.readouterr().err
    assert all(f"{path}: no such file" in err for path in missing)
    assert "10 pictures, " in err and " a second; 2 failed" in err
    assert len(json.loads(results.read_text())) == 10


def test_captions_from_the_feature_cache_are_those_of_the_pictures(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "val"
    shutil.copytree(scenes_root / "val", folder)
    broken = sorted(folder.iterdir())[3]
    broken.write_text("no picture")
    val = str(scenes_root / "annotations" / "captions_val.json")
    command = ["caption", str(trained / "best.pt"), "--annotations", val, "--images", str(folder)]
    written = []
    for extra in ([], ["--features", str(tmp_path / "f")], ["--features", str(tmp_path / "f")]):
        if written[1:]:  # the third call reads features that the second has encoded
            monkeypatch.setattr("captioning.data.images.load_image", lambda *_: pytest.fail("read"))
        results = tmp_path / "r.json"
        assert main([*command, "--json", str(results), *extra]) == 1
        written.append(json.loads(results.read_text()))
        err = capsys.readouterr().err
        assert broken.name in err and "11 pictures, " in err and "; 1 failed" in err
    assert written[0] == written[1] == written[2] and len(written[0]) == 11
    assert main([*command[:2], str(folder), "--features", str(tmp_path / "f")]) == 1
    assert "--features: expected --annotations" in capsys.readouterr().err


def test_training_leaves_broken_pictures_out(scenes_root, tmp_path, capsys):
    """A picture of train and one of val are corrupt; training and captioning skip them."""
    shutil.copytree(scenes_root, tmp_path / "scenes")
    broken = [sorted((tmp_path / "scenes" / split).iterdir())[5] for split in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    annotations = tmp_path / "scenes" / "annotations"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--cnn", "scenes_cnn"]
    train += ["--val", str(annotations / "captions_val.json"), "--output", str(tmp_path / "run")]
    train += ["--epochs", "1", "--hidden-size", "16", "--embed-size", "16", "--set", "min-count=1"]
    assert main(train) == 1
    err = capsys.readouterr().err
    assert "000006.png: broken picture" in err and "--on-error skip" in err
    assert main([*train, "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    assert "95 pictures, " in out
    assert all(f"{path.name}: broken picture" in out + err for path in broken)
    history = load_checkpoint(tmp_path / "run" / "last.pt").training["history"]
    assert len(history) == 1 and "CIDEr-D" in history[0]
    val = annotations / "captions_val.json"
    results = tmp_path / "r.json"
    command = ["caption", str(tmp_path / "run" / "best.pt"), "--annotations", str(val)]
    assert main([*command, "--json", str(results)]) == 1
    assert len(json.loads(results.read_text())) == 11


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions_files_folders_and_globs_and_names_the_broken_one(
    trained, scenes_root, tmp_path, capsys, method
):
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    (tmp_path / "val" / "broken.png").write_text("no picture")
    first = next((scenes_root / "unseen").iterdir())
    pictures = [str(first), str(tmp_path / "val"), str(scenes_root / "unseen" / "*.png")]
    command = ["caption", str(trained / "best.pt")]
    sheet = tmp_path / "sheet.png"
    command += ["--sheet", str(sheet), pictures[0], "--method", method, *pictures[1:]]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 24 and str(first) in out.splitlines()[0]
    assert "broken.png: not a picture" in err and " a second; 1 failed" in err
    with Image.open(sheet) as image:
        assert image.height > 2 * image.width  # eight rows of three pictures


def test_captions_with_weights_of_fewer_bits(trained, scenes_root, capsys):
    command = ["caption", str(trained / "best.pt"), str(next((scenes_root / "unseen").iterdir()))]
    assert main([*command, "--lstm-weights", "int8"]) == 0
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


def test_strange_names_are_printed_on_one_line_and_come_back(trained, strange, tmp_path, capsys):
    """The pipe in the folder must not block, and a name that is not UTF-8 must not be an error."""
    results = tmp_path / "r.json"
    command = ["caption", str(trained / "best.pt"), str(strange)]
    assert main([*command, "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert sorted(line.split(": ")[0] for line in lines[:-1]) == sorted(
        str(strange / name) for name in STRANGE.values()
    )
    assert main([*command, "--json", str(results)]) == 0
    names = [os.fsencode(entry["file_name"]) for entry in json.loads(results.read_text("utf-8"))]
    assert sorted(names) == sorted(os.path.join(os.fsencode(strange), name) for name in STRANGE)


@pytest.mark.parametrize("option", ["--json", "--sheet", "--attention"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_where_results_cannot_go_is_known_before_the_work(
    option, kind, trained, scenes_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("captioning.commands.caption.load_captioner", lambda *_: pytest.fail("go"))
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("")
        path = path / "y"
    command = ["caption", str(trained / "best.pt"), str(scenes_root / "val"), option, str(path)]
    assert main(command) == 1
    assert f"captioning: cannot write {path}: " in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_second_stage_starts_from_the_first(trained, scenes_root, tmp_path, capsys):
    annotations = str(scenes_root / "annotations" / "captions_train.json")
    train = ["train", "--train", annotations, "--start", str(trained / "best.pt")]
    train += ["--output", str(tmp_path), "--self-critical", "2", "--epochs", "1"]
    assert main(train) == 0
    assert not (tmp_path / "features").exists()  # the features of the first stage are used
    first, second = load_checkpoint(trained / "best.pt"), load_checkpoint(tmp_path / "best.pt")
    assert second.vocabulary.words == first.vocabulary.words and second.cnn == first.cnn
    assert second.model.config == first.model.config
    assert second.training["config"]["self_critical"] == 2
    assert (
        second.training["config"]["learning_rate"] == preset(1, self_critical=True)["learning_rate"]
    )
    assert "reward" in second.training["history"][0]


def test_attention_trains_resumes_and_searches(scenes_root, tmp_path, capsys):
    annotations, run = scenes_root / "annotations", tmp_path / "run"
    train = ["train", str(annotations), "--output", str(run), "--cnn", "scenes_cnn"]
    train += ["--decoder", "attention", "--learning-rate", "0.01"]
    train += ["--batch-size", "48", "--hidden-size", "32", "--embed-size", "24"]
    for pair in ("warmup=5", "dropout=0", "label-smoothing=0", "ema=0"):
        train += ["--set", pair]
    assert main([*train, "--epochs", "2"]) == 0
    assert main([*train, "--epochs", "6", "--resume"]) == 0
    training = load_checkpoint(run / "last.pt").training
    assert training["config"]["batches_of"] == "pictures"
    history = training["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    best = max(history, key=lambda entry: entry["CIDEr-D"])
    assert load_checkpoint(run / "best.pt").training["history"][-1] == best
    capsys.readouterr()
    for method in ("greedy", "beam"):
        pictures = str(scenes_root / "val")
        assert main(["caption", str(run / "best.pt"), pictures, "--method", method]) == 0
        captions = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
        assert len(captions) == 12 and len(set(captions)) > 1


def test_ends_with_the_best_epoch_the_test_scores_and_what_to_do_next(
    trained, scenes_root, tmp_path, capsys
):
    annotations = scenes_root / "annotations"
    train = ["train", str(annotations), "--epochs", "2", "--start", str(trained / "best.pt")]
    train += ["--test", str(annotations / "captions_unseen.json"), "--output", str(tmp_path)]
    assert main(train) == 0
    first, *_, best, search, test, following = capsys.readouterr().out.splitlines()
    assert first.startswith("device: cpu, ")
    path = tmp_path / "best.pt"
    history = load_checkpoint(tmp_path / "last.pt").training["history"]
    entry = max(history, key=lambda e: e["CIDEr-D"])
    assert best.startswith(f"best of 2 epochs: {entry['epoch']}, CIDEr-D {entry['CIDEr-D']:.3f}, ")
    assert best.endswith(f"on --val: {path}")
    size = load_checkpoint(path).search.beam_size
    assert search.startswith(f"search chosen on --val: {size} beams, length penalty ")
    assert test.startswith("test, 12 pictures: greedy CIDEr-D ")
    assert following == f"next: captioning caption {path} PICTURE"
    # `evaluate` uses the search that training chose, so it gets the score that training printed.
    scores, unseen = str(tmp_path / "s.json"), str(annotations / "captions_unseen.json")
    assert main(["evaluate", str(path), "--references", unseen, "--json", scores]) == 0
    overall = json.loads(Path(scores).read_text())["scores"]
    assert test.endswith(f"beam CIDEr-D {overall['CIDEr-D']:.3f}, BLEU-4 {overall['BLEU-4']:.3f}")


def test_training_pictures_are_kept_unless_told_otherwise(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    """This holds for a run with --start, and for a run that resumes."""
    annotations, run = scenes_root / "annotations", tmp_path / "run"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--output", str(run)]
    val = ["--val", str(annotations / "captions_val.json")]
    # After so few steps all weights score 0, and the first of equal ones is chosen.
    monkeypatch.setattr("captioning.search.tune.NEIGHBOR_WEIGHTS", (5, 0))
    kept = lambda: load_checkpoint(run / "best.pt").neighbors
    assert main([*train, "--start", str(trained / "best.pt"), "--epochs", "1"]) == 0
    assert kept() is None  # without --val no weight is chosen
    assert main([*train, *val, "--resume", "--epochs", "2"]) == 0
    assert len(kept().captions) == 96 and load_checkpoint(run / "best.pt").search.neighbors == 5
    assert main([*train, *val, "--resume", "--no-neighbors"]) == 0
    assert kept() is None
    capsys.readouterr()
    caption = ["caption", str(run / "last.pt"), str(scenes_root / "val")]
    assert main([*caption, "--neighbors", "0"]) == 0
    assert main([*caption, "--neighbors", "1"]) == 1
    told = "--neighbors: expected a captioner that keeps its training pictures"
    assert told in capsys.readouterr().err


TRAIN = ["train", "--train", "x", "--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "none.pt", "x.png"], "x.png: no such file or folder"),
        (["caption", "none.pt"], "expected pictures to caption, or --annotations; got neither"),
        (["caption", "c.pt", "x", "--annotations", "x"], "or --annotations; got both"),
        (["caption", "x.jpg", "c.pt"], "expected a captioner, then pictures; got x.jpg first"),
        (["caption", ".", "c.pt"], "expected a captioner, then pictures; got . first"),
        (["evaluate", "none.json", "--references", "none.json"], "none.json: No such file"),
        (["evaluate", "none.pt", "--references", "none.json"], "none.json: No such file"),
        (["prepare", "none.txt", "--output", "o"], "none.txt: No such file"),
        (["train", "--output", "o"], "expected the folder that prepare wrote, or --train"),
        (["train", ".", "--output", "o"], "captions_train.json, or --train FILE; got .\n"),
        (["train", os.devnull, "--output", "o"], f"--train FILE; got {os.devnull}\n"),
        ([*TRAIN, "--decoder", "attention", "--set", "pool=2x2"], "pool: expected grid with this"),
        ([*TRAIN, "--set", "pool=grid"], "pool: expected avg or 2x2 with this decoder, got grid"),
        ([*TRAIN, "--set", "speed=2"], "--set: expected NAME=VALUE, NAME of pool, min_count,"),
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
    ],
)
def test_bad_input_gives_a_message_not_a_traceback(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    told = [line for line in capsys.readouterr().err.splitlines(True) if line[:6] != "device"]
    assert message in told[0] and len(told) == 1
    assert not [*tmp_path.iterdir()]  # a run that did not begin leaves no folder


def test_a_folder_of_pictures_may_be_called_like_a_captioner(
    trained, scenes_root, tmp_path, capsys
):
    shutil.copytree(scenes_root / "val", tmp_path / "x.pt")
    assert main(["caption", str(trained / "best.pt"), str(tmp_path / "x.pt")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_training_does_not_overwrite_a_captioner(trained, scenes_root, capsys):
    before = (trained / "last.pt").read_bytes()
    annotations = str(scenes_root / "annotations" / "captions_train.json")
    assert main(["train", "--train", annotations, "--output", str(trained)]) == 1
    assert "holds a captioner already" in capsys.readouterr().err
    assert (trained / "last.pt").read_bytes() == before


@pytest.mark.parametrize("wrong", ["--train", "--val"])
def test_bad_files_are_refused_before_a_cnn_is_loaded(
    wrong, scenes_root, tmp_path, monkeypatch, capsys
):
    (tmp_path / "cut.json").write_text('{"images": [')
    monkeypatch.setattr("captioning.training.setup.load_cnn", lambda _: pytest.fail("loaded"))
    good = scenes_root / "annotations" / "captions_train.json"
    given = {"--train": good, "--val": good, wrong: tmp_path / "cut.json"}
    words = [str(word) for pair in given.items() for word in pair]
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 1
    assert "cut.json is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["start", "resume"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--hidden-size 512", "hidden_size: expected 16, as in {path}, got 512"),
        ("--set dropout=0.1", "dropout: expected 0.4, as in {path}, got 0.1"),
        ("--set image-at=first", "image_at: expected every, as in {path}, got first"),
        ("--decoder attention", "decoder: expected lstm, as in {path}, got attention"),
        ("--cnn resnet18", "cnn: expected scenes_cnn, as in {path}, got resnet18"),
        ("--cnn-weights V1", "cnn_weights: expected DEFAULT, as in {path}, got V1"),
        ("--set pool=avg", "pool: expected 2x2, as in {path}, got avg"),
    ],
)
def test_options_that_contradict_the_captioner_to_continue_with_are_refused(
    which, option, message, trained, scenes_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("captioning.training.setup.load_cnn", lambda _: pytest.fail("loaded"))
    path = trained / ("best.pt" if which == "start" else "last.pt")
    train = ["train", "--train", str(scenes_root / "annotations" / "captions_train.json")]
    if which == "start":
        train += ["--start", str(path), "--output", str(tmp_path / "run")]
    else:
        train += ["--resume", "--output", str(trained)]
    assert main([*train, *option.split()]) == 1
    assert message.format(path=path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--start {path}", "start: expected no captioner, as in {path}, got {path}"),
        ("--train {val}", "train: expected the captions of {path}, got {val}"),
        ("--members 2", "members: expected 1, as in {path.parent}, got 2"),
    ],
)
def test_a_run_that_resumes_keeps_its_start_its_captions_and_its_number(
    option, message, trained, scenes_root, monkeypatch, capsys
):
    monkeypatch.setattr("captioning.training.setup.load_cnn", lambda _: pytest.fail("loaded"))
    names = {"path": trained / "last.pt", "val": scenes_root / "annotations" / "captions_val.json"}
    train = ["train", str(scenes_root / "annotations"), "--resume", "--output", str(trained)]
    assert main([*train, *option.format(**names).split()]) == 1
    assert message.format(**names) in capsys.readouterr().err


def test_fewer_captioners_than_the_folder_holds_are_not_resumed(trained, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        shutil.copy(trained / "last.pt", tmp_path / name)
    assert main(["train", "--train", "x", "--output", str(tmp_path), "--resume"]) == 1
    expected = f"members: expected at least 2, as in {tmp_path}, got 1"
    assert expected in capsys.readouterr().err


def test_resume_needs_no_option_again_and_refuses_another(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("last.pt", "best.pt"):
        shutil.copy(trained / name, run)
    annotations = scenes_root / "annotations"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--resume"]
    train += ["--val", str(annotations / "captions_val.json"), "--output", str(run)]
    assert main([*train, "--learning-rate", "1"]) == 1
    expected = f"learning_rate: expected 0.003, as in {run / 'last.pt'}, got 1.0"
    assert expected in capsys.readouterr().err
    assert main([*train, "--epochs", "2"]) == 0
    before, after = load_checkpoint(trained / "last.pt"), load_checkpoint(run / "last.pt")
    assert [entry["epoch"] for entry in after.training["history"]] == [1, 2]
    assert after.training["config"] == before.training["config"] | {"epochs": 2}
    assert after.model.config == before.model.config and after.cnn == before.cnn
    assert after.vocabulary.words == before.vocabulary.words
    assert not (run / "features").exists()  # the features of the first call are used
    # All options of the first call may be given again.
    again = [
        "--cnn",
        "scenes_cnn",
        "--set",
        "pool=2x2",
        "--batch-size",
        "48",
        "--hidden-size",
        "16",
    ]
    again += ["--embed-size", "16", "--set", "min-count=1", "--epochs", "2"]
    assert main([*train, *again]) == 0


# prepare ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.jpg")
    return folder


SOURCES = {
    "csv": "image,caption\n"
    + "".join(f"{i}.jpg,picture {i}, caption {k}\n" for i in range(10) for k in (0, 1)),
    "bar": "image_name| comment_number| comment\n"
    + "".join(f"{i}.jpg| {k}| picture {i}, caption {k}\n" for i in range(10) for k in (0, 1)),
}


@pytest.mark.parametrize("kind", [*SOURCES, "karpathy", "folder"])
def test_every_format_gives_the_same_captions(kind, pictures, tmp_path):
    source = tmp_path / "captions.txt"
    if kind == "karpathy":
        source = tmp_path / "dataset.json"
        images = [
            {
                "filename": f"{i}.jpg",
                "split": "restval" if i < 6 else "val" if i < 8 else "test",
                "sentences": [{"raw": f"picture {i}, caption {k}"} for k in (0, 1)],
            }
            for i in range(10)
        ]
        source.write_text(json.dumps({"images": images}))
    elif kind == "folder":
        source = pictures
        (pictures / "captions.csv").write_text(SOURCES["csv"])
    else:
        source.write_text(SOURCES[kind])
    found = read_source(source).captions
    assert found == {f"{i}.jpg": [f"picture {i}, caption {k}" for k in (0, 1)] for i in range(10)}
    output = tmp_path / "data"
    arguments = ["prepare", str(source), "--images", str(pictures), "--output", str(output)]
    assert main([*arguments, "--val", "0.2", "--test", "0.2"]) == 0
    sizes = [
        len(json.loads((output / f"captions_{s}.json").read_text())["images"])
        for s in ("train", "val", "test")
    ]
    assert sizes == [6, 2, 2]


def test_prepare_names_what_it_refuses_or_skips(pictures, tmp_path, capsys):
    (tmp_path / "c.txt").write_text(SOURCES["csv"] + "none.jpg,a dog\n1.jpg,...\n")
    (pictures / "3.jpg").write_bytes(b"broken")
    arguments = ["prepare", str(tmp_path / "c.txt"), "--images", str(pictures)]
    arguments += ["--output", str(tmp_path / "o"), "--val", "0.2", "--test", "0"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "2 x bad picture" in err and "3.jpg" in err and "none.jpg" in err
    assert not (tmp_path / "o").exists()
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "7 train, 2 val, 0 test" in capsys.readouterr().out
    from captioning.data.coco import load_coco

    assert len(load_coco(tmp_path / "o" / "captions_train.json").images) == 7
