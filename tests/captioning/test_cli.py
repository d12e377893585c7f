"""The command line from pictures to scores, and its messages."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastlstm
from captioning.__main__ import Help, Parser, main, module_of
from captioning.cnn.features import Extraction
from captioning.cnn.frozen import CNNChoice
from captioning.commands import COMMANDS
from captioning.commands.train import request_of
from captioning.config import (
    LARGE,
    SELF_CRITICAL,
    SMALL,
    SMALL_SET,
    ModelConfig,
    TrainConfig,
    option,
    recipe,
    suited,
)
from captioning.data.formats import FORMATS, read_source
from captioning.model.checkpoint import load_checkpoint
from captioning.model.neighbors import Neighbors
from captioning.training.request import TrainingRequest

TRAIN_ATTENTION = ["train", "--train", "x", "--output", "o", "--decoder", "attention"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"captioning {fastlstm.__version__}\n"


@pytest.mark.parametrize("columns", [60, 120])
def test_the_formats_of_prepare_fit_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("formats, recognized by the content:") + 1 :]
    assert max(map(len, lines)) <= columns and max(map(len, table)) > columns - 20
    assert [line.split()[0] for line in table if line[2] != " "] == list(FORMATS)
    assert "`" not in "".join(lines) and "==" not in "".join(lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_is_explained(command):
    parser = Parser(formatter_class=Help)
    module_of(command).add(parser)
    for action in parser._actions:
        text = action.help % {"default": action.default}  # as argparse does
        assert len(text) > 4 and "`" not in text, action.option_strings


def test_settings_of_training_are_told_with_their_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert (
        "--warmup N steps over which the learning rate rises (50)" in words
        and "falls along a cosine to 2 % (" in words
    )


def test_the_options_of_training_are_explained_without_docstrings():
    command = [sys.executable, "-OO", "-m", "captioning", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words = " ".join(done.stdout.split())
    for kind in (TrainingRequest, CNNChoice, Extraction, ModelConfig, TrainConfig):
        explained = [entry for entry in fields(kind) if "help" in entry.metadata]
        assert explained
        for entry in explained:
            assert f"{option(entry.name)} " in words, entry.name
            assert " ".join(entry.metadata["help"].split()) in words, entry.name


def test_a_setting_of_zero_is_a_setting():
    parser = Parser()
    module_of("train").add(parser)
    given = ["--train", "t", "--output", "o", "--label-smoothing", "0"]
    config = request_of(parser.parse_args(given)).config(10, None)
    assert SMALL.label_smoothing > 0 == config.label_smoothing
    assert config.ema == SMALL.ema


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
        (["train"], "captioning train: the following arguments are required: --train, --output"),
        (["demo", "--epoch=x"], "argument --epochs: invalid int value: 'x'"),
        (["demo", "again"], "captioning demo: unrecognized arguments: again"),
        (["caption", "c.pt", "x.png", "--nothing"], "caption: unrecognized arguments: --nothing\n"),
        (["features", "c", "--features", "o", "--nothing"], "(captioning features --help says"),
        (["--nothing"], "captioning: unrecognized arguments: --nothing"),
        (["serve", "c.pt", "--device", "abacus"], "no device 'abacus' here: "),
        (["serve", "c.pt", "--max-megabytes", "x"], "invalid float value: 'x'"),
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
        ("filelock", "caption c.pt p.jpg --json r.json"),
        ("nltk", "features {val} --features f"),  # read when it is used
    ],
)
def test_a_library_that_is_missing_is_named(name, command, scenes_root):
    """As where fastlstm is installed without what its captioner needs."""
    words = command.format(val=scenes_root / "annotations" / "captions_val.json").split()
    code = (
        f"import sys; sys.modules[{name!r}] = None; from captioning.__main__ import main; "
        f"sys.exit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == f"captioning: needs {name}: pip install ./captioning\n"
    assert done.returncode == 1 and not done.stdout


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_waits_for_the_imports(monkeypatch, capsys):
    """In the middle of them, torch swallowed it and left half of numpy."""
    imported = []

    def slow(name):
        signal.raise_signal(signal.SIGINT)
        imported.append(name)

    monkeypatch.setattr("importlib.import_module", slow)
    assert main(["demo"]) == 130
    assert imported == ["captioning.commands.demo"]
    assert capsys.readouterr().err == "\ncaptioning: stopped\n"


def test_a_missing_module_of_our_own_is_a_traceback(monkeypatch):
    monkeypatch.setitem(sys.modules, "captioning.commands.demo", None)
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


@pytest.fixture(scope="module")
def trained(scenes_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    annotations = scenes_root / "annotations"
    code = main(
        [
            *("train", "--train", str(annotations / "captions_train.json")),
            *("--val", str(annotations / "captions_val.json"), "--output", str(folder)),
            *("--cnn", "scenes_cnn", "--pool", "2x2", "--epochs", "1", "--batch-size", "48"),
            *("--hidden-size", "16", "--embed-size", "16", "--min-count", "1"),
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
    extra = ["--json", str(scores), "--checkpoint", str(trained / "best.pt")]
    assert main(arguments + extra) == 0
    assert "BLEU-4" in capsys.readouterr().out and "<svg" in report.read_text()
    assert set(json.loads(scores.read_text())) == {"scores", "notes", "per_image"}


def test_pictures_that_are_missing_are_scored_and_named(trained, scenes_root, tmp_path, capsys):
    """Their references and captions are in the files, whether their pictures are there or not."""
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


def test_a_report_is_written_without_any_picture(scenes_root, tmp_path, capsys):
    val, results, report = tmp_path / "val.json", tmp_path / "r.json", tmp_path / "report.html"
    data = json.loads((scenes_root / "annotations" / "captions_val.json").read_text())
    val.write_text(json.dumps(data | {"info": {"image_folder": "nowhere"}}))
    results.write_text(
        json.dumps([{"image_id": i["id"], "caption": "a dog"} for i in data["images"]])
    )
    command = ["evaluate", str(results), "--references", str(val), "--report", str(report)]
    none = str(tmp_path / "none")
    assert main([*command, "--images", none]) == 1
    assert f"images: {none} is not a folder" in capsys.readouterr().err
    for extra in ([], ["--images", str(tmp_path)]):
        assert main([*command, *extra]) == 0
        text = report.read_text()
        assert text.count("<figure>") == text.count("png: no such file") == 8 + 8 + 8
        assert "<h2>r.json</h2>" in text
        report.unlink()


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
        if written[1:]:  # the second time nothing is encoded
            monkeypatch.setattr("captioning.data.images.load_image", lambda *_: pytest.fail("read"))
        results = tmp_path / "r.json"
        assert main([*command, "--json", str(results), *extra]) == 1
        written.append(json.loads(results.read_text()))
        err = capsys.readouterr().err
        assert broken.name in err and "11 pictures, " in err and "; 1 failed" in err
    assert written[0] == written[1] == written[2] and len(written[0]) == 11
    assert main([*command[:2], str(folder), "--features", str(tmp_path / "f")]) == 1
    assert "--features: expected --annotations" in capsys.readouterr().err


def test_results_on_a_full_disk_leave_the_old_ones(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    val, results = str(scenes_root / "annotations" / "captions_val.json"), tmp_path / "r.json"
    results.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    command = ["caption", str(trained / "best.pt"), "--annotations", val]
    assert main([*command, "--json", str(results)]) == 1
    assert f"cannot write {results}: No space left on device" in capsys.readouterr().err
    assert results.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_training_leaves_broken_pictures_out(scenes_root, tmp_path, capsys):
    """A corrupt picture in train and in val, from pictures to a captioner."""
    shutil.copytree(scenes_root, tmp_path / "scenes")
    broken = [sorted((tmp_path / "scenes" / split).iterdir())[5] for split in ("train", "val")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    annotations = tmp_path / "scenes" / "annotations"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--cnn", "scenes_cnn"]
    train += ["--val", str(annotations / "captions_val.json"), "--output", str(tmp_path / "run")]
    train += ["--epochs", "1", "--hidden-size", "16", "--embed-size", "16", "--min-count", "1"]
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
        assert image.height > 2 * image.width  # eight rows of three


def test_captions_with_weights_of_fewer_bits(trained, scenes_root, capsys):
    command = ["caption", str(trained / "best.pt"), str(next((scenes_root / "unseen").iterdir()))]
    assert main([*command, "--weights", "int8"]) == 0
    assert re.fullmatch(r"1 picture, [\d.]+ a second\n", capsys.readouterr().err)
    assert main([*command, "--weights", "int8", "--lstm", "torch"]) == 1
    assert "--weights int8: expected --lstm fastlstm" in capsys.readouterr().err


STRANGE = {
    b"new\nline.png": r"new\nline.png",
    b"\x1b[31mred.png": r"\x1b[31mred.png",
    b"caf\xe9.png": r"caf\xe9.png",
    "café\u202e.png".encode(): r"café\u202e.png",
}


@pytest.fixture
def strange(scenes_root, tmp_path) -> Path:
    """A folder of pictures with strange names, and of what is called a picture but is no file."""
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
    """A pipe was waited for; a name that is not UTF-8 cost the captions of all."""
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


def test_strange_names_go_through_everything(trained, strange, tmp_path, capsys):
    """Captions beside the pictures, to COCO files, features, training, scores and a report."""
    for name in STRANGE:
        path = Path(os.path.join(os.fsdecode(strange), os.fsdecode(name)))
        path.with_suffix(".txt").write_text("a dog\na cat\n")
    data = tmp_path / os.fsdecode(b"d\xe9")
    assert main(["prepare", str(strange), "--output", str(data), "--val", "0", "--test", "0"]) == 0
    train = str(data / "captions_train.json")
    assert len(json.loads(Path(train).read_text("utf-8"))["images"]) == len(STRANGE)
    sizes = "--cnn scenes_cnn --epochs 1 --hidden-size 8 --embed-size 8 --min-count 1".split()
    run = tmp_path / os.fsdecode(b"run\n\xe9")
    assert main(["train", "--train", train, "--output", str(run), *sizes]) == 0
    best, results, report = run / "best.pt", run / "r.json", run / "report.html"
    caption = ["caption", str(best), "--annotations", train, "--json", str(results)]
    assert main([*caption, "--features", str(run / "features")]) == 0
    evaluate = ["evaluate", str(results), "--references", train, "--report", str(report)]
    assert main([*evaluate, "--checkpoint", str(best)]) == 0
    assert report.read_text("utf-8").count("<figure>") == 3 * len(STRANGE)
    out, err = capsys.readouterr()
    assert not any(0xD800 <= ord(c) <= 0xDFFF for c in out + err) and "run\n\udce9" not in out


def test_broken_pictures_of_strange_names_are_told_on_one_line(trained, strange, capsys):
    for path in strange.iterdir():
        if path.is_file():
            path.write_text("no picture")
    assert main(["caption", str(trained / "best.pt"), str(strange)]) == 1
    err = capsys.readouterr().err.split("\n")
    assert sorted(line.split(": ")[0] for line in err[:-2]) == sorted(
        str(strange / name) for name in STRANGE.values()
    )


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


def test_a_sheet_of_too_many_is_refused_before_the_work(trained, scenes_root, tmp_path, capsys):
    picture = next((scenes_root / "val").iterdir())
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(301):
        (folder / f"{i}.png").symlink_to(picture)
    command = ["caption", str(trained / "best.pt"), str(folder), "--sheet", str(tmp_path / "s.png")]
    assert main(command) == 1
    assert "--sheet: expected at most 300 pictures, got 301" in capsys.readouterr().err


def test_attention_trains_resumes_and_searches(scenes_root, tmp_path, capsys):
    annotations, run = scenes_root / "annotations", tmp_path / "run"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--output", str(run)]
    train += ["--val", str(annotations / "captions_val.json"), "--cnn", "scenes_cnn"]
    train += ["--decoder", "attention", "--learning-rate", "0.01"]
    train += ["--batch-size", "48", "--hidden-size", "32", "--embed-size", "24", "--warmup", "5"]
    train += ["--dropout", "0", "--label-smoothing", "0", "--ema", "0"]
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
    train = ["train", "--train", str(annotations / "captions_train.json"), "--epochs", "2"]
    train += ["--val", str(annotations / "captions_val.json"), "--start", str(trained / "best.pt")]
    train += ["--test", str(annotations / "captions_unseen.json"), "--output", str(tmp_path)]
    assert main(train) == 0
    *_, best, beams, test, following = capsys.readouterr().out.splitlines()
    path = tmp_path / "best.pt"
    entry = max(
        load_checkpoint(tmp_path / "last.pt").training["history"], key=lambda e: e["CIDEr-D"]
    )
    assert best.startswith(f"best of 2 epochs: {entry['epoch']}, CIDEr-D {entry['CIDEr-D']:.3f}, ")
    assert best.endswith(f"on --val: {path}")
    size = load_checkpoint(path).model.beam.beam_size
    assert beams.startswith("beam search on --val: CIDEr-D ")
    assert f", {size} beams, length penalty " in beams and f"; beam of {size} CIDEr-D " in test
    assert test.startswith("test, 12 pictures: greedy CIDEr-D ")
    assert following == f"next: python -m captioning caption {path} PICTURE --method beam"

    results, scores = str(tmp_path / "r.json"), str(tmp_path / "s.json")
    unseen = str(annotations / "captions_unseen.json")
    assert main(["caption", str(path), "--annotations", unseen, "--json", results]) == 0
    assert main(["evaluate", results, "--references", unseen, "--json", scores]) == 0
    overall = json.loads(Path(scores).read_text())["scores"]
    assert f"greedy CIDEr-D {overall['CIDEr-D']:.3f}, BLEU-4 {overall['BLEU-4']:.3f};" in test


def test_a_second_stage_starts_from_the_first(trained, scenes_root, tmp_path, capsys):
    annotations = str(scenes_root / "annotations" / "captions_train.json")
    train = ["train", "--train", annotations, "--start", str(trained / "best.pt")]
    train += ["--output", str(tmp_path), "--self-critical", "2", "--epochs", "1"]
    assert main(train) == 0
    assert not (tmp_path / "features").exists()  # those of the first stage serve
    first, second = load_checkpoint(trained / "best.pt"), load_checkpoint(tmp_path / "best.pt")
    assert second.vocabulary.words == first.vocabulary.words and second.cnn == first.cnn
    assert second.model.config == first.model.config
    assert second.training["config"]["self_critical"] == 2
    assert second.training["config"]["learning_rate"] == recipe(1, True).learning_rate
    assert "reward" in second.training["history"][0]


def test_training_pictures_are_kept_unless_told_otherwise(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    """Whatever the second stage starts with, and when it resumes too."""
    annotations, first, run = scenes_root / "annotations", tmp_path / "first.pt", tmp_path / "run"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--output", str(run)]
    val = ["--val", str(annotations / "captions_val.json")]
    # The first of the best is taken, and all score 0 after so few steps.
    monkeypatch.setattr("captioning.training.pipeline.NEIGHBOR_WEIGHTS", (5, 0))

    def kept() -> Neighbors | None:
        return load_checkpoint(run / "best.pt").model.neighbors

    start = load_checkpoint(trained / "best.pt")
    size = start.model.config.feature_size
    start.model.neighbors = Neighbors(torch.zeros(size), None, torch.ones(1, size), [[[5, 2]]], 3.0)
    start.save(first)
    # Nothing chooses a weight, and those of `first` may be of other pictures.
    assert main([*train, "--start", str(first), "--epochs", "1"]) == 0
    assert kept() is None
    assert main([*train, *val, "--resume", "--epochs", "2"]) == 0
    assert kept().weight == 5 and len(kept().captions) == 96
    assert main([*train, *val, "--resume", "--no-neighbors"]) == 0
    assert kept() is None
    (run / "best.pt").unlink()
    assert main([*train, *val, "--resume"]) == 0
    capsys.readouterr()
    caption = ["caption", str(run / "last.pt"), str(scenes_root / "val"), "--method", "beam"]
    assert main([*caption, "--neighbors", "0"]) == 0
    assert main([*caption, "--neighbors", "1"]) == 1
    assert "--neighbors: expected a captioner that keeps its training pictures" in (
        capsys.readouterr().err
    )


def test_the_size_of_the_set_decides_what_is_not_given(trained):
    found = load_checkpoint(trained / "best.pt")
    expected = replace(SMALL, epochs=1, batch_size=48)
    assert found.training["config"] == asdict(expected)
    kind = type(found.model.config)
    of_few, of_many = suited(kind, SMALL_SET - 1), suited(kind, SMALL_SET)
    assert asdict(found.model.config).items() >= of_few.items()
    assert of_few["image_at"] == "every" and of_many["image_at"] == "first"
    assert recipe(SMALL_SET) == LARGE and recipe(SMALL_SET - 1) == recipe(6000) == SMALL
    assert [recipe(n).epochs for n in (1, 1000, 2000)] == [60, 36, 18]
    of_pictures = recipe(6000, batches_of="pictures")
    assert of_pictures == replace(SMALL, epochs=10, batches_of="pictures")
    assert recipe(6000, True, "pictures").epochs == 6
    assert recipe(SMALL_SET, True) == SELF_CRITICAL and recipe(6000, True).epochs == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "none.pt", "x.png"], "x.png: no such file or folder"),
        (["caption", "none.pt"], "give either pictures or --annotations"),
        (["evaluate", "none.json", "--references", "none.json"], "cannot read none.json"),
        (["features", "none.json", "--features", "f"], "cannot read none.json"),
        (["prepare", "none.txt", "--output", "o"], "cannot read none.txt"),
        (
            [*TRAIN_ATTENTION, "--pool", "2x2"],
            "--pool: expected grid with --decoder attention, got 2x2",
        ),
        (
            ["train", "--train", "x", "--output", "o", "--pool", "grid"],
            "--pool: expected avg or 2x2 with --decoder lstm, got grid",
        ),
        (
            [*TRAIN_ATTENTION, "--num-layers", "2"],
            "model: expected feature_size, vocab_size, embed_size, hidden_size, ",
        ),
        (["train", "--train", "x", "--output", "o", "--self-critical", "1"], "at least 2 captions"),
        (["train", "--train", "x", "--output", "o", "--start", "none.pt"], "cannot read none.pt"),
        (["demo", "--output", "/dev/null/x"], "/dev/null/x"),
        (["serve", "c.pt", "--port", "65536"], "port: expected <= 65,535, got 65536"),
        (["serve", "c.pt", "--port=-1"], "port: expected >= 1, got -1"),
        (["serve", "c.pt", "--max-megabytes", "0"], "max_megabytes: expected > 0, got 0.0"),
        (["serve", "c.pt", "--max-megapixels", "0"], "max_megapixels: expected > 0, got 0.0"),
        (["serve", "c.pt", "--max-megabytes", "nan"], "max_megabytes: expected > 0, got nan"),
    ],
)
def test_bad_input_gives_a_message_not_a_traceback(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(tmp=tmp_path) for a in arguments]) == 1
    assert message in capsys.readouterr().err


def test_training_does_not_overwrite_a_captioner(trained, scenes_root, capsys):
    before = (trained / "last.pt").read_bytes()
    annotations = str(scenes_root / "annotations" / "captions_train.json")
    assert main(["train", "--train", annotations, "--output", str(trained)]) == 1
    assert "holds a captioner already" in capsys.readouterr().err
    assert (trained / "last.pt").read_bytes() == before


def test_training_refuses_a_missing_picture(scenes_root, tmp_path, capsys):
    shutil.copytree(scenes_root, tmp_path / "scenes")
    (missing := sorted((tmp_path / "scenes" / "train").iterdir())[5]).unlink()
    annotations = tmp_path / "scenes" / "annotations" / "captions_train.json"
    assert main(["train", "--train", str(annotations), "--output", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "\n1 x missing picture: " in err and f"{missing.name}\n(--on-error skip leaves" in err
    assert "skipped" not in err


@pytest.mark.parametrize("wrong", ["--train", "--val"])
def test_bad_files_are_refused_before_a_cnn_is_loaded(
    wrong, scenes_root, tmp_path, monkeypatch, capsys
):
    (tmp_path / "cut.json").write_text('{"images": [')
    monkeypatch.setattr("captioning.cnn.frozen.load_cnn", lambda *_: pytest.fail("loaded"))
    good = scenes_root / "annotations" / "captions_train.json"
    given = {"--train": good, "--val": good, wrong: tmp_path / "cut.json"}
    words = [str(word) for pair in given.items() for word in pair]
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 1
    assert "cut.json is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["image,caption\n1.jpg,a dog\n", '{"images": []}'])
def test_captions_of_another_format_are_to_be_prepared(content, tmp_path, capsys):
    (tmp_path / "captions").write_text(content)
    for command in ("train --train {} --output o", "features {} --features f"):
        assert main(command.format(tmp_path / "captions").split()) == 1
        assert "; captioning prepare makes COCO captions files of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("train", "--dropout 1.5", "dropout: expected < 1, got 1.5"),
        ("train", "--dropout nan", "dropout: expected >= 0, got nan"),
        ("train", "--hidden-size 0", "hidden_size: expected >= 1, got 0"),
        ("train", "--embed-size -3", "embed_size: expected >= 1, got -3"),
        ("train", "--num-layers 0", "num_layers: expected >= 1, got 0"),
        ("train", "--max-seq-length 0", "max_seq_length: expected >= 1, got 0"),
        ("train", "--learning-rate -1", "learning_rate: expected > 0, got -1.0"),
        ("train", "--learning-rate inf", "learning_rate: expected < inf, got inf"),
        ("train", "--clip-norm -1", "clip_norm: expected >= 0, got -1.0"),
        ("train", "--warmup -1", "warmup: expected >= 0, got -1"),
        ("train", "--workers -1", "workers: expected >= 0, got -1"),
        ("train", f"--epochs {2**31}", "epochs: expected < 2,147,483,648, got 2147483648"),
        ("train", "--members 0", "members: expected >= 1, got 0"),
        ("train", "--min-count 0", "min_count: expected >= 1, got 0"),
        ("demo", "--epochs 0", "epochs: expected >= 1, got 0"),
        ("caption", "--max-seq-length -3", "max_seq_length: expected >= 1, got -3"),
        ("caption", "--beam-size 3", "--beam-size: expected --method beam as well, got greedy"),
        ("caption", "--length-penalty 1", "--length-penalty: expected --method beam as well"),
        ("caption", "--neighbors 1", "--neighbors: expected --method beam as well, got greedy"),
        ("caption", "--method beam --neighbors -1", "neighbors: expected >= 0, got -1"),
        ("caption", "--temperature 5", "--temperature: expected --method sample as well"),
        ("caption", "--seed 5 --method beam", "--seed: expected --method sample as well"),
        ("caption", "--method beam --beam-size 0", "beam_size: expected >= 1, got 0"),
        ("caption", "--method beam --length-penalty nan", "length_penalty: expected >= 0, got nan"),
        ("caption", "--method sample --temperature 0", "temperature: expected > 0, got 0.0"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_computed(
    command, option, message, trained, scenes_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("captioning.cnn.frozen.load_cnn", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("captioning.model.checkpoint.load_cnn", lambda _: pytest.fail("loaded"))
    annotations = str(scenes_root / "annotations" / "captions_val.json")
    given = {
        "train": ["--train", annotations, "--output", str(tmp_path / "run")],
        "demo": ["--output", str(tmp_path / "run")],
        "caption": [str(trained / "best.pt"), "--annotations", annotations],
    }[command]
    try:
        code = main([command, *given, *option.split()])
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["start", "resume"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--hidden-size 512", "--hidden-size: expected 16, as in {path}, got 512"),
        ("--dropout 0.1", "--dropout: expected 0.4, as in {path}, got 0.1"),
        ("--image-at first", "--image-at: expected every, as in {path}, got first"),
        ("--decoder attention", "--decoder: expected lstm, as in {path}, got attention"),
        ("--cnn resnet18", "--cnn: expected scenes_cnn, as in {path}, got resnet18"),
        ("--weights V1", "--weights: expected DEFAULT, as in {path}, got V1"),
        ("--pool avg", "--pool: expected 2x2, as in {path}, got avg"),
        ("--min-count 60", "--min-count 60: expected the {words} words of {path}, got "),
    ],
)
def test_what_contradicts_the_captioner_to_go_on_with_is_refused(
    which, option, message, trained, scenes_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("captioning.model.checkpoint.load_cnn", lambda _: pytest.fail("loaded"))
    path = trained / ("best.pt" if which == "start" else "last.pt")
    words = len(load_checkpoint(path).vocabulary)
    train = ["train", "--train", str(scenes_root / "annotations" / "captions_train.json")]
    if which == "start":
        train += ["--start", str(path), "--output", str(tmp_path / "run")]
    else:
        train += ["--resume", "--output", str(trained)]
    assert main([*train, *option.split()]) == 1
    assert message.format(path=path, words=words) in capsys.readouterr().err


def test_resume_needs_no_option_again_and_refuses_another(
    trained, scenes_root, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "last.pt", run)
    data = load_checkpoint(run / "last.pt")
    data.training["features"] = os.path.relpath(trained / "features", run)
    data.save(run / "last.pt")
    annotations = scenes_root / "annotations"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--resume"]
    train += ["--val", str(annotations / "captions_val.json"), "--output", str(run)]
    assert main([*train, "--learning-rate", "1"]) == 1
    expected = f"--learning-rate: expected {SMALL.learning_rate}, as in {run / 'last.pt'}, got 1.0"
    assert expected in capsys.readouterr().err
    assert main([*train, "--epochs", "2"]) == 0
    before, after = load_checkpoint(trained / "last.pt"), load_checkpoint(run / "last.pt")
    assert [entry["epoch"] for entry in after.training["history"]] == [1, 2]
    assert after.training["config"] == before.training["config"] | {"epochs": 2}
    assert after.model.config == before.model.config and after.cnn == before.cnn
    assert after.vocabulary.words == before.vocabulary.words
    assert not (run / "features").exists()  # those of before serve
    # The same call again with all that was given at first.
    again = ["--cnn", "scenes_cnn", "--pool", "2x2", "--batch-size", "48", "--hidden-size", "16"]
    again += ["--embed-size", "16", "--min-count", "1", "--weights", "DEFAULT", "--epochs", "2"]
    assert main([*train, *again]) == 0


def test_a_second_stage_resumes_without_its_start(trained, scenes_root, tmp_path, capsys):
    annotations = str(scenes_root / "annotations" / "captions_train.json")
    train = ["train", "--train", annotations, "--output", str(tmp_path)]
    stage = ["--start", str(trained / "best.pt"), "--self-critical", "2", "--epochs", "1"]
    assert main([*train, *stage]) == 0
    assert main([*train, "--resume", "--self-critical", "3"]) == 1
    assert "--self-critical: expected 2, as in " in capsys.readouterr().err
    assert main([*train, "--resume", "--epochs", "2"]) == 0
    assert not (tmp_path / "features").exists()
    history = load_checkpoint(tmp_path / "last.pt").training["history"]
    assert [set(entry) >= {"reward"} for entry in history] == [True, True]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"image_id": 97, "caption": "a"}, {"image_id": 97, "caption": "b"}], "two captions"),
        ([{"image_id": 5, "caption": "a"}], "1 results are of pictures that"),
        ([{"image_id": 97}], "expected {"),
        ({}, "expected a list"),
    ],
)
def test_bad_results_are_refused(results, message, scenes_root, tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps(results))
    val = str(scenes_root / "annotations" / "captions_val.json")
    assert main(["evaluate", str(tmp_path / "r.json"), "--references", val]) == 1
    assert message in capsys.readouterr().err


# prepare ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.jpg")
    return folder


SOURCES = {
    "flickr": "".join(
        f"{i}.jpg#{k}\tpicture {i}, caption {k}\n" for i in range(10) for k in (0, 1)
    ),
    "csv": "image,caption\n"
    + "".join(f"{i}.jpg,picture {i}, caption {k}\n" for i in range(10) for k in (0, 1)),
    "bar": "image_name| comment_number| comment\n"
    + "".join(f"{i}.jpg| {k}| picture {i}, caption {k}\n" for i in range(10) for k in (0, 1)),
}


@pytest.mark.parametrize("kind", [*SOURCES, "karpathy", "sidecar"])
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
    elif kind == "sidecar":
        source = pictures
        for i in range(10):
            (pictures / f"{i}.txt").write_text(f"picture {i}, caption 0\npicture {i}, caption 1\n")
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
    from captioning.data.datasets import load_coco

    assert len(load_coco(tmp_path / "o" / "captions_train.json").images) == 7


def test_split_lists_decide(pictures, tmp_path):
    (tmp_path / "c.txt").write_text(SOURCES["flickr"])
    (tmp_path / "train").write_text("1.jpg\n2.jpg\n")
    (tmp_path / "test").write_text("5.jpg\n")
    arguments = ["prepare", str(tmp_path / "c.txt"), "--images", str(pictures)]
    arguments += ["--train-list", str(tmp_path / "train"), "--test-list", str(tmp_path / "test")]
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 0
    data = json.loads((tmp_path / "o" / "captions_train.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["1.jpg", "2.jpg"]
    assert not (tmp_path / "o" / "captions_val.json").exists()
