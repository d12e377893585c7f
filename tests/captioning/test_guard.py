"""Who may ask, and what the application holds, without a server."""

import asyncio
import json
import socket

import pytest

pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'fastlstm[serve]'")

import anyio
import uvicorn
from uvicorn.server import ServerState

import captioning.serving.app
import captioning.serving.guard
from captioning.errors import CaptioningError
from captioning.serving.app import CaptionApp
from captioning.serving.guard import Connection, Guard, Hosts


def caption(picture: bytes, beam_size: int) -> dict[str, int]:
    if picture == b"bad":
        raise CaptioningError("not a picture")
    return {"bytes": len(picture), "beam": beam_size}


@pytest.fixture
def app() -> CaptionApp:
    return CaptionApp("<h1>page</h1>", caption, max_bytes=100_000)


def ask(app: CaptionApp, *chunks: bytes | None, query: str = "", held: int = 0) -> tuple[int, str]:
    """Status and text of a request whose body comes in chunks.

    None waits for a long time, and after the last chunk the client leaves if it is empty.
    """
    coming, sent = list(chunks), []

    async def receive():
        if not coming or (chunk := coming.pop(0)) is None:
            await anyio.sleep(60)
        if not chunk:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(coming)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/caption",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost:7860")],
        "root_path": "",
    }
    anyio.run(Guard(app, Hosts("127.0.0.1")), scope, receive, send)
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    assert app.held == held
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:]).decode()


def test_answers_with_what_is_written_or_wrong(app):
    status, text = ask(app, b"x" * 60_000, b"x" * 40_000)
    assert status == 200 and json.loads(text) == {"bytes": 100_000, "beam": 0}
    assert json.loads(ask(app, b"x", query="beam=3")[1]) == {"bytes": 1, "beam": 3}
    assert ask(app, b"bad") == (422, '{"error":"not a picture"}')
    for beam in ("x", "-1", "2.5", ""):
        assert ask(app, b"x", query=f"beam={beam}") == (400, "beam: expected an integer")


def test_a_picture_is_bounded(app):
    status, text = ask(app, b"x" * 60_000, b"x" * 40_001)
    assert status == 413 and text == "The maximum size of a picture is 100,000 bytes."


def test_a_client_that_leaves_is_forgotten(app):
    assert ask(app, b"x" * 60_000, b"")[0] == 400


def test_a_slow_picture_is_given_up(app, monkeypatch):
    monkeypatch.setattr(captioning.serving.app, "BODY_SECONDS", 0.05)
    assert ask(app, b"x", None, b"x")[0] == 408


def test_what_is_held_at_a_time_is_bounded(app):
    app.held = 950_000  # by others
    assert ask(app, b"x" * 50_000, held=950_000)[0] == 200
    status, text = ask(app, b"x" * 50_001, held=950_000)
    assert status == 503 and "Try again later" in text


def test_too_many_that_wait_are_refused(app, monkeypatch):
    monkeypatch.setattr(captioning.serving.app, "MAX_WAITING", 0)
    assert ask(app, b"x")[0] == 503


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


def test_a_client_that_never_reads_is_sent_away(monkeypatch):
    """Its connection would count among the 500 for ever."""
    monkeypatch.setattr(captioning.serving.guard, "IDLE_SECONDS", 0.1)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 26)})

    async def run() -> None:
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_level="error")
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname(), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with anyio.fail_after(10):
                while not state.connections:
                    await asyncio.sleep(0.01)
                while state.connections:
                    await asyncio.sleep(0.1)
        server.close()

    asyncio.run(run())
