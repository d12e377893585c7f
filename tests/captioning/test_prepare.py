"""`captioning prepare`: bad rows, splits, the folder of the pictures, damaged sources."""

import json

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.data.convert import Shares, prepare, read_source
from captioning.errors import CaptioningError

NAMES = [f"{i}.jpg" for i in range(10)]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "flickr" / "Images"
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.fixture
def run(pictures, tmp_path):
    """A function that runs the command on captions of the pictures, with more arguments."""
    source = pictures.parent / "captions.txt"
    source.write_text("image,caption\n" + "".join(f"{name},picture {name}\n" for name in NAMES))
    call = lambda *words: main([str(word) for word in words])
    output = "--output", tmp_path / "data"
    return lambda *more, source=source: call("prepare", source, *output, *more)


def names_of(tmp_path, split):
    data = json.loads((tmp_path / "data" / f"captions_{split}.json").read_text())
    return [image["file_name"] for image in data["images"]]


@pytest.mark.parametrize("good, bad, message", [
    ("image_name| comment_number| comment\n1.jpg| 0| A dog runs .\n", "1.jpg| 4   A dog runs",
     "captions.txt, row 3: expected 3 columns: ['1.jpg', ' 4   A dog"),
    ("image,caption\n1.jpg,A dog runs .\n", "2.jpg", "captions.txt, row 3: expected 2 columns"),
])  # fmt: skip
def test_a_bad_row_is_reported_or_left_out(run, pictures, tmp_path, capsys, good, bad, message):
    (pictures.parent / "captions.txt").write_text(f"{good}{bad}\n{good.splitlines()[-1]}\n")
    assert run() == 1
    err = capsys.readouterr().err
    assert "1 x bad row: " in err and message in err and "--on-error skip" in err
    assert run("--on-error", "skip") == 0 and "skipped 1 x bad row: " in capsys.readouterr().out
    data = json.loads((tmp_path / "data" / "captions_train.json").read_text())
    assert [a["caption"] for a in data["annotations"]] == ["A dog runs ."] * 2


@pytest.mark.parametrize("header, dogs, message", [
    ("image,caption", 1, "a quote that is not closed"),
    ("image,caption", 40_000, "a quote that is not closed"),
    ("image,x", 1, "expected a first line with the columns image and caption, got 'image,x'$"),
    ("x,caption", 1, "expected a first line with the columns image and caption, got 'x,caption'$"),
])  # fmt: skip
def test_damaged_tables_are_refused(tmp_path, header, dogs, message):
    rows = '1.jpg,"a' + " dog" * dogs + "\n2.jpg,a cat\n"
    (tmp_path / "captions.txt").write_text(f"{header}\n{rows}")
    with pytest.raises(CaptioningError, match=f"captions.txt: {message}"):
        read_source(tmp_path / "captions.txt")


def test_a_line_break_within_quotes_separates_words(tmp_path):
    (tmp_path / "captions.txt").write_text('image,caption\n1.jpg,"a dog\nruns"\n2.jpg,a\u2028cat\n')
    captions = read_source(tmp_path / "captions.txt").captions
    assert captions == {"1.jpg": ["a dog\nruns"], "2.jpg": ["a\u2028cat"]}


def test_no_split_of_an_earlier_run_stays(run, tmp_path, capsys):
    assert run("--val", "0.2", "--test", "0.2") == 0
    capsys.readouterr()
    assert run("--val", "0", "--test", "0.2") == 0
    assert "captions_val.json of an earlier run" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"captions_test.json", "captions_train.json"}


def test_nothing_is_written_without_a_picture_to_train_on(run, tmp_path, capsys):
    assert run() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    for path in (tmp_path / "flickr" / "Images").iterdir():
        path.write_text("broken")
    assert run("--on-error", "skip") == 1
    assert "no picture is left to train on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


@pytest.mark.parametrize("count, shares, expected", [
    (10, {}, (8, 1, 1)),
    (3, {}, (1, 1, 1)),
    (2, {}, (2, 0, 0)),
    (10, {"val": 0}, (9, 0, 1)),
    (10, {"test": 0}, (9, 1, 0)),
    (10, {"val": 0.3, "test": 0.2}, (5, 3, 2)),
])  # fmt: skip
def test_small_sets_are_validated_too(pictures, tmp_path, count, shares, expected):
    path = pictures / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{n},a dog\n" for n in NAMES[:count]))
    source = read_source(path)
    counts, _ = prepare(source, pictures, tmp_path / "o", Shares(**shares))
    assert tuple(counts.values()) == expected
    assert "".join(name[0] for name in Shares(**shares).draw(NAMES)) == "7815342096"


@pytest.mark.parametrize("source", ["captions.txt", "."])
def test_the_pictures_are_found_in_a_folder_beside_the_captions(run, pictures, tmp_path, source):
    assert run(source=pictures.parent / source) == 0
    data = json.loads((tmp_path / "data" / "captions_train.json").read_text())
    assert (tmp_path / "data" / data["info"]["image_folder"]).resolve() == pictures.resolve()


def test_shares_are_ignored_with_a_message_if_the_source_has_splits(run, tmp_path, capsys):
    images = [{"filename": n, "split": "train", "sentences": [{"raw": "a dog"}]} for n in NAMES]
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


@pytest.mark.parametrize("change, message", [
    ({"filename": 5}, "expected Karpathy's format"),
    ({"split": 5}, "unknown splits [5]"),
    ({"split": "x"}, "unknown splits ['x']"),
    ({"cocoid": [1]}, "TypeError"),
    ({"sentences": [{"raw": 5}]}, "AttributeError"),
    ({"sentences": 5}, "TypeError"),
    ({"cocoid": 2}, "several pictures have the same id: [2]"),
])  # fmt: skip
def test_damaged_karpathy_files_are_refused(run, pictures, tmp_path, capsys, change, message):
    first = {"filename": "1.jpg", "split": "train", "cocoid": 1, "sentences": [{"raw": "a dog"}]}
    second = first | {"filename": "2.jpg", "cocoid": 2}
    (tmp_path / "k.json").write_text(json.dumps({"images": [first | change, second]}))
    assert run("--images", pictures, source=tmp_path / "k.json") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "data").exists()


ROWS = [(i, k) for i in range(10) for k in (0, 1)]
CSV = ["image,caption\n", *(f"{i}.jpg,picture {i}, caption {k}\n" for i, k in ROWS)]
BARS = [f"{i}.jpg| {k}| picture {i}, caption {k}\n" for i, k in ROWS]
SOURCES = {"csv": "".join(CSV), "bar": "".join(["image_name| comment_number| comment\n", *BARS])}


@pytest.mark.parametrize("kind", [*SOURCES, "karpathy", "folder"])
def test_every_format_gives_the_same_captions(kind, run, pictures, tmp_path):
    expected = {name: [f"picture {name[0]}, caption {k}" for k in (0, 1)] for name in NAMES}
    source = tmp_path / "captions.txt"
    if kind == "karpathy":
        source, splits = tmp_path / "dataset.json", ["restval"] * 6 + ["val"] * 2 + ["test"] * 2
        raw = {name: [{"raw": caption} for caption in expected[name]] for name in NAMES}
        pairs = zip(NAMES, splits, strict=True)
        images = [{"filename": n, "split": split, "sentences": raw[n]} for n, split in pairs]
        source.write_text(json.dumps({"images": images}))
    elif kind == "folder":
        source = pictures
        (pictures / "captions.csv").write_text(SOURCES["csv"])
    else:
        source.write_text(SOURCES[kind])
    assert read_source(source).captions == expected
    shares = "--val", 0.2, "--test", 0.2
    assert run("--images", pictures, *shares, source=source) == 0
    assert [len(names_of(tmp_path, split)) for split in ("train", "val", "test")] == [6, 2, 2]


def test_what_is_refused_or_skipped_is_named(run, pictures, tmp_path, capsys):
    source = tmp_path / "c.txt"
    source.write_text(SOURCES["csv"] + "none.jpg,a dog\n1.jpg,...\n")
    (pictures / "3.jpg").write_bytes(b"broken")
    arguments = "--images", pictures, "--val", 0.2, "--test", 0
    assert run(source=pictures) == 1 and f"{pictures}: expected one of " in capsys.readouterr().err
    assert run("--images", source, source=source) == 1
    assert f"images: {source} is not a folder" in capsys.readouterr().err
    assert run(*arguments, source=source) == 1
    err = capsys.readouterr().err
    assert "2 x bad picture" in err and "3.jpg" in err and "none.jpg" in err
    assert "1 x caption without words: 1.jpg" in err and not (tmp_path / "data").exists()
    assert run(*arguments, "--on-error", "skip", source=source) == 0
    assert "7 train, 2 val, 0 test" in capsys.readouterr().out
    assert len(names_of(tmp_path, "train")) == 7
    data = json.loads((tmp_path / "data" / "captions_train.json").read_text())
    assert [annotation["id"] for annotation in data["annotations"]] == [*range(1, 15)]
    assert all(image["file_name"] == f"{image['id'] - 1}.jpg" for image in data["images"])
