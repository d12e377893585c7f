"""The page and its captions as an ASGI application, which bounds what it holds."""

from collections.abc import Callable
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from captioning.errors import CaptioningError

BODY_SECONDS = 120.0  # for all of a picture to arrive
MAX_HELD = 10  # largest pictures that are in memory at a time
MAX_WAITING = 50  # pictures


class CaptionApp(Starlette):
    """Answers ``GET /`` with a page, and ``POST /caption?beam=5`` of a picture with JSON.

    `caption` makes the latter from the content of the picture's file and the width of the beam,
    which is 0 if it is not given.
    """

    def __init__(
        self, page: str, caption: Callable[[bytes, int], dict[str, Any]], max_bytes: int
    ) -> None:
        self.caption, self.max_bytes = caption, max_bytes
        self.one_at_a_time = anyio.CapacityLimiter(1)
        self.held = 0  # bytes of pictures
        routes = [
            Route("/", lambda _: HTMLResponse(page)),
            Route("/caption", self._caption, methods=["POST"]),
        ]
        super().__init__(routes=routes)

    async def _caption(self, request: Request) -> Response:
        beam = request.query_params.get("beam", "0")
        if not beam.isdecimal():
            raise HTTPException(400, "beam: expected an integer")
        picture = bytearray()
        try:
            await self._receive(request, picture)
            found = await anyio.to_thread.run_sync(
                self.caption, bytes(picture), int(beam[:9]), limiter=self.one_at_a_time
            )
        except CaptioningError as error:
            return JSONResponse({"error": str(error)}, 422)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody receives
        finally:
            self.held -= len(picture)
        return JSONResponse(found)

    async def _receive(self, request: Request, picture: bytearray) -> None:
        """Append the body of a request to `picture`, within the bounds."""
        if self.one_at_a_time.statistics().tasks_waiting >= MAX_WAITING:
            raise HTTPException(503, "Too many pictures are waiting. Try again later.")
        try:
            with anyio.fail_after(BODY_SECONDS):
                async for part in request.stream():
                    picture += part
                    self.held += len(part)
                    if len(picture) > self.max_bytes:
                        told = f"The maximum size of a picture is {self.max_bytes:,} bytes."
                        raise HTTPException(413, told)
                    if self.held > MAX_HELD * self.max_bytes:
                        raise HTTPException(503, "Too many pictures arrive. Try again later.")
        except TimeoutError:
            raise HTTPException(408, f"The picture took over {BODY_SECONDS:.0f} s.") from None
