"""The demo: it runs on a few pictures, runs again, and refuses a folder that is in use."""

import json

import pytest
from filelock import FileLock
from PIL import Image

from captioning.commands.demo import demo
from captioning.errors import CaptioningError

SMALL = {"epochs": 1, "split_sizes": {"train": 64, "val": 12, "unseen": 12}}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo(folder, **SMALL)
    return folder


def test_writes_a_report_a_contact_sheet_and_results(output):
    report = (output / "report.html").read_text()
    for word in ("Captions of drawn scenes", "CIDEr-D", "unseen", "data:image/png;base64", "<svg"):
        assert word in report
    assert "http" not in report.replace("http://www.w3.org", "")  # the page loads nothing
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > 900 and sheet.height > 500
    results = json.loads((output / "results_val.json").read_text())
    assert len(results) == 12 and set(results[0]) == {"image_id", "caption"}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["lstm", "attention"])
def test_captions_of_new_pictures_are_right(decoder, tmp_path):
    sections = demo(tmp_path, decoder=decoder)
    assert min(sections["val"].facts.values()) >= 0.75
    assert min(v for fact, v in sections["val"].facts.items() if fact != "all") >= 0.9
    assert sections["unseen"].facts["all"] >= 0.55
    assert sections["val"].scores.overall["CIDEr-D"] >= 5.5


def test_a_folder_that_another_run_writes_to_stays_as_it_is(output):
    files = lambda: [path for path in output.rglob("*") if path.is_file() and path.suffix]
    before = {path: path.stat().st_mtime_ns for path in files()}
    with FileLock(output / ".lock"), pytest.raises(CaptioningError, match="is being written by"):
        demo(output, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in files()}


def test_a_second_run_writes_the_same(output):
    results = (output / "results_val.json").read_text()
    demo(output, **SMALL)
    assert (output / "results_val.json").read_text() == results
