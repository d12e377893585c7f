"""Captions of other formats to COCO files: what is odd in them is reported, nothing leaks."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.data.formats import Splits, prepare, read_source, read_split_lists
from captioning.errors import CaptioningError

NAMES = [f"{i}.jpg" for i in range(10)]


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "flickr" / "Images"
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.fixture
def run(pictures, tmp_path):
    """Runs the command on captions of the pictures."""
    source = pictures.parent / "captions.txt"
    source.write_text("image,caption\n" + "".join(f"{name},picture {name}\n" for name in NAMES))

    def call(*arguments, source=source):
        words = ["prepare", source, "--output", tmp_path / "data", *arguments]
        return main([str(word) for word in words])

    return call


def names_of(tmp_path, split):
    data = json.loads((tmp_path / "data" / f"captions_{split}.json").read_text())
    return [image["file_name"] for image in data["images"]]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            "image_name| comment_number| comment\n1.jpg| 0| A dog runs .\n",
            "1.jpg| 4   A dog runs across the grass .",
            "captions.txt, row 3: expected 3 columns: ['1.jpg', ' 4   A dog",
        ),
        ("1.jpg#0\tA dog runs .\n", "1.jpg#1 A dog", "line 2: expected name#n<TAB>caption"),
        ("1.jpg#0\tA dog runs .\n", "1.jpg\tA dog", "line 2: expected name#n<TAB>caption"),
    ],
)
def test_a_bad_row_is_reported_or_left_out(run, pictures, tmp_path, capsys, good, bad, message):
    (pictures.parent / "captions.txt").write_text(f"{good}{bad}\n{good.splitlines()[-1]}\n")
    assert run() == 1
    err = capsys.readouterr().err
    assert "1 x bad row: " in err and message in err and "--on-error skip" in err
    assert run("--on-error", "skip") == 0
    assert "skipped 1 x bad row: " in capsys.readouterr().out
    data = json.loads((tmp_path / "data" / "captions_train.json").read_text())
    assert [a["caption"] for a in data["annotations"]] == ["A dog runs ."] * 2


@pytest.mark.parametrize("dogs", [1, 40_000])
def test_a_quote_that_is_never_closed_is_an_error(tmp_path, dogs):
    rows = '1.jpg,"a' + " dog" * dogs + "\n2.jpg,a cat\n"
    (tmp_path / "captions.txt").write_text(f"image,caption\n{rows}")
    with pytest.raises(CaptioningError, match="captions.txt: a quote that is not closed"):
        read_source(tmp_path / "captions.txt")


def test_lists_may_leave_the_extension_out(run, tmp_path):
    (tmp_path / "train").write_text("1\n2.jpg\n\n")
    (tmp_path / "val").write_text("3\r\n")
    assert run("--train-list", tmp_path / "train", "--val-list", tmp_path / "val") == 0
    assert names_of(tmp_path, "train") == ["1.jpg", "2.jpg"]
    assert names_of(tmp_path, "val") == ["3.jpg"]


def test_names_with_spaces(pictures, tmp_path, run):
    (pictures / "1.jpg").rename(pictures / "my dog.jpg")
    captions = pictures.parent / "captions.txt"
    captions.write_text(captions.read_text().replace("1.jpg,", "my dog.jpg,"))
    (tmp_path / "train").write_text("my dog.jpg\n2.jpg\n")
    assert run("--train-list", tmp_path / "train") == 0
    assert sorted(names_of(tmp_path, "train")) == ["2.jpg", "my dog.jpg"]


def test_listed_names_of_no_picture_are_counted(run, tmp_path, capsys):
    (tmp_path / "train").write_text("x.jpg\n1.jpg\ny.jpg\n")
    assert run("--train-list", tmp_path / "train") == 1
    assert "2 x listed name without captions: x.jpg, y.jpg" in capsys.readouterr().err
    assert run("--train-list", tmp_path / "train", "--on-error", "skip") == 0
    assert "skipped 2 x listed name" in capsys.readouterr().out
    assert names_of(tmp_path, "train") == ["1.jpg"]


def test_what_no_list_names_is_counted_and_not_checked(run, pictures, tmp_path, capsys):
    """Flickr8k.token.txt has captions of 2258277193_586949ec62.jpg.1, which is no picture."""
    (pictures / "8.jpg").write_text("broken")
    tokens = pictures.parent / "tokens.txt"
    names = [*NAMES, "1.jpg.1"]
    tokens.write_text("".join(f"{name}#0\tA dog .\n" for name in names) + "9.jpg#1\t...\n")
    for split, listed in {"train": "1.jpg\n2.jpg\n", "val": "3.jpg\n", "test": "4.jpg\n"}.items():
        (tmp_path / split).write_text(listed)
    lists = [word for s in ("train", "val", "test") for word in (f"--{s}-list", tmp_path / s)]
    assert run(*lists, source=tokens) == 0
    told = "left out 7 x picture in no list: 0.jpg, 5.jpg, 6.jpg, 7.jpg, 8.jpg, ...\n"
    assert told in capsys.readouterr().out
    assert [names_of(tmp_path, split) for split in ("train", "val", "test")] == [
        ["1.jpg", "2.jpg"],
        ["3.jpg"],
        ["4.jpg"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9.jpg\n".encode("latin-1"), "list.txt: expected text in UTF-8"),
        (b" \n", "list.txt: expected names of pictures, one per line, got none"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(CaptioningError, match=message):
        read_split_lists({"train": tmp_path / "list.txt"})


def test_captions_beside_the_pictures_must_be_utf8(pictures):
    (pictures / "1.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CaptioningError, match="1.txt: expected text in UTF-8"):
        read_source(pictures)


def test_no_split_of_an_earlier_run_stays(run, tmp_path, capsys):
    assert run("--val", "0.2", "--test", "0.2") == 0
    capsys.readouterr()
    assert run("--val", "0", "--test", "0.2") == 0
    assert "captions_val.json of an earlier run" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "captions_test.json",
        "captions_train.json",
    ]


def test_nothing_is_written_without_a_picture_to_train_on(run, tmp_path, capsys):
    assert run() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    (tmp_path / "test").write_text("1.jpg\n")
    assert run("--test-list", tmp_path / "test") == 1
    assert "no picture is left to train on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (10, {}, (8, 1, 1)),
        (3, {}, (1, 1, 1)),
        (2, {}, (2, 0, 0)),
        (10, {"val": 0}, (9, 0, 1)),
        (10, {"test": 0}, (9, 1, 0)),
        (10, {"val": 0.3, "test": 0.2}, (5, 3, 2)),
    ],
)
def test_small_sets_are_validated_too(pictures, tmp_path, count, shares, expected):
    path = pictures / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{n},a dog\n" for n in NAMES[:count]))
    source = read_source(path)
    counts, _ = prepare(source, pictures, tmp_path / "o", Splits(**shares))
    assert tuple(counts.values()) == expected


def test_splits_too_small_to_score_are_told(run, tmp_path, capsys):
    assert run("--val", "0.1", "--test", "0") == 0
    out = capsys.readouterr().out
    assert "note: val is small: scores of under 50 pictures mean little" in out
    assert "test is small" not in out


@pytest.mark.parametrize("source", ["captions.txt", "."])
def test_the_pictures_are_found_in_a_folder_beside_the_captions(run, pictures, tmp_path, source):
    assert run(source=pictures.parent / source) == 0
    data = json.loads((tmp_path / "data" / "captions_train.json").read_text())
    assert (tmp_path / "data" / data["info"]["image_folder"]).resolve() == pictures.resolve()


def test_shares_that_splits_overrule_are_told(run, tmp_path, capsys):
    (tmp_path / "train").write_text("1.jpg\n")
    assert run("--train-list", tmp_path / "train", "--val", "0.1") == 0
    assert "--val ignored: the splits are from the lists" in capsys.readouterr().err
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": "a dog"}]} for name in NAMES
    ]
    karpathy = tmp_path / "flickr" / "dataset.json"
    karpathy.write_text(json.dumps({"images": images}))
    assert run("--val", "0.1", "--test", "0.1", source=karpathy) == 0
    assert "--val and --test ignored: " in capsys.readouterr().err
    assert run("--val", "0.1") == 0 and run(source=karpathy) == 0
    assert "ignored" not in capsys.readouterr().err


@pytest.mark.parametrize("shares", [("nan", "0"), ("0", "nan"), ("-1", "0"), ("0.5", "0.5")])
def test_shares_that_leave_nothing_are_refused(run, pictures, tmp_path, capsys, shares):
    assert run("--val", shares[0], "--test", shares[1], "--images", pictures) == 1
    assert "expected shares that leave pictures to train on, got" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": 5}, "expected text, got 5"),
        ({"filepath": ["a"]}, "expected text, got ['a']"),
        ({"split": 5}, "expected text, got 5"),
        ({"split": "x"}, "unknown splits ['x']"),
        ({"cocoid": 1.5}, "expected an integer, got 1.5"),
        ({"cocoid": [1]}, "expected an integer, got [1]"),
        ({"sentences": [{"raw": 5}]}, "expected text, got 5"),
        ({"sentences": 5}, "problem: TypeError"),
        ({"cocoid": 2}, "several pictures have the same id: [2]"),
    ],
)
def test_what_is_not_of_karpathys_format_is_named(run, pictures, tmp_path, capsys, change, message):
    first = {"filename": "1.jpg", "split": "train", "cocoid": 1, "sentences": [{"raw": "a dog"}]}
    second = first | {"filename": "2.jpg", "cocoid": 2}
    (tmp_path / "k.json").write_text(json.dumps({"images": [first | change, second]}))
    assert run("--images", pictures, source=tmp_path / "k.json") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_named_pipe_among_the_pictures_is_passed_over(run, pictures, capsys):
    for i in range(3):
        (pictures / f"{i}.txt").write_text("a dog\n")
    (pictures / "0.jpg").unlink()
    os.mkfifo(pictures / "0.jpg")
    assert run("--val", "0", "--test", "0", source=pictures) == 0
    assert "2 train, 0 val, 0 test" in capsys.readouterr().out
    assert run("--images", pictures) == 1
    assert "0.jpg: no file, but a folder, a pipe or a device" in capsys.readouterr().err
