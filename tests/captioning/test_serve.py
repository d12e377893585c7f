"""The web page: its answers for good and bad pictures, by its API and in a browser."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.commands.serve import build_page, caption_picture
from captioning.data.images import ImageError
from captioning.image_captioner import ImageCaptioner
from captioning.search.generate import caption_files
from captioning.settings import DecodeConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def picture(data):
    return data.val.images[0].path


@pytest.fixture(scope="module")
def bad(tmp_path_factory, picture):
    """Files that are refused: {message: path}."""
    folder = tmp_path_factory.mktemp("bad")
    cut, text, huge, bomb = (folder / f"{name}.png" for name in ("cut", "text", "huge", "bomb"))
    Image.frombytes("RGB", (64, 64), os.urandom(3 * 64 * 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    text.write_text("<script>alert(1)</script>")
    Image.new("1", (20000, 20000)).save(huge)
    Image.new("1", (13300, 13300)).save(bomb)
    files = {"broken picture": cut, "not a picture": text, "broken picture .*exceeds limit": huge}
    return files | {"13300 x 13300 pixels, expected at most": bomb}


def test_answers_with_the_captions_and_where_it_looked(
    attention_checkpoint, grid_cnn, picture, new_checkpoint, data
):
    captions, maps = caption_picture(
        ImageCaptioner(attention_checkpoint, grid_cnn), picture, beam_size=3
    )
    (item,) = caption_files(attention_checkpoint, grid_cnn, [picture], DecodeConfig("beam", 3))
    assert captions == item.captions and len(captions) == 3
    assert " ".join(word for _, word in maps) == captions[0].text
    assert all(isinstance(image, Image.Image) for image, _ in maps)
    assert caption_picture(ImageCaptioner(new_checkpoint(), data.cnn), picture, 2)[1] == []


def test_what_is_wrong_with_a_picture_is_said(attention_checkpoint, grid_cnn, bad):
    for message, path in bad.items():
        with pytest.raises(ImageError, match=f"^{message}"):
            caption_picture(ImageCaptioner(attention_checkpoint, grid_cnn), path, 2)


def test_missing_libraries_are_named(attention_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    attention_checkpoint.save(tmp_path / "c.pt")
    assert main(["serve", str(tmp_path / "c.pt")]) == 1
    assert "needs gradio: pip install './captioning[serve]'" in capsys.readouterr().err


class Server(NamedTuple):
    """A running `captioning serve`: its address, and the folder of all that it may write."""

    address: str
    folder: Path


@pytest.fixture(scope="module")
def server(attention_checkpoint, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs Gradio: pip install gradio")
    folder = tmp_path_factory.mktemp("serve")
    for name in ("home", "tmp", "cwd"):
        (folder / name).mkdir()
    attention_checkpoint.save(folder / "c.pt")
    paths = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "PYTHONPATH": ROOT}
    environment = os.environ | {name: str(path) for name, path in paths.items()}
    command = [sys.executable, "-m", "captioning", "serve", str(folder / "c.pt")]
    options = {"cwd": folder / "cwd", "env": environment, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **options)
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        yield Server(address[0], folder)
        # SIGTERM ends the server, and the server deletes the pictures that it got.
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        left = [*(folder / "tmp").rglob("*.png"), *(folder / "cwd").iterdir()]
        assert not left, left
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    from gradio_client import Client

    folder = tmp_path_factory.mktemp("downloads")
    return Client(server.address, verbose=False, download_files=str(folder))


@pytest.fixture
def http(server):
    import httpx

    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def test_a_client_gets_the_captions_of_the_page(client, attention_checkpoint, grid_cnn, picture):
    from gradio_client import handle_file

    words, maps, found = client.predict(handle_file(picture), 3, api_name="/caption")
    captions, expected = caption_picture(ImageCaptioner(attention_checkpoint, grid_cnn), picture, 3)
    assert [caption["text"] for caption in found] == [caption.text for caption in captions]
    tagged = [(word, f"{p:.0%}") for word, p in captions[0].words if word != "<end>"]
    assert [(item["token"], item["class_or_confidence"]) for item in words] == tagged
    assert [item["caption"] for item in maps] == [word for _, word in expected]
    assert all(Image.open(item["image"]).size == (128, 128) for item in maps)


def test_a_client_is_told_what_is_wrong_with_a_picture(client, bad):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    for message, path in bad.items():
        with pytest.raises(AppError, match=f"^No caption: {message}"):
            client.predict(handle_file(path), 3, api_name="/caption")


def test_a_large_file_is_refused(http):
    status = lambda size: http.post("gradio_api/upload", files={"files": bytes(size)}).status_code
    assert status(19_000_000) == 200 and status(22_000_000) == 413


def test_files_of_the_machine_are_not_given_out(server, http):
    secret = server.folder / "c.pt"
    assert http.get(f"gradio_api/file={secret}").status_code == 403
    picture = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    call = http.post("gradio_api/call/caption", json={"data": [picture, 3]}).json()
    told = http.get(f"gradio_api/call/caption/{call['event_id']}").text
    assert "event: error" in told and "not a picture" not in told


@pytest.mark.parametrize("path", [None, 5])
def test_a_call_without_a_path_is_no_traceback(attention_checkpoint, grid_cnn, path):
    gradio = pytest.importorskip("gradio", reason="needs Gradio: pip install gradio")
    page = build_page(ImageCaptioner(attention_checkpoint, grid_cnn), "c.pt")
    (caption,) = (f.fn for f in page.fns.values() if f.api_name == "caption")
    with pytest.raises(gradio.Error, match="No caption: expected the path of an uploaded file"):
        caption({"path": path}, 3)
    assert caption(None, 3) == (None, None, None)


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
    driver.get(server.address)
    yield driver
    driver.quit()


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def upload(browser, path):
    browser.refresh()
    find = lambda: browser.find_elements("css selector", "input[type=file]")
    wait_for(browser, find)[0].send_keys(str(path))


def text(browser):
    return browser.find_element("css selector", "body").text


def test_a_picture_is_captioned_in_the_browser(browser, attention_checkpoint, grid_cnn, picture):
    upload(browser, picture)
    masks = lambda: browser.find_elements("css selector", ".grid-container img")
    wait_for(browser, lambda: masks() and all(m.get_property("naturalWidth") for m in masks()))
    assert browser.title == "Caption a picture" and "CNN: scenes_cnn. Decoder: att" in text(browser)


def test_a_bad_picture_gets_a_message_in_the_browser(browser, bad):
    upload(browser, bad["not a picture"])
    wait_for(browser, lambda: "No caption: not a picture" in text(browser))


def test_the_page_loads_nothing_from_other_servers(browser, server):
    """This test is the last, so that it sees the requests of all tests."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {m["params"]["request"]["url"] for m in sent}
    assert len(asked) > 3
    # The browser also loads pages of its own, such as the page of a new tab.
    local = (server.address, "data:", "blob:", "chrome:", "chrome-untrusted:")
    assert not [url for url in asked if not url.startswith(local)]
