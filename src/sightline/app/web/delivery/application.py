"""The explorer's web application: the pages of the site, and the API of the live tab."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sightline.app.web.delivery.answers import read_site_file
from sightline.app.web.delivery.guard import MAX_BODY_BYTES
from sightline.app.web.delivery.live.network import LiveNetwork
from sightline.app.web.delivery.live.schema import (
    LiveAnswer,
    LiveError,
    LiveImage,
    LiveRequest,
    LiveState,
)
from sightline.app.web.delivery.request_queue import QueueFullError, RequestQueue
from sightline.app.web.explorer.explorer import Explorer
from sightline.errors import (
    MemoryLackError,
    SightlineError,
    escape_text_for_display,
    get_first_error_line,
)

logger = logging.getLogger(__name__)

# Pages and pictures that are made at the same time; more would only share the processor.
MAX_FILES_AT_ONCE = 4

RETRY_SECONDS = 1

IMMUTABLE = "private, max-age=31536000, immutable"
REVALIDATED = "private, no-cache"

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": LiveError, "description": "What was sent can't be used"},
    404: {"model": LiveError, "description": "There is no such thing"},
    422: {"model": LiveError, "description": "What was sent has another form"},
    429: {"model": LiveError, "description": "Too many requests wait; Retry-After says when"},
    503: {"model": LiveError, "description": "There is no network, or not enough memory"},
}


def make_application(explorer: Explorer) -> FastAPI:
    """The application. It answers the pages of the site, and `/api/…`.

    The description of the API is at `/api/openapi.json`.
    """
    application = FastAPI(
        title="Sightline explorer",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=_limit_threads,
    )
    _add_error_handlers(application)
    live = None
    if explorer.model is not None:
        live = LiveNetwork(explorer, explorer.model, MAX_BODY_BYTES)
    _add_live_routes(application, live)
    _add_site_route(application, explorer)
    return application


@asynccontextmanager
async def _limit_threads(application: FastAPI) -> AsyncGenerator[None, None]:
    application.state.queue = RequestQueue()
    application.state.limiter = anyio.CapacityLimiter(MAX_FILES_AT_ONCE)
    yield


# ── the site ──


def _add_site_route(application: FastAPI, explorer: Explorer) -> None:
    @application.get("/{address:path}", include_in_schema=False)
    @application.head("/{address:path}", include_in_schema=False)
    async def read_file(address: str, request: Request) -> Response:
        file = await anyio.to_thread.run_sync(
            read_site_file, explorer, address, limiter=application.state.limiter
        )
        if file is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such page")
        cache_control = IMMUTABLE if file.is_immutable else REVALIDATED
        headers = {"etag": file.tag, "cache-control": cache_control}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)


# ── the live tab ──


def _add_live_routes(application: FastAPI, live: LiveNetwork | None) -> None:
    def require_live() -> LiveNetwork:
        if live is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "the network can't be had")
        return live

    def take_turn(request: Request) -> Any:
        client = request.client.host if request.client else ""
        return application.state.queue.take_turn(client)

    @application.get("/api/state", responses=ERRORS)
    async def read_state() -> LiveState:
        """What can be asked for."""
        return await anyio.to_thread.run_sync(require_live().describe)

    @application.post(
        "/api/images",
        responses=ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def send_image(request: Request) -> LiveImage:
        """Takes a picture's file as it is, decodes it, and keeps it in memory."""
        network = require_live()
        async with take_turn(request):
            content = await request.body()
            upload = await anyio.to_thread.run_sync(network.uploads.add, content)
        return LiveImage(
            image=upload.name,
            height=upload.height,
            width=upload.width,
            size=network.uploads.size,
        )

    @application.get("/api/images/{name}.png", responses=ERRORS, response_class=Response)
    async def read_image(name: str) -> Response:
        """What the network sees of an image that was sent, as PNG."""
        network = require_live()
        content = await anyio.to_thread.run_sync(_encode_upload, network, name)
        return Response(content, media_type="image/png", headers={"cache-control": "no-store"})

    @application.post("/api/answer", responses=ERRORS)
    async def answer(change: LiveRequest, request: Request) -> LiveAnswer:
        """What the network makes of an image that is covered in part, with units switched off."""
        network = require_live()
        async with take_turn(request):
            return await anyio.to_thread.run_sync(network.answer, change)


def _encode_upload(network: LiveNetwork, name: str) -> bytes:
    from sightline.images.io.pictures import encode_png

    return encode_png(network.model.to_picture(network.uploads.get(name).image))


# ── errors ──


def _add_error_handlers(application: FastAPI) -> None:
    @application.exception_handler(SightlineError)
    async def refuse(_request: Request, error: SightlineError) -> JSONResponse:
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, MemoryLackError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        return _make_error_answer(status, str(error))

    @application.exception_handler(HTTPException)
    async def refuse_address(_request: Request, error: HTTPException) -> JSONResponse:
        answer = _make_error_answer(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @application.exception_handler(RequestValidationError)
    async def refuse_form(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _make_error_answer(HTTPStatus.UNPROCESSABLE_ENTITY, _describe_form_error(error))

    @application.exception_handler(QueueFullError)
    async def refuse_for_now(_request: Request, _error: QueueFullError) -> JSONResponse:
        answer = _make_error_answer(
            HTTPStatus.TOO_MANY_REQUESTS, "too many requests wait; send the next after the answer"
        )
        answer.headers["retry-after"] = str(RETRY_SECONDS)
        return answer

    @application.exception_handler(Exception)
    async def report_bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        reason = f"an error of ours: {type(error).__name__}: {get_first_error_line(error)}"
        return _make_error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, reason)


def _make_error_answer(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": escape_text_for_display(reason)}, status_code=status)


def _describe_form_error(error: RequestValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    place = ".".join(str(key) for key in first["loc"] if key != "body")
    message = str(first["msg"])
    return f"{place}: {message}" if place else message
