"""The command line from pictures to scores, and its messages."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from captioning.__main__ import Help, Parser, main, module_of
from captioning.checkpoint import load_checkpoint
from captioning.commands import COMMANDS
from captioning.commands.train import config_of
from captioning.config import DROPOUT, LARGE, SELF_CRITICAL, SMALL, SMALL_SET, recipe
from captioning.prepare import read_source

TRAIN_ATTENTION = ["train", "--train", "x", "--output", "o", "--decoder", "attention"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


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
    assert "--warmup N steps (50)" in words and "falls along a cosine to 2 % (" in words


def test_a_setting_of_zero_is_a_setting():
    parser = Parser()
    module_of("train").add(parser)
    given = ["--train", "t", "--output", "o", "--label-smoothing", "0"]
    config = config_of(parser.parse_args(given), 10)
    assert SMALL.label_smoothing > 0 == config.label_smoothing
    assert config.ema == SMALL.ema


def test_without_arguments_it_introduces_itself(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS) and "begin with:  captioning demo" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command 'trian': did you mean train?"),
        (["xyz"], "no command 'xyz': there are prepare, vocab"),
        (["train"], "captioning train: the following arguments are required: --train, --output"),
        (["demo", "--epoch=x"], "argument --epochs: invalid int value: 'x'"),
        (["demo", "again"], "unrecognized arguments: again"),
        (["caption", "c.pt", "--nothing", "x.png"], "unrecognized arguments: --nothing x.png"),
        (["serve", "c.pt", "--device", "abacus"], "no device 'abacus' here: "),
    ],
)
def test_a_wrong_call_gets_a_line_or_two(arguments, message, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and len(err.splitlines()) <= 2


@pytest.fixture(scope="module")
def trained(scenes_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    annotations = scenes_root / "annotations"
    code = main(
        ["train", "--train", str(annotations / "captions_train.json")]
        + ["--val", str(annotations / "captions_val.json"), "--output", str(folder)]
        + ["--cnn", "scenes_cnn", "--pool", "2x2", "--epochs", "1", "--batch-size", "48"]
        + ["--hidden-size", "16", "--embed-size", "16", "--min-count", "1"]
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


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions_files_folders_and_globs_and_names_the_broken_one(
    trained, scenes_root, tmp_path, capsys, method
):
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    (tmp_path / "val" / "broken.png").write_text("no picture")
    first = next((scenes_root / "unseen").iterdir())
    pictures = [str(first), str(tmp_path / "val"), str(scenes_root / "unseen" / "*.png")]
    command = ["caption", str(trained / "best.pt")]
    assert main([*command, pictures[0], "--method", method, *pictures[1:]]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 24 and str(first) in out.splitlines()[0]
    assert "broken.png: not a picture" in err and "captions/s" in err


def test_attention_trains_resumes_and_searches(scenes_root, tmp_path, capsys):
    annotations, run = scenes_root / "annotations", tmp_path / "run"
    train = ["train", "--train", str(annotations / "captions_train.json"), "--output", str(run)]
    train += ["--val", str(annotations / "captions_val.json"), "--cnn", "scenes_cnn"]
    train += ["--decoder", "attention", "--learning-rate", "0.01"]
    train += ["--batch-size", "48", "--hidden-size", "32", "--embed-size", "24", "--warmup", "5"]
    train += ["--dropout", "0", "--label-smoothing", "0", "--ema", "0"]
    assert main([*train, "--epochs", "2"]) == 0
    assert main([*train, "--epochs", "6", "--resume"]) == 0
    history = load_checkpoint(run / "last.pt").training["history"]
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
    assert second.training["config"]["learning_rate"] == SELF_CRITICAL.learning_rate
    assert "reward" in second.training["history"][0]


def test_the_size_of_the_set_decides_what_is_not_given(trained):
    found = load_checkpoint(trained / "best.pt")
    expected = replace(SMALL, epochs=1, batch_size=48)
    assert found.training["config"] == asdict(expected)
    assert found.model.config.dropout == DROPOUT["small"]
    assert recipe(SMALL_SET) == LARGE and recipe(SMALL_SET - 1) == recipe(6000) == SMALL
    assert [recipe(n).epochs for n in (1, 1000, 2000)] == [60, 36, 18]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "none.pt", "x.png"], "x.png: no picture there"),
        (["caption", "none.pt"], "give either pictures or --annotations"),
        (["evaluate", "none.json", "--references", "none.json"], "cannot read none.json"),
        (["vocab", "none.json", "--output", "v.json"], "cannot read none.json"),
        (["prepare", "none.txt", "--output", "o"], "cannot read none.txt"),
        (
            [*TRAIN_ATTENTION, "--pool", "2x2"],
            "--decoder attention and --pool grid need each other",
        ),
        ([*TRAIN_ATTENTION, "--num-layers", "2"], "has one layer, got 2"),
        (["train", "--train", "x", "--output", "o", "--self-critical", "1"], "at least 2 captions"),
        (["train", "--train", "x", "--output", "o", "--start", "none.pt"], "cannot read none.pt"),
        (["demo", "--output", "/dev/null/x"], "/dev/null/x"),
        (["demo", "--epochs", "0", "--output", "{tmp}"], "epochs: expected >= 1"),
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


@pytest.mark.parametrize("wrong", ["--train", "--val", "--vocab"])
def test_bad_files_are_refused_before_a_cnn_is_loaded(
    wrong, scenes_root, tmp_path, monkeypatch, capsys
):
    (tmp_path / "cut.json").write_text('{"images": [')
    monkeypatch.setattr("captioning.commands.train.load_cnn_of", lambda _: pytest.fail("loaded"))
    good = scenes_root / "annotations" / "captions_train.json"
    given = {"--train": good, "--val": good, wrong: tmp_path / "cut.json"}
    words = [str(word) for pair in given.items() for word in pair]
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 1
    assert "cut.json is not valid JSON" in capsys.readouterr().err


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
    from captioning.datasets import load_coco

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
