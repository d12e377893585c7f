"""The page of `captioning serve`: everything that uses Gradio."""

import asyncio
import contextlib
import html
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from captioning.results import ATTENTION_STYLE
from captioning.serving.guard import LOG, in_a_line
from captioning.serving.uploads import Uploads

# Gradio prints tracebacks of what clients send wrong.
gradio.queueing.traceback = SimpleNamespace(  # type: ignore
    print_exc=lambda: LOG.warning("a request failed: %s", in_a_line(sys.exc_info()[1]))
)
MAX_BEAM = 10
MAX_WAITING = 50  # pictures

STYLE = (
    ATTENTION_STYLE
    + """
.answer h3 { margin: 0 0 .1rem; font-size: .95rem; color: var(--neutral-500); }
.answer section + section { margin-top: 1.6rem; }
.answer .caption { font-size: 1.45rem; line-height: 1.3; margin: 0 0 .6rem; }
.answer .words { display: flex; flex-wrap: wrap; gap: .35rem; margin-bottom: .8rem; }
.answer .words span { padding: .2rem .55rem .35rem; border-radius: 6px; text-align: center;
  background: linear-gradient(var(--color-accent), var(--color-accent)) left bottom / var(--p) 4px
  no-repeat, var(--background-fill-secondary); }
.answer .words small { display: block; color: var(--neutral-500); font-size: .75rem; }
.answer details { color: var(--neutral-500); margin: .4rem 0 .8rem; }
.answer.empty { border: 2px dashed var(--border-color-primary); border-radius: 8px;
  padding: 1.6rem; color: var(--neutral-500); }
.about { color: var(--neutral-500); font-size: .8rem; }
.answer .message { font-size: 1.1rem; color: var(--error-text-color); }
footer { display: none !important; }
"""
)
EMPTY = (
    '<div class="answer empty"><h3>The captions appear here:</h3>'
    '<p class="caption">a sentence about the picture</p><p>by greedy search and by beam search, '
    "and below each word how probable it was</p></div>"
)


class GradioPage:
    """A page with a picture and its captions, and the paths of Gradio's server that it needs.

    By default, Gradio keeps incomplete uploads, fetches pictures from addresses that clients give,
    and decodes pictures of any format and size. So uploads are received here, and `caption` gets
    the path of one of them, unopened.

    Args:
        caption: from a picture's file and the width of the beam to HTML.
        about: one line about the captioner.
        uploads: the kept pictures, below GRADIO_TEMP_DIR.
        max_bytes: of an upload.
        examples: pictures to click on, below GRADIO_TEMP_DIR too.
    """

    UPLOAD = "/gradio_api/upload"

    def __init__(
        self,
        caption: Callable[[str, int], str],
        about: str,
        uploads: Uploads,
        max_bytes: int,
        examples: Sequence[Path] = (),
    ) -> None:
        self.caption, self.about = caption, about
        self.uploads, self.max_bytes = uploads, max_bytes
        self.examples = [str(path) for path in examples]
        # What the page and Gradio's clients use; other paths write, fetch or read files. Gradio
        # copies the examples into folders named by hashes.
        folder = re.escape(str(uploads.folder.parent))
        upload = rf"{folder}[/\\](uploads|examples|[0-9a-f]{{64}})[/\\]\w+(\.\w+)?"
        api = (
            r"upload(_progress)?|cancel|reset|info|startup-events|queue/(join|data|status)|heartbeat/[\w-]+"
            rf"|call/(v2/)?caption(/[\w-]+)?|file={upload}"
        )
        self.paths = re.compile(rf"(?!/gradio_api/).*|/gradio_api/({api})/?")

    def app(self) -> ASGIApp:
        """The page and its uploads as an ASGI application."""
        return gradio.mount_gradio_app(
            FastAPI(
                routes=[
                    Route(self.UPLOAD, self._receive, methods=["POST"]),
                    Route(f"{self.UPLOAD}_progress", self._progress),
                ],
                lifespan=self._sweep,
                openapi_url=None,
            ),
            self._blocks(),
            path="/",
            max_file_size=self.max_bytes,
            theme=gradio.themes.Default(font="system-ui", font_mono="ui-monospace"),
            css=STYLE,
            footer_links=[],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )

    def _blocks(self) -> gradio.Blocks:
        with gradio.Blocks(title="Caption a picture", analytics_enabled=False) as page:
            hint = "click on an example" if self.examples else "paste one"
            gradio.HTML(f"<h1>Caption a picture</h1><p>Drop a picture, or {hint}.</p>")
            with gradio.Row():
                with gradio.Column(scale=2):
                    picture = gradio.Image(
                        sources=["upload", "clipboard"], label="Picture", height=340, buttons=[]
                    )
                    if self.examples:
                        examples = gradio.Dataset(
                            components=[gradio.Image(render=False)],
                            samples=[[path] for path in self.examples],
                            type="index",
                            label="Examples",
                        )
                        examples.click(
                            self._example,
                            examples,
                            picture,
                            postprocess=False,
                            api_visibility="private",
                        )
                    width = gradio.Slider(1, MAX_BEAM, 5, step=1, label="Beam width")
                with gradio.Column(scale=3):
                    result = gradio.HTML(EMPTY)
            gradio.HTML(f'<p class="about">{html.escape(self.about)}</p>')
            for component in (picture, width):  # a client may send a file for either
                component.async_move_resource_to_block_cache = self._uploaded  # type: ignore
            gradio.on(
                [picture.change, width.release],
                self._caption,
                [picture, width],
                result,
                api_name="caption",
                show_progress="minimal",
                preprocess=False,
            )
        return page.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=1)

    def _example(self, index: int) -> dict[str, Any]:
        """What Gradio's page knows an example by."""
        path = self.examples[index]
        url = f"/gradio_api/file={path}"
        return {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}}

    async def _caption(self, picture: dict[str, Any] | None, width: float) -> str:
        if not picture:
            return EMPTY
        path = await self._uploaded(picture["path"])
        beam_size = min(max(int(width), 1), MAX_BEAM)
        try:
            return await run_in_threadpool(self.caption, path, beam_size)
        except Exception as error:
            LOG.exception("a picture could not be captioned")
            raise gradio.Error("the server failed", print_exception=False) from error

    async def _uploaded(self, path: str) -> str:
        if path not in self.examples and path not in self.uploads:
            raise gradio.Error(
                "expected an uploaded picture (they are kept for an hour at most), got the path or "
                "the address of something else",
                print_exception=False,
            )
        return path

    async def _receive(self, request: Request) -> Response:
        """Gradio's upload, for one file."""
        try:
            async with request.form(max_files=1, max_fields=1) as form:
                upload = form.get("files")
                if not isinstance(upload, UploadFile):
                    raise HTTPException(400, "expected a file, called files")
                size, name = upload.size or 0, upload.filename or ""
                path = await run_in_threadpool(self.uploads.keep, upload.file, size, name)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody receives
        except OSError as error:
            raise HTTPException(507, f"no room for the picture: {error.strerror}") from error
        return JSONResponse([str(path)])

    async def _progress(self, request: Request) -> Response:
        """Gradio's page asks for the progress of an upload; it needs no answer."""
        return Response(media_type="text/event-stream")

    @contextlib.asynccontextmanager
    async def _sweep(self, app: FastAPI) -> AsyncIterator[None]:
        """Delete old uploads while the server runs."""

        async def repeat() -> None:
            while True:
                await asyncio.sleep(600)
                await run_in_threadpool(self.uploads.sweep)

        task = asyncio.create_task(repeat())
        yield
        task.cancel()
