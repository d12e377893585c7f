"""The web page: what it says of good and bad pictures, in a browser and without one."""

import contextlib
import errno
import io
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
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from captioning.__main__ import main
from captioning.data.datasets import CaptionDataset
from captioning.errors import CaptioningError
from captioning.results.evaluation import evaluate, write_evaluation
from captioning.search.caption import caption_files
from captioning.search.generate import DecodeConfig
from captioning.serving.server import answer, describe_lstm, serve
from captioning.serving.uploads import Limits, Uploads

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES, KEPT = 2.5, 8.0  # so that an upload does not stay in memory while it arrives


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


# What the page says -----------------------------------------------------------------------------


def test_answers_with_the_captions_of_both_searches_and_all_probabilities(
    attentive, grid_cnn, picture
):
    said = answer(attentive, grid_cnn, picture, beam_size=3)
    for config in (DecodeConfig("greedy"), DecodeConfig("beam", beam_size=3)):
        (item,) = caption_files(attentive, grid_cnn, [picture], config)
        assert f'<p class="caption">{item.captions[0].text}</p>' in said
        words = re.findall(r'<span style="--p: [\d.]+%">(.*?)<small>(\d+%)', said)
        words_of = item.captions[0].words
        expected = [(word, f"{p:.0%}") for word, p in words_of if word != "<end>"]
        found = [(unescape(word), p) for word, p in words]
        assert any(found[i : i + len(expected)] == expected for i in range(len(found)))
    assert "&lt;end&gt;" not in said
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
    assert describe_lstm(new_checkpoint(lstm).model).startswith(words)


def test_without_gradio_the_command_says_how_to_install_it(
    attentive, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "captioning.serving.gradio_page", raising=False)
    attentive.save(tmp_path / "c.pt")
    assert main(["serve", str(tmp_path / "c.pt")]) == 1
    assert "pip install 'fastlstm[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_megabytes": 0}, "max_megabytes: expected > 0, got 0"),
        ({"max_megabytes": 1e-9}, "max_megabytes: expected > 0, got 1e-09"),
        ({"max_megapixels": float("nan")}, "max_megapixels: expected > 0, got nan"),
        ({"keep_megabytes": 1}, "keep_megabytes: expected at least max_megabytes, 20.0, got 1"),
    ],
)
def test_limits_that_let_nothing_through_are_refused(limits, message, capsys):
    with pytest.raises(CaptioningError, match=message):
        Limits(**limits)
    options = [f"--{k.replace('_', '-')}={v}" for k, v in limits.items()]
    with contextlib.suppress(SystemExit):  # by argparse, where it sees it
        main(["serve", "there_is_none.pt", *options])
    assert "expected" in (err := capsys.readouterr().err) and "there_is_none" not in err


# What is kept -----------------------------------------------------------------------------------


def test_the_oldest_uploads_leave_first(tmp_path, monkeypatch):
    uploads = Uploads(tmp_path / "uploads", max_bytes=100)
    monkeypatch.setattr("captioning.serving.uploads.MAX_FILES", 4)

    def keep(size: int) -> Path:
        keep.time += 1
        path = uploads.keep(io.BytesIO(bytes(size)), size, "a/../x.PNG")
        os.utime(path, (keep.time, keep.time))
        return path

    keep.time = time.time() - 100
    first, second, third = keep(40), keep(40), keep(30)
    assert str(first) not in uploads and str(second) in uploads and str(third) in uploads
    assert third.suffix == ".png" and third.parent == uploads.folder
    for path in ("", str(uploads.folder), f"{third}/.", str(tmp_path / "x"), "\0"):
        assert path not in uploads
    small = [keep(1) for _ in range(3)]
    assert sorted(uploads.folder.iterdir()) == sorted([third, *small])  # no more files than four
    os.utime(small[0], (1, 1))
    uploads.sweep()
    assert str(small[0]) not in uploads and str(third) in uploads


def test_nothing_is_left_of_an_upload_that_finds_no_room(tmp_path):
    uploads = Uploads(tmp_path / "uploads", max_bytes=100)

    class Full(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        uploads.keep(Full(), 10, "x.png")
    assert not list(uploads.folder.iterdir())


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

    def files(self) -> set[Path]:
        """All that it has on the disk, with a name or without."""
        files = {path for path in (self.folder / "tmp").rglob("*") if path.is_file()}
        descriptors = f"/proc/{self.pid}/fd"
        for number in os.listdir(descriptors) if os.path.exists(descriptors) else ():
            with contextlib.suppress(FileNotFoundError):  # closed just now
                if "(deleted)" in (name := os.readlink(f"{descriptors}/{number}")):
                    files.add(Path(name))
        return files

    @contextlib.contextmanager
    def grows_by_less_than(self, megabytes: float) -> Iterator[None]:
        status = Path(f"/proc/{self.pid}/status")
        if status.exists():
            (status.parent / "clear_refs").write_text("5")  # the peak is what is held now
            before = int(status.read_text().split("VmHWM:")[1].split()[0])
        yield
        if status.exists():
            peak = int(status.read_text().split("VmHWM:")[1].split()[0])
            assert (peak - before) / 1024 < megabytes

    def begin_upload(self, size: int, sent: int) -> socket.socket:
        """An upload of `size` bytes, of which `sent` have been sent."""
        head = 'Content-Disposition: form-data; name="files"; filename="a.png"'
        request = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{self.port}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {size}\r\n\r\n"
            f"--x\r\n{head}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(request.encode() + bytes(sent))
        return connection


@pytest.fixture(scope="module")
def server(attentive, tmp_path_factory):
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
    command += ["--max-megabytes", str(MEGABYTES), "--keep-megabytes", str(KEPT)]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--allow-host", "captions.example"],
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
        # Ctrl-C ends it, and nothing is left of it.
        sources = ROOT / "captioning"
        assert not list(sources.glob("*.pyi"))
        assert list((folder / "tmp").iterdir())
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


def upload(server: Server, *sizes: int) -> tuple[int, str]:
    """The status, and what is said, of a request with files of these sizes."""
    import httpx

    files = [("files", ("a.png", os.urandom(size))) for size in sizes]
    answer = httpx.post(f"{server.address}gradio_api/upload", files=files, timeout=60)
    return answer.status_code, answer.text


def kept_at(server: Server, size: int) -> Path:
    status, text = upload(server, size)
    assert status == 200, text
    return Path(json.loads(text)[0])


def test_a_client_gets_captions_and_messages(server, attentive, grid_cnn, picture, bad):
    from gradio_client import Client, handle_file

    client = Client(server.address, verbose=False)
    said = client.predict(handle_file(picture), 3, api_name="/caption")
    expected = answer(attentive, grid_cnn, picture, 3)
    assert re.sub(r"\d+ ms", "", said) == re.sub(r"\d+ ms", "", expected)
    with server.grows_by_less_than(100):
        for message, path in bad.items():
            assert message in client.predict(handle_file(path), 3, api_name="/caption")
    assert "appear here" in client.predict(None, 3, api_name="/caption")
    wide = client.predict(handle_file(picture), 1e9, api_name="/caption")
    assert "Beam search, 10 wide" in wide


def test_nothing_else_is_taken_for_a_picture(server, http, picture):
    """Whatever a client calls a file, in whichever place."""

    def caption(*data: object) -> str:
        url = f"{server.address}gradio_api/call/caption"
        event = http.post(url, json={"data": data}).json()["event_id"]
        return http.get(f"{url}/{event}", timeout=60).text

    for path in (
        f"{server.address}favicon.ico",
        "https://example.com/x.png",
        str(picture),
        f"{next((server.folder / 'tmp').rglob('uploads'))}/../../../c.pt",
        "/etc/passwd",
    ):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        streamed = file | {"is_stream": True}
        for data in ((file, 3), (streamed, 3), (None, file)):
            assert "expected an uploaded picture" in caption(*data), data
        for data in (({"path": path}, 3), ({"url": path}, 3), (path, 3), (None, streamed)):
            assert re.search("event: error|appear here", caption(*data)), data


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/caption", '{"data": []}'),
        ("call/caption", '{"data": [3, [[]], {}]}'),
        ("call/caption", '{"data": [{"path": ["a"], "meta": {"_type": "gradio.FileData"}}, 3]}'),
        ("call/caption", '{"data": [{}, "many"]}'),
        ("call/v2/caption", '{"data": 5}'),
        ("queue/join", '{"data": [NaN], "fn_index": Infinity, "session_hash": [1]}'),
        ("reset", '{"event_id": 5}'),
        ("cancel", "{"),
    ],
)
def test_what_a_client_sends_wrong_is_a_line_in_the_log(server, http, path, body):
    """At its end, `server` asserts that the log has no traceback."""
    api = f"{server.address}gradio_api/"
    answer = http.post(api + path, content=body, headers={"Content-Type": "application/json"})
    if path == "call/caption":
        assert "error" in http.get(f"{api}{path}/{answer.json()['event_id']}").text
    else:
        assert answer.status_code >= 400
    assert upload(server, 10)[0] == 200


def test_only_a_named_proxy_says_what_the_server_is_called(server, http):
    for name, believed in (("captions.example", True), ("evil.example", False)):
        headers = {"X-Forwarded-Host": name, "X-Forwarded-Proto": "https"}
        assert (f"https://{name}" in http.get(server.address, headers=headers).text) == believed
    headers = {"X-Gradio-Server": "http://evil.example"}
    assert "evil.example" not in http.get(server.address, headers=headers).text


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: local"], ids=["none", "a part"])
def test_connections_that_ask_nothing_end(server, sent):
    """Beyond 500 connections the server answers 503: those of nobody must not stay."""
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(600)]
    for connection in idle:
        connection.sendall(sent)
    assert upload(server, 10)[0] == 503
    wait_until(lambda: upload(server, 10)[0] == 200)
    assert not any(connection.recv(1) for connection in idle)
    for connection in idle:
        connection.close()


def test_large_uploads_are_refused(server, picture):
    assert upload(server, int(MEGABYTES * 0.9e6))[0] == 200
    status, text = upload(server, int(MEGABYTES * 1.1e6))
    assert status == 413 and "maximum size of 2,500,000 bytes" in text


def test_a_request_brings_one_file(server):
    before = server.files()
    status, text = upload(server, 1, 1)
    assert status == 400 and "Maximum number of files is 1" in text
    assert not server.files() - before


def test_the_folder_of_uploads_stays_small(server):
    paths = [kept_at(server, int(MEGABYTES * 0.9e6)) for _ in range(5)]
    assert sum(path.stat().st_size for path in server.files()) <= KEPT * 1e6
    assert [path.exists() for path in paths] == [False, False, True, True, True]


def test_500_uploads_that_are_broken_off_leave_nothing(server):
    before = server.files()
    for i in range(500):
        server.begin_upload(int(MEGABYTES * 0.9e6), (i % 4) * 400_000).close()
    wait_until(lambda: upload(server, 100)[0] == 200)  # it may have to notice the last ones yet
    wait_until(lambda: len(server.files() - before) == 1)


def test_the_memory_of_a_large_picture_is_given_back(server, tmp_path):
    from gradio_client import Client, handle_file

    status = Path(f"/proc/{server.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    Image.new("RGBA", (6000, 6000)).save(tmp_path / "large.png")  # 144 MB

    def megabytes() -> float:
        return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024

    client = Client(server.address, verbose=False)

    def caption(name: str) -> str:
        return client.predict(handle_file(tmp_path / name), 3, api_name="/caption")

    Image.new("RGBA", (60, 60)).save(tmp_path / "small.png")
    caption("small.png")  # what the first picture of all needs is kept
    before = megabytes()
    assert "Beam" in caption("large.png")
    assert megabytes() - before < 72


def test_250_slow_clients_hold_nobody_up(server):
    slow = [server.begin_upload(1_000_000, 10) for _ in range(250)]
    assert upload(server, 1_000_000)[0] == 200  # within a minute; they have two
    for connection in slow:
        connection.close()


def test_uploads_that_arrive_together_are_bounded(server):
    slow = []

    def is_refused_beside_one_more() -> bool:
        slow.append(server.begin_upload(2_000_000, 1_900_000))
        return upload(server, 1_000_000)[0] == 503

    try:
        wait_until(is_refused_beside_one_more)
    finally:
        for connection in slow:
            connection.close()
    wait_until(lambda: upload(server, 1_000_000)[0] == 200)


@pytest.mark.parametrize("length_is_told", [True, False])
def test_a_large_body_does_not_grow_memory(server, http, length_is_told):
    import httpx

    size = 100_000_000
    headers = {"Content-Type": "application/json"}
    if length_is_told:
        headers["Content-Length"] = str(size)
    chunks = (b" " * 100_000 for _ in range(size // 100_000))
    with server.grows_by_less_than(10):
        try:
            status = http.post(
                f"{server.address}gradio_api/queue/join", content=chunks, headers=headers
            ).status_code
        except httpx.NetworkError:  # it is told and the connection closed before all was sent
            status = 413
    assert status == 413


def test_files_of_the_machine_are_not_given_away(server, http):
    api = f"{server.address}gradio_api/"
    kept = kept_at(server, 10)
    assert http.get(f"{api}file={kept}").status_code == 200
    for path in (
        server.folder / "c.pt",
        "/etc/passwd",
        kept.parent,
        f"{kept}/../../../../c.pt",
        "http://example.com/x.png",
        "captioning/serve.py",
    ):
        assert http.get(f"{api}file={path}").status_code == 404
    for path in ("deep_link?session_hash=x", "proxy=http://example.com", "process_recording"):
        assert http.get(api + path).status_code == 404
        assert http.post(api + path).status_code == 404
        assert http.get(f"{server.address}/gradio_api/{path}").status_code == 404


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
    before = server.files()
    page = http.get(server.address, headers=headers)
    sent = http.post(
        f"{server.address}gradio_api/upload", headers=headers, files={"files": ("a.png", b"x")}
    )
    asked = http.options(
        f"{server.address}gradio_api/upload",
        headers=headers | {"Access-Control-Request-Method": "POST"},
    )
    answers = (page.status_code, sent.status_code)
    if welcome:
        assert answers == (200, 200)
    else:
        assert answers == (403, 403) and asked.status_code == 403
        assert not server.files() - before
        assert "access-control-allow-origin" not in asked.headers
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_browser_is_told_to_talk_to_nobody_else(server, http):
    for path in ("", "nothing", "gradio_api/nothing", "gradio_api/info"):
        headers = http.get(server.address + path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_a_taken_port_is_named(server, attentive, grid_cnn):
    before = dict(os.environ)
    message = f"cannot listen on 127.0.0.1, port {server.port}: "
    with pytest.raises(CaptioningError, match=message):
        serve(attentive, grid_cnn, port=server.port)
    assert dict(os.environ) == before


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
    assert "fastlstm.PackedLSTMCell" in browser.page_source
    masks = browser.find_elements("css selector", ".attention img")
    assert masks and all(mask.get_property("naturalWidth") == 64 for mask in masks)


def test_a_visitor_is_told_what_to_do_and_may_click_on_an_example(browser, server):
    browser.refresh()
    wait_for(browser, lambda: "appear here" in said(browser))
    assert browser.title == "Caption a picture"
    assert browser.find_element("css selector", "h1").text == "Caption a picture"
    assert "scenes_cnn" in browser.find_element("css selector", ".about").text
    examples = browser.find_elements("css selector", ".gallery-item")
    assert len(examples) == 4
    examples[2].click()
    wait_for(browser, lambda: "Beam search" in said(browser))
    shown = browser.find_element("css selector", "[data-testid=image] img, .image-frame img")
    assert "examples/scene3.png" in shown.get_attribute("src")


def test_a_bad_picture_gets_a_message_in_the_browser(browser, bad):
    drop(browser, bad["not a picture"])
    wait_for(browser, lambda: "No caption: not a picture" in said(browser))


def test_a_large_picture_is_refused_in_the_browser(browser, tmp_path):
    noise = Image.frombytes("RGB", (1000, 1000), os.urandom(3_000_000))
    noise.save(tmp_path / "large.png")
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
    # The browser shows pages of its own, such as that of a new tab.
    local = (server.address, "data:", "blob:", "chrome:", "chrome-untrusted:")
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
