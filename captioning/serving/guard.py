"""Who may ask: connections that end when nothing is asked on them, and ASGI middleware that refuses
other names of the server, and requests from strangers' pages in a user's browser."""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

IDLE_SECONDS = 10.0  # for a request to begin

# Sent with every answer: the page may load from and talk to this server only, no other page may
# show it, and browsers do not guess the types of files.
HEADERS = {
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' data: blob:; object-src 'none'; form-action 'self'; "
        "frame-ancestors 'self'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


class Connection(H11Protocol):
    """A connection that ends if nothing is asked or read on it for one or two `IDLE_SECONDS`.

    uvicorn would wait without end for the first request, for the rest of one that has begun, and
    for somebody to read an answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(IDLE_SECONDS, self._check, None, 0)

    def _check(self, before: RequestResponseCycle | None, unread: int) -> None:
        """End it if nothing was read of `unread` bytes, or no request was answered, since then."""
        answers = self.cycle and not self.cycle.response_complete
        left = self.transport.get_write_buffer_size()
        if left and left == unread:
            self.transport.abort()
        elif self.cycle is before and not answers and not left:
            self.transport.close()
        elif left or not self.transport.is_closing():
            last = None if answers else self.cycle
            self.loop.call_later(IDLE_SECONDS, self._check, last, left)


class Hosts:
    """The names and addresses of a server: the host that it listens on, and others allowed.

    Without this check, a page of evil.example could let its own name point to this machine (DNS
    rebinding) and read all answers. An IP address cannot be redirected.
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


def _name(netloc: str) -> str:
    """The host of host:port, without the brackets of an IPv6 address; "" if it is not valid."""
    try:
        parts = urlsplit(f"//{netloc}")
        return "" if "@" in netloc or parts.path else parts.hostname or ""
    except ValueError:
        return ""


class Guard(BaseHTTPMiddleware):
    """Refuses other names and other pages' requests, and adds `HEADERS` to each answer."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        super().__init__(app)
        self.hosts = hosts

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        names, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        response: Response
        if len(names) != 1 or not self.hosts.knows(names[0]):
            told = f"The server is not called {', '.join(names) or 'nothing'} (see --allow-host)."
            response = PlainTextResponse(told, 403)
        elif not all(self.hosts.trusts(origin, names[0]) for origin in origins):
            told = f"Pages of {', '.join(origins)} may ask nothing here."
            response = PlainTextResponse(told, 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response
