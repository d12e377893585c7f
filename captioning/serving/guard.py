"""What lets requests in: connections that end when nothing is asked on them, and ASGI middleware
that refuses requests from strangers, and from their pages in a user's browser.

Imports Starlette and uvicorn, which come with Gradio.
"""

import asyncio
import ipaddress
import logging
import math
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from captioning.console import printable
from captioning.serving.uploads import Limits

BODY_BYTES = 2**16  # of a request that is not an upload; the page's have a few hundred
BODY_SECONDS = 120.0  # for all of a body to arrive
IDLE_SECONDS = 10.0  # for a request to begin

LOG = logging.getLogger("uvicorn.error")

# Sent with every answer: the page may load from and talk to this server only, no other page may
# show it, and browsers do not guess the types of files.
HEADERS = {
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def in_a_line(error: object) -> str:
    """An error that a client caused, for the log."""
    return printable(f"{type(error).__name__}: {error}")[:300]


class Connection(H11Protocol):
    """A connection that is closed if nothing is asked on it for `IDLE_SECONDS`, or twice as long.

    uvicorn would wait without end for the first request, and for the rest of one that has begun.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._check_again(None)

    def _check_again(self, cycle: RequestResponseCycle | None) -> None:
        self.loop.call_later(IDLE_SECONDS, self._check, cycle)

    def _check(self, before: RequestResponseCycle | None) -> None:
        """Close it if no request is being answered, and none was at the last check."""
        if self.cycle and not self.cycle.response_complete:
            self._check_again(None)
        elif self.cycle is before:
            self.transport.close()
        elif not self.transport.is_closing():
            self._check_again(self.cycle)


class Hosts:
    """The names and addresses of a server.

    Without this check, a page of evil.example could let its own name point to this machine (DNS
    rebinding) and read all answers. An IP address cannot be redirected.

    Args:
        listening: the host that the server listens on.
        allowed: more names, such as a reverse proxy's.
    """

    def __init__(self, listening: str, allowed: Iterable[str] = ()) -> None:
        self.allowed = {name.lower() for name in allowed}
        self.names = self.allowed | {"localhost", listening.lower()}
        self.everywhere = listening in ("0.0.0.0", "::")
        if self.everywhere:
            self.names.add(socket.gethostname().lower())

    def knows(self, host: str) -> bool:
        """Whether the value of a Host header, such as localhost:7860, is this server."""
        name = _name(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return address.is_loopback or self.everywhere or name in self.names

    def trusts(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is one of the server that it calls by the name `host`."""
        netloc = origin.rpartition("://")[2].lower()
        return netloc == host.lower() or _name(netloc) in self.allowed

    def proxied(self, headers: Headers) -> bool:
        """Whether a request is for the name of a reverse proxy, whose headers are believed."""
        names = headers.get("x-forwarded-host") or headers.get("host", "")
        return _name(names.split(",")[0].strip()) in self.allowed


def _name(netloc: str) -> str:
    """The host of host:port, without the brackets of an IPv6 address; "" if it is not valid."""
    try:
        parts = urlsplit(f"//{netloc}")
        return "" if "@" in netloc or parts.path else parts.hostname or ""
    except ValueError:
        return ""


class Guard:
    """Refuses other names, other pages' requests, and bodies that are too large or too slow.

    Args:
        app: the guarded application.
        hosts: the names of the server.
        paths: matches the paths that exist.
        upload_path: the path whose requests may be large.
        limits: of the size of one upload, and of all that are arriving.
    """

    def __init__(
        self, app: ASGIApp, hosts: Hosts, paths: re.Pattern[str], upload_path: str, limits: Limits
    ) -> None:
        self.app, self.hosts, self.paths = app, hosts, paths
        self.upload_path, self.limits = upload_path, limits
        self.arriving = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # start and end of the server
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        body = _Body(self, receive, self._limit(scope["path"]))
        headers = Headers(scope=scope)
        if not self.hosts.proxied(headers):  # Gradio would believe anybody
            claims = (b"x-forwarded-", b"x-gradio-server")
            kept = [header for header in scope["headers"] if not header[0].startswith(claims)]
            scope = {**scope, "headers": kept}
        try:
            self._check(scope["path"], headers)
            await self.app(scope, body, answer)
        except HTTPException as refusal:
            response = PlainTextResponse(refusal.detail, refusal.status_code)
            await response(scope, receive, answer)
        except Exception as error:  # by Gradio, whose checks of what clients send have gaps
            LOG.warning("%s %s: %s", scope["method"], printable(scope["path"]), in_a_line(error))
        finally:
            self.arriving -= body.length

    def _limit(self, path: str) -> int:
        return self.limits.upload_bytes if path == self.upload_path else BODY_BYTES

    def _check(self, path: str, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if not (len(hosts) == 1 and self.hosts.knows(hosts[0])):
            names = ", ".join(hosts) or "nothing"
            raise HTTPException(403, f"The server is not called {names} (see --allow-host).")
        if not all(self.hosts.trusts(origin, hosts[0]) for origin in origins):
            raise HTTPException(403, f"Pages of {', '.join(origins)} may ask nothing here.")
        if not self.paths.fullmatch(path):
            raise HTTPException(404, "There is no such path.")
        if int(headers.get("content-length", 0)) > (limit := self._limit(path)):
            raise _too_large(limit)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The request exceeds its maximum size of {limit:,} bytes.")


class _Body:
    """Receives a body; refuses it if it is too large, too slow, or one too many at the time.

    Starlette and FastAPI answer an HTTPException wherever they read a body.
    """

    def __init__(self, guard: Guard, receive: Receive, limit: int) -> None:
        self.guard, self.receive, self.limit = guard, receive, limit
        self.length = 0
        self.deadline = anyio.current_time() + BODY_SECONDS

    async def __call__(self) -> Message:
        try:
            with anyio.fail_after(self.deadline - anyio.current_time()):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"The request took over {BODY_SECONDS:.0f} s.") from None
        if not message.get("more_body"):
            self.deadline = math.inf  # the next message is that the client has left
        self.length += (length := len(message.get("body", b"")))
        self.guard.arriving += length
        if self.length > self.limit:
            raise _too_large(self.limit)
        if self.guard.arriving > self.guard.limits.kept_bytes:
            raise HTTPException(503, "Too many uploads are arriving. Try again later.")
        return message
