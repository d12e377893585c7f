"""The web page: what it says of good and bad pictures, in a browser and without one."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.data.datasets import CaptionDataset
from captioning.data.images import ImageError
from captioning.errors import CaptioningError
from captioning.results.evaluation import evaluate, write_evaluation
from captioning.search.generate import DecodeConfig, caption_files
from captioning.serving.server import ServerSettings, answer, describe_lstm, serve

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 2.5


def wait_until(condition) -> None:
    """Fails after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


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
        "13300 x 13300 pixels, expected at most": folder / "bomb.png",
    }
    cut, text, tiny, huge, bomb = files.values()
    noise = Image.frombytes("RGB", (64, 64), os.urandom(3 * 64 * 64))
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    text.write_text("<script>alert(1)</script>")
    Image.new("RGB", (1, 1)).save(tiny)
    Image.new("1", (20000, 20000)).save(huge)
    Image.new("1", (13300, 13300)).save(bomb)
    return files


# What is answered --------------------------------------------------------------------------------


def test_answers_with_the_captions_of_both_searches(attentive, grid_cnn, picture):
    greedy, beam = answer(attentive, grid_cnn, picture.read_bytes(), beam_size=3)["searches"]
    assert greedy["title"] == "Greedy search" and beam["title"] == "Beam search, 3 wide"
    for said, config in ((greedy, DecodeConfig("greedy")), (beam, DecodeConfig("beam", 3))):
        (item,) = caption_files(attentive, grid_cnn, [picture], config)
        assert said["captions"] == [asdict(caption) for caption in item.captions]
        words = said["attention"]["words"]
        assert " ".join(word for word, _ in words) == said["captions"][0]["text"]
        assert all(mask.startswith("data:image/png;base64,") for _, mask in words)
    assert len(beam["captions"]) == 3
    json.dumps(greedy)


def test_without_attention_there_are_words_only(new_checkpoint, data, picture):
    found = answer(new_checkpoint(), data.cnn, picture.read_bytes())["searches"]
    assert [search["attention"] for search in found] == [None, None]


def test_what_is_wrong_with_a_picture_is_said(attentive, grid_cnn, bad):
    for message, path in bad.items():
        with pytest.raises(ImageError, match=f"^{message}"):
            answer(attentive, grid_cnn, path.read_bytes())


@pytest.mark.parametrize(
    ("lstm", "words"),
    [
        ("fastlstm", "fastlstm.LSTM (engine auto) on cpu, float32"),
        ("reference", "fastlstm.LSTM (engine reference) on cpu, float32"),
        ("torch", "torch.LSTM on cpu, float32"),
    ],
)
def test_names_the_lstm_that_runs(new_checkpoint, lstm, words):
    assert describe_lstm(new_checkpoint(lstm).model) == words


def test_without_its_libraries_the_command_says_how_to_install_them(
    attentive, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    attentive.save(tmp_path / "c.pt")
    assert main(["serve", str(tmp_path / "c.pt")]) == 1
    assert "needs uvicorn: pip install 'fastlstm[serve]'" in capsys.readouterr().err


# The server -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running `captioning serve`: its address, and the folder that it may write to."""

    address: str
    folder: Path
    pid: int

    @property
    def port(self) -> int:
        return int(self.address.rstrip("/").rsplit(":", 1)[1])

    def status(self, name: str) -> float | None:
        """VmRSS or VmHWM in megabytes, where there is /proc."""
        status = Path(f"/proc/{self.pid}/status")
        if not status.exists():
            return None
        return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024

    @contextlib.contextmanager
    def grows_by_less_than(self, megabytes: float) -> Iterator[None]:
        before = self.status("VmHWM")
        if before is not None:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak is what is held now
            before = self.status("VmHWM")
        yield
        if before is not None:
            assert self.status("VmHWM") - before < megabytes

    def begin_upload(self, size: int, sent: int) -> socket.socket:
        """A picture of `size` bytes, of which `sent` have been sent."""
        request = (
            f"POST /caption HTTP/1.1\r\nHost: localhost:{self.port}\r\n"
            f"Content-Length: {size}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(request.encode() + bytes(sent))
        return connection


@pytest.fixture(scope="module")
def server(attentive, tmp_path_factory):
    pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fastlstm[serve]'")
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
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--max-megabytes", str(MEGABYTES), "--allow-host", "captions.example"],
            cwd=folder / "cwd",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        yield Server(address[0], folder, process.pid)
        # Ctrl-C ends it; it has written nothing, and told nothing.
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        left = [p for name in ("home", "tmp", "cwd") for p in (folder / name).rglob("*")]
        assert not left, left
        errors = (folder / "errors").read_text()
        assert "Traceback" not in errors, errors
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def http():
    import httpx

    with httpx.Client(timeout=60) as client:
        yield client


def post(server: Server, picture: bytes, query: str = "", **headers: str) -> tuple[int, str]:
    """The status, and what is said, of a request with this picture."""
    import httpx

    url = f"{server.address}caption{query}"
    answer = httpx.post(url, content=picture, headers=headers, timeout=60)
    return answer.status_code, answer.text


def works(server: Server) -> bool:
    """Whether it answers, though not with a caption: these bytes are no picture."""
    return post(server, b"0123456789")[0] == 422


def test_a_client_gets_captions_and_messages(server, attentive, grid_cnn, picture, bad):
    status, text = post(server, picture.read_bytes(), "?beam=3")
    expected = answer(attentive, grid_cnn, picture.read_bytes(), 3)
    for search in (said := json.loads(text))["searches"] + expected["searches"]:
        search.pop("milliseconds")
    assert status == 200 and said["searches"][0]["captions"][0]["text"]
    texts = [
        [[caption["text"] for caption in search["captions"]] for search in found["searches"]]
        for found in (said, expected)
    ]
    assert texts[0] == texts[1]
    with server.grows_by_less_than(100):
        for message, path in bad.items():
            status, text = post(server, path.read_bytes())
            assert status == 422 and json.loads(text)["error"].startswith(message)
    wide = post(server, picture.read_bytes(), "?beam=1000000000")[1]
    assert "Beam search, 20 wide" in wide


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "caption"), ("POST", ""), ("PUT", "caption"), ("GET", "nothing")),
        *(("POST", "caption?beam=x"), ("POST", "caption"), ("GET", "../c.pt"), ("GET", "%00")),
    ],
)
def test_what_a_client_sends_wrong_is_refused(server, http, method, path):
    """At its end, `server` asserts that the log has no traceback."""
    assert 400 <= http.request(method, server.address + path, content=b"x").status_code < 500
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        request = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"
        connection.sendall(request)
        assert b" 400 " in connection.recv(100)
    assert works(server)


def test_nobody_says_what_the_server_is_called(server, http):
    """Not even a proxy: the page needs no name of its server."""
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    page = http.get(server.address, headers=headers).text
    assert "evil.example" not in page and server.address not in page


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local"], ids=["none", "a part"])
def test_connections_that_ask_nothing_end(server, sent):
    """Beyond 500 connections the server answers 503: those of nobody must not stay."""
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(600)]
    for connection in idle:
        connection.sendall(sent)
    assert post(server, b"x")[0] == 503
    wait_until(lambda: works(server))
    assert not any(connection.recv(1) for connection in idle)
    for connection in idle:
        connection.close()


def test_large_pictures_are_refused(server):
    assert post(server, os.urandom(int(MEGABYTES * 0.9e6)))[0] == 422
    status, text = post(server, os.urandom(int(MEGABYTES * 1.1e6)))
    assert status == 413 and "maximum size of a picture is 2,500,000 bytes" in text


def test_500_uploads_that_are_broken_off_leave_nothing(server):
    # They would be 300 MB. Fifty at a time: the server may not have noticed yet that they ended.
    with server.grows_by_less_than(100):
        for _ in range(10):
            for i in range(50):
                server.begin_upload(int(MEGABYTES * 0.9e6), (i % 4) * 400_000).close()
            wait_until(lambda: works(server))


def test_the_memory_of_a_large_picture_is_given_back(server, tmp_path):
    if server.status("VmRSS") is None:
        pytest.skip("needs /proc")
    contents = []
    for side in (60, 6000):  # 144 MB
        Image.new("RGBA", (side, side)).save(tmp_path / "x.png")
        contents.append((tmp_path / "x.png").read_bytes())
    assert post(server, contents[0])[0] == 200  # what the first of all needs is kept
    before = server.status("VmRSS")
    assert post(server, contents[1])[0] == 200
    assert server.status("VmRSS") - before < 72


def test_250_slow_clients_hold_nobody_up(server):
    slow = [server.begin_upload(1_000_000, 10) for _ in range(250)]
    assert post(server, bytes(1_000_000))[0] == 422  # within a minute; they have two
    for connection in slow:
        connection.close()


def test_pictures_that_arrive_together_are_bounded(server):
    slow = []

    def is_refused_beside_one_more() -> bool:
        slow.append(server.begin_upload(2_000_000, 1_900_000))
        return post(server, bytes(1_000_000))[0] == 503

    with server.grows_by_less_than(80):
        try:
            wait_until(is_refused_beside_one_more)
        finally:
            for connection in slow:
                connection.close()
    assert len(slow) >= 12  # of 25 MB in all
    wait_until(lambda: post(server, bytes(1_000_000))[0] == 422)


@pytest.mark.parametrize("length_is_told", [True, False])
@pytest.mark.parametrize("path", ["caption", "nothing"])
def test_a_large_body_does_not_grow_memory(server, http, length_is_told, path):
    import httpx

    size = 100_000_000
    headers = {"Content-Length": str(size)} if length_is_told else {}
    chunks = (b" " * 100_000 for _ in range(size // 100_000))
    with server.grows_by_less_than(15):
        try:
            status = http.post(server.address + path, content=chunks, headers=headers).status_code
        except httpx.NetworkError:  # it is told and the connection closed before all was sent
            status = 413
    assert status in (404, 413)


@pytest.mark.parametrize(
    ("headers", "welcome"),
    [
        ({"Host": "localhost:{port}"}, True),
        ({"Host": "localhost"}, True),
        ({"Host": "[::1]:{port}"}, True),
        ({"Host": "Captions.Example"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "localhost.evil.example:{port}"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "10.0.0.1"}, False),
        ({"Origin": "http://127.0.0.1:{port}"}, True),
        ({"Origin": "https://captions.example"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "null"}, False),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, False),
    ],
)
def test_other_names_and_other_pages_are_refused(server, http, headers, welcome):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    page = http.get(server.address, headers=headers)
    status, _ = post(server, b"x", **headers)
    assert (page.status_code, status) == ((200, 422) if welcome else (403, 403))
    assert "access-control-allow-origin" not in page.headers
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_browser_is_told_to_talk_to_nobody_else(server, http):
    for path in ("", "nothing", "caption"):
        headers = http.get(server.address + path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_a_taken_port_is_named(server, attentive, grid_cnn):
    message = f"cannot listen on 127.0.0.1, port {server.port}: "
    with pytest.raises(CaptioningError, match=message):
        serve(attentive, grid_cnn, ServerSettings(port=server.port))


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
    driver.get(server.address)
    yield driver
    driver.quit()


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: condition())


def drop(browser, path: Path) -> None:
    browser.refresh()
    browser.find_element("css selector", "input[type=file]").send_keys(str(path))


def said(browser) -> str:
    found = browser.find_elements("css selector", "#answer")
    return found[0].text if found else ""


def test_a_picture_is_captioned_in_the_browser(browser, attentive, grid_cnn, picture):
    drop(browser, picture)
    wait_for(browser, lambda: "Beam search" in said(browser))
    for config in (DecodeConfig("greedy"), DecodeConfig("beam")):
        (item,) = caption_files(attentive, grid_cnn, [picture], config)
        assert item.captions[0].text in said(browser)
    assert "fastlstm.PackedLSTMCell" in browser.page_source
    masks = browser.find_elements("css selector", ".attention img")
    assert masks and all(mask.get_property("naturalWidth") == 64 for mask in masks)


def test_a_visitor_is_told_what_to_do_and_may_click_on_an_example(browser, server):
    browser.refresh()
    wait_for(browser, lambda: "appear here" in said(browser))
    assert browser.title == "Caption a picture"
    assert browser.find_element("css selector", "h1").text == "Caption a picture"
    assert "scenes_cnn" in browser.find_element("css selector", ".about").text
    examples = browser.find_elements("css selector", "#examples img")
    assert len(examples) == 4
    examples[2].click()
    wait_for(browser, lambda: "Beam search" in said(browser))
    assert browser.find_element("css selector", "#picture img").get_property("naturalWidth") == 128


def test_words_are_shown_as_text(browser):
    """Whatever a captioner's vocabulary holds."""
    caption = {"text": "<b>x</b>", "score": 1, "words": [["<b>x</b>", 0.5], ["<end>", 1]]}
    search = {"title": "T", "milliseconds": 1, "captions": [caption, caption], "attention": None}
    show = f"document.body.append(showSearch({json.dumps(search)}))"
    browser.execute_script(show)
    section = browser.find_element("css selector", "body > section")
    assert "<b>x</b>" in section.text and "50%" in section.text and "<end>" not in section.text
    assert not section.find_elements("css selector", "b")


def test_a_bad_picture_gets_a_message_in_the_browser(browser, bad):
    drop(browser, bad["not a picture"])
    wait_for(browser, lambda: "No caption: not a picture" in said(browser))


def test_a_large_picture_is_refused_in_the_browser(browser, tmp_path):
    noise = Image.frombytes("RGB", (1000, 1000), os.urandom(3_000_000))
    noise.save(tmp_path / "large.png")
    drop(browser, tmp_path / "large.png")
    wait_for(browser, lambda: "a picture may have at most 2.5 MB" in said(browser))


def test_the_page_asks_nobody_else(browser, server):
    """Behind all that use the page, so that it sees their requests."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert len(asked) > 3
    # The browser shows pages of its own, such as that of a new tab.
    local = (server.address, "data:", "blob:", "chrome:", "chrome-untrusted:")
    assert not [url for url in asked if not url.startswith(local)]


def test_the_report_shows_the_picture_under_its_masks(browser, attentive, data, tmp_path):
    """The styles of report and panels are in one file, and must not cover the picture."""
    dataset = CaptionDataset(data.val.images)
    results = {image.id: "a red square" for image in dataset.images}
    scores = evaluate(results, dataset)
    attentive.save(tmp_path / "c.pt")
    write_evaluation(tmp_path / "report.html", results, dataset, scores, [tmp_path / "c.pt"])
    browser.get((tmp_path / "report.html").as_uri())
    mask = browser.find_element("css selector", ".attention img")
    panel = browser.find_element("css selector", ".attention i")
    assert mask.size == panel.size and mask.size["width"] > 50
    assert mask.value_of_css_property("background-color") == "rgba(0, 0, 0, 0)"
    assert panel.value_of_css_property("background-image").startswith('url("data:image/png')
