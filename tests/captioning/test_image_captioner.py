"""The short interface: `captioning.load`, calls with pictures, and `evaluate`."""

import shutil

import pytest
from PIL import Image

import captioning
from captioning.__main__ import main
from captioning.data.images import ImageError
from captioning.errors import CaptioningError


@pytest.fixture
def best(new_checkpoint, tmp_path):
    new_checkpoint().save(tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.fixture
def pictures(data):
    return [image.path for image in data.val.images]


def test_captions_paths_and_pil_pictures_and_lists(best, pictures, capsys):
    captioner = captioning.load(best)
    one = captioner(str(pictures[0]))
    with Image.open(pictures[0]) as image:
        assert isinstance(one, str) and captioner(pictures[0]) == captioner(image) == one
        assert captioner([image, str(pictures[1])]) == captioner(pictures[:2])
    ranked = captioner.all_captions(pictures[:2], beam_size=3)
    assert [len(captions) for captions in ranked] == [3, 3]
    assert main(["caption", str(best), str(pictures[0])]) == 0
    assert capsys.readouterr().out == f"{pictures[0]}: {one}\n"


def test_a_pil_picture_is_turned_and_converted_as_its_file(best, pictures, tmp_path):
    captioner = captioning.load(best)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    with Image.open(pictures[0]) as image:
        image.resize((200, 100)).convert("RGBA").save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        as_file = captioner.cnn.transform.load(tmp_path / "turned.png")
        assert captioner.cnn.transform.load(image).equal(as_file)
        assert image.size == (200, 100)  # the user's picture stays as it is


def test_several_checkpoints_are_an_ensemble(best, pictures):
    captioner = captioning.load(best, str(best))
    assert len(captioner.checkpoint.models) == 2
    assert captioner(pictures[0], method="greedy") == captioning.load(best)(
        pictures[0], method="greedy"
    )


def test_evaluate_is_the_command(best, scenes_root, captions_of, tmp_path, capsys):
    captioner = captioning.load(best)
    folder = scenes_root / "annotations"
    scores = captioner.evaluate(folder)
    assert capsys.readouterr().out == f"12 pictures of {folder / 'captions_val.json'}\n"
    assert len(scores.captions) == 12 and "CIDEr-D" in scores.overall
    assert main(["evaluate", str(best), str(folder)]) == 0
    assert str(scores) in capsys.readouterr().out
    assert main(["evaluate", str(best), str(folder), "--method", "greedy"]) == 0
    greedy = captioner.evaluate(captions_of("val"), method="greedy")
    assert str(greedy) in capsys.readouterr().out
    shutil.copytree(scenes_root, tmp_path / "s")
    files = tmp_path / "s" / "annotations"
    (files / "captions_unseen.json").rename(files / "captions_test.json")
    captioner.evaluate(files)
    assert "captions_test.json" in capsys.readouterr().out


def test_bad_input_is_said(best, pictures, tmp_path):
    captioner, (text) = captioning.load(best), tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:200])
    with pytest.raises(CaptioningError, match="load: expected a captioner such as best.pt"):
        captioning.load()
    with pytest.raises(CaptioningError, match="none.pt: no such file; expected a captioner"):
        captioning.load(tmp_path / "none.pt")
    for path, message in ((tmp_path / "x.png", "x.png: no such file"), (text, "not a picture")):
        with pytest.raises(ImageError, match=message):
            captioner([pictures[0], path])
    with Image.open(cut) as image, pytest.raises(ImageError, match="broken picture"):
        captioner(image)
    with pytest.raises(CaptioningError, match="at least one picture, got an empty list"):
        captioner([])
    with pytest.raises(CaptioningError, match="expected paths and PIL pictures, got a int"):
        captioner([5])
    with pytest.raises(CaptioningError, match="expected settings of method, .*; got beams"):
        captioner(pictures[0], beams=3)
    with pytest.raises(CaptioningError, match="beam_size: expected an integer from 1"):
        captioner(pictures[0], beam_size=0)
