"""The middleware in front of Gradio, before a small application of its own."""

import re

import pytest

pytest.importorskip("gradio", reason="needs Gradio: pip install 'fastlstm[serve]'")

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import captioning.serving.guard
from captioning.serving.guard import Guard, Hosts
from captioning.serving.uploads import Limits


async def length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def guard() -> Guard:
    app = Starlette(routes=[Route(path, length, methods=["POST"]) for path in ("/up", "/other")])
    limits = Limits(max_megabytes=0.1, keep_megabytes=0.15)
    return Guard(app, Hosts("127.0.0.1"), re.compile("/up|/other"), "/up", limits)


def post(guard: Guard, *chunks: bytes | None, path: str = "/up") -> tuple[int, str]:
    """Status and text of a request whose body comes in chunks; None waits for a long time."""
    coming, sent = iter(chunks), []

    async def receive():
        if (chunk := next(coming, b"")) is None:
            await anyio.sleep(60)
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost:7860")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "root_path": ""}
    anyio.run(guard, scope, receive, send)
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    return sent[0]["status"], sent[1]["body"].decode()


def test_a_body_is_bounded_by_its_path(guard):
    assert post(guard, b"x" * 60_000, b"x" * 40_000) == (200, "100000")
    assert post(guard, b"x" * 60_000, b"x" * 40_001)[0] == 413
    assert post(guard, b"x" * 65_536, path="/other") == (200, "65536")
    assert post(guard, b"x" * 65_537, path="/other")[0] == 413
    assert guard.arriving == 0


def test_a_slow_body_is_given_up(guard, monkeypatch):
    monkeypatch.setattr(captioning.serving.guard, "BODY_SECONDS", 0.05)
    assert post(guard, b"x", None, b"x")[0] == 408
    assert guard.arriving == 0


def test_what_arrives_at_a_time_is_bounded(guard):
    guard.arriving = 100_000  # by others
    assert post(guard, b"x" * 50_000)[0] == 200
    status, text = post(guard, b"x" * 50_001)
    assert status == 503 and "Try again later" in text
    assert guard.arriving == 100_000


@pytest.mark.parametrize(
    ("listening", "known", "unknown"),
    [
        ("127.0.0.1", ["localhost:1", "LOCALHOST", "127.0.0.9", "[::1]:1"], ["192.168.0.2", "box"]),
        ("192.168.0.2", ["192.168.0.2:80", "127.0.0.1"], ["192.168.0.3", "0.0.0.0"]),
        ("::1", ["[::1]"], ["[::2]:7860"]),
        ("box", ["box", "BOX:7860"], ["box.evil.example", "192.168.0.2"]),
        ("0.0.0.0", ["192.168.0.2", "[fe80::1]:1", "10.0.0.1:7860"], ["evil.example"]),
    ],
)
def test_the_names_of_a_server(listening, known, unknown):
    hosts = Hosts(listening, ["Captions.Example"])
    for host in [*known, "captions.example", "captions.example:443"]:
        assert hosts.knows(host), host
    for host in [*unknown, "", "localhost.", "a@localhost", "localhost/x", "[::1", "evil.example"]:
        assert not hosts.knows(host), host


def test_a_server_for_everybody_goes_by_the_name_of_its_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    assert Hosts("0.0.0.0").knows("box:7860") and not Hosts("127.0.0.1").knows("box:7860")
