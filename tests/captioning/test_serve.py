"""The web page: what it says of good and bad pictures, in a browser and without one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.caption import caption_files
from captioning.datasets import CaptionDataset
from captioning.errors import CaptioningError
from captioning.evaluate import evaluate, write_evaluation
from captioning.generate import DecodeConfig
from captioning.serve import answer, describe_lstm, serve

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 0.2


@pytest.fixture(scope="module")
def picture(data) -> Path:
    return data.val.images[0].path


@pytest.fixture(scope="module")
def bad(tmp_path_factory, picture) -> dict[str, Path]:
    """Files that get a message, by what the message says."""
    folder = tmp_path_factory.mktemp("bad")
    files = {
        "broken picture": folder / "cut.png",
        "not a picture": folder / "text.png",
        "1 x 1 pixels, expected 8 x 8": folder / "tiny.png",
        "too many pixels, expected at most": folder / "huge.png",
    }
    cut, text, tiny, huge = files.values()
    noise = Image.frombytes("RGB", (64, 64), os.urandom(3 * 64 * 64))
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    text.write_text("<script>alert(1)</script>")
    Image.new("RGB", (1, 1)).save(tiny)
    Image.new("1", (20000, 20000)).save(huge)
    return files


# What the page says -----------------------------------------------------------------------------


def test_answers_with_the_captions_of_both_searches_and_all_probabilities(
    attentive, grid_cnn, picture
):
    said = answer(attentive, grid_cnn, picture, beam_size=3)
    for config in (DecodeConfig("greedy"), DecodeConfig("beam", beam_size=3)):
        (item,) = caption_files(attentive, grid_cnn, [picture], config)
        assert f'<p class="caption">{item.captions[0].text}</p>' in said
        words = re.findall(r'<span style="--p: [\d.]+%">(.*?)<small>(\d+%)', said)
        expected = [(word, f"{p:.0%}") for word, p in item.captions[0].words]
        found = [(unescape(word), p) for word, p in words]
        assert any(found[i : i + len(expected)] == expected for i in range(len(found)))
    assert said.count('<div class="attention"') == 2
    assert said.count("<li>") == 2  # the rest of the beam


def test_without_attention_there_are_words_only(new_checkpoint, data, picture):
    said = answer(new_checkpoint(), data.cnn, picture)
    assert said.count('class="caption"') == 2 and "attention" not in said


def test_what_is_wrong_with_a_picture_is_said(attentive, grid_cnn, bad):
    for message, path in bad.items():
        said = answer(attentive, grid_cnn, path)
        assert message in said and "No caption" in said
        assert str(path.parent) not in said and "<script>" not in said


def test_words_are_escaped(attentive, grid_cnn, picture, monkeypatch):
    evil = ["<b>", *attentive.vocabulary.words[5:]]
    monkeypatch.setattr(attentive.vocabulary, "words", attentive.vocabulary.words[:4] + evil)
    attentive.model.decoder.linear.bias.data[4] += 100
    try:
        said = answer(attentive, grid_cnn, picture)
    finally:
        attentive.model.decoder.linear.bias.data[4] -= 100
    assert "<b>" not in said and "&lt;b&gt;" in said


@pytest.mark.parametrize(
    ("lstm", "words"),
    [
        ("fastlstm", "fastlstm.LSTM ("),
        ("reference", "fastlstm.LSTM (in plain PyTorch, engine reference) on cpu, float32"),
        ("torch", "torch.nn.LSTM on cpu, float32"),
    ],
)
def test_names_the_lstm_that_runs(new_checkpoint, lstm, words):
    assert describe_lstm(new_checkpoint(lstm).model.decoder.lstm).startswith(words)


def test_without_gradio_the_command_says_how_to_install_it(
    attentive, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    attentive.save(tmp_path / "c.pt")
    assert main(["serve", str(tmp_path / "c.pt")]) == 1
    assert "pip install 'fastlstm[serve]'" in capsys.readouterr().err


def test_a_limit_of_nothing_is_refused(attentive, grid_cnn):
    with pytest.raises(CaptioningError, match="max_megabytes: expected > 0, got 0"):
        serve(attentive, grid_cnn, max_megabytes=0)


# The server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(attentive, tmp_path_factory):
    """A running `captioning serve`: its address, and the folder that it may write to."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'fastlstm[serve]'")
    folder = tmp_path_factory.mktemp("serve")
    for name in ("home", "tmp", "cwd"):
        (folder / name).mkdir()
    attentive.save(folder / "c.pt")
    environment = os.environ | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "captioning", "serve", str(folder / "c.pt")]
    process = subprocess.Popen(
        [*command, "--max-megabytes", str(MEGABYTES)],
        cwd=folder / "cwd",
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert (address := re.search(r"http://127\.0\.0\.1:\d+/", line)), line
        yield address[0], folder
        # Ctrl-C ends it, and nothing is left of it.
        sources = ROOT / "captioning"
        assert not list(sources.glob("*.pyi"))
        assert list((folder / "tmp").iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        left = [p for name in ("home", "tmp", "cwd") for p in (folder / name).rglob("*")]
        assert not left, left
    finally:
        process.kill()
        process.wait()


def test_a_client_gets_captions_and_messages(server, attentive, grid_cnn, picture, bad):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server[0], verbose=False)
    said = client.predict(handle_file(picture), 3, api_name="/caption")
    expected = answer(attentive, grid_cnn, picture, 3)
    assert re.sub(r"\d+ ms", "", said) == re.sub(r"\d+ ms", "", expected)
    for message, path in bad.items():
        assert message in client.predict(handle_file(path), 3, api_name="/caption")
    assert "appear here" in client.predict(None, 3, api_name="/caption")
    elsewhere = {"path": f"{server[0]}favicon.ico", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="expected an uploaded picture, got the address of one"):
        client.predict(elsewhere, 3, api_name="/caption")


def test_large_uploads_are_refused(server, picture):
    import httpx

    def upload(size: int) -> int:
        files = {"files": ("a.png", os.urandom(size))}
        return httpx.post(f"{server[0]}gradio_api/upload", files=files).status_code

    assert upload(int(MEGABYTES * 0.9e6)) == 200
    assert upload(int(MEGABYTES * 1.1e6)) == 413


def test_files_of_the_machine_are_not_given_away(server):
    import httpx

    for path in (server[1] / "c.pt", "/etc/passwd"):
        assert httpx.get(f"{server[0]}gradio_api/file={path}").status_code in (403, 404)


def test_the_browser_is_told_to_talk_to_nobody_else(server):
    import httpx

    headers = httpx.get(server[0]).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")


def test_a_taken_port_is_named(server, attentive, grid_cnn):
    port = int(server[0].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(CaptioningError, match=f"cannot listen on 127.0.0.1, port {port}"):
        serve(attentive, grid_cnn, port=port)
    with tempfile.TemporaryFile():  # where they were before
        pass


# The browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(found):
        pytest.skip("needs Chromium and its driver (Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    driver.set_window_size(1200, 1000)
    driver.get(server[0])
    yield driver
    driver.quit()


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def drop(browser, path: Path) -> None:
    browser.refresh()
    wait_for(browser, lambda: browser.find_elements("css selector", "input[type=file]"))
    browser.find_element("css selector", "input[type=file]").send_keys(str(path))


def said(browser) -> str:
    found = browser.find_elements("css selector", ".answer")
    return found[0].text if found else ""


def test_a_picture_is_captioned_in_the_browser(browser, attentive, grid_cnn, picture):
    drop(browser, picture)
    wait_for(browser, lambda: "Beam search" in said(browser))
    for config in (DecodeConfig("greedy"), DecodeConfig("beam")):
        (item,) = caption_files(attentive, grid_cnn, [picture], config)
        assert item.captions[0].text in said(browser)
    assert "fastlstm.LSTMCell" in browser.page_source
    masks = browser.find_elements("css selector", ".attention img")
    assert masks and all(mask.get_property("naturalWidth") == 64 for mask in masks)


def test_a_bad_picture_gets_a_message_in_the_browser(browser, bad):
    drop(browser, bad["not a picture"])
    wait_for(browser, lambda: "No caption: not a picture" in said(browser))


def test_a_large_picture_is_refused_in_the_browser(browser, tmp_path):
    Image.frombytes("RGB", (400, 400), os.urandom(480_000)).save(tmp_path / "large.png")
    drop(browser, tmp_path / "large.png")
    wait_for(browser, lambda: "maximum" in browser.find_element("css selector", "body").text)
    assert "appear here" in said(browser)


def test_the_page_asks_nobody_else(browser, server):
    """Behind all that use the page, so that it sees their requests."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert len(asked) > 5
    local = (server[0], "data:", "blob:", "chrome:")  # chrome: are pages of the browser itself
    assert not [url for url in asked if not url.startswith(local)]


def test_the_report_shows_the_picture_under_its_masks(browser, attentive, data, tmp_path):
    """The styles of report and panels are in one file, and must not cover the picture."""
    dataset = CaptionDataset(data.val.images)
    results = {image.id: "a red square" for image in dataset.images}
    scores = evaluate(results, dataset)
    write_evaluation(tmp_path / "report.html", results, dataset, scores, attentive)
    browser.get((tmp_path / "report.html").as_uri())
    mask = browser.find_element("css selector", ".attention img")
    panel = browser.find_element("css selector", ".attention i")
    assert mask.size == panel.size and mask.size["width"] > 50
    assert mask.value_of_css_property("background-color") == "rgba(0, 0, 0, 0)"
    assert panel.value_of_css_property("background-image").startswith('url("data:image/png')
