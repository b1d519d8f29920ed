"""The HTTP routes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ddt_accel import __version__
from ddt_accel.serving.answers import Drawn, Preview
from ddt_accel.serving.gate import Gate
from ddt_accel.serving.keys import Keys
from ddt_accel.serving.limits import Limits
from ddt_accel.serving.metrics import CONTENT_TYPE, Metrics
from ddt_accel.serving.offer import Offer, Order
from ddt_accel.serving.request import ImageRequest, RefusedError, no_json, refused

T = TypeVar("T")
_log = logging.getLogger(__name__)
Events = AsyncGenerator[Preview | Drawn, None]


class Pool(Protocol):
    """Whoever draws what is ordered; raises RefusedError where that does not work."""

    retried: int

    async def draw(self, order: Order) -> Drawn: ...

    def stream(self, order: Order) -> Events:
        """Previews, then the pictures."""

    async def running(self) -> int:
        """How many replicas there are that can answer."""


_REFUSALS = {400: "a field is wrong", 401: "no key", 404: "no such model", 408: "the body came too slowly",
             413: "too long", 429: "too many wait", 500: "the batch failed", 503: "no replica",
             504: "too late"}  # fmt: skip
_GONE = 499  # the client is no longer there


def application(pool: Pool, offer: Offer, limits: Limits, keys: Keys) -> FastAPI:
    """Everything a client sees; its description as OpenAPI is at /docs."""
    app = FastAPI(
        title="ddt-accel", version=__version__, openapi_url="/docs", docs_url=None, redoc_url=None,
        description=f"Images of {offer.model}.", redirect_slashes=False,
    )  # fmt: skip
    server = _Server(pool, offer, limits)
    app.add_middleware(Gate, keys=keys, most=limits.body_bytes, within=limits.timeout)
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_exception_handler(RequestValidationError, server.on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    told: dict[int | str, dict[str, Any]] = {status: {"description": words} for status, words in _REFUSALS.items()}
    app.post("/v1/images/generations", response_model=None, responses=told)(server.generate)
    app.get("/v1/models")(offer.models)
    app.get("/v1/schedules")(offer.shelf)
    app.get("/health", response_model=None)(server.health)
    app.get("/metrics", response_model=None)(server.metrics)
    return app


class _Tally:
    """How a request ends."""

    code = _GONE


class _Stream(StreamingResponse):
    """Server-sent events; what was open for them is closed however they end, also where none was sent."""

    def __init__(self, events: AsyncIterator[str], open_: contextlib.AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._open = open_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._open:
            await super().__call__(scope, receive, send)


class _Server:
    def __init__(self, pool: Pool, offer: Offer, limits: Limits) -> None:
        self._pool, self._offer, self._limits, self._metrics = pool, offer, limits, Metrics()
        self._usual = 1.0  # seconds that a request takes, of late
        self._open = 0

    async def generate(self, request: ImageRequest, client: Request) -> Response:
        """Draws images of a class."""
        began = time.monotonic()
        if request.stream:
            return await self._streamed(request, client, began)
        with self._counted(began) as tally:
            order = self._offer.order(request, self._limits)
            drawn = await self._within(_while_there(client, self._pool.draw(order)), began)
            if drawn is None:
                return Response(status_code=_GONE)
            self._drawn(order, drawn, began)
            tally.code = 200
        if request.response_format == "png":
            return Response(drawn.pngs[0], media_type="image/png", headers={"x-seed": str(order.seeds[0])})
        return JSONResponse(self._document(order, drawn.pngs))

    async def _streamed(self, request: ImageRequest, client: Request, began: float) -> Response:
        """What goes wrong before the first event has a status of its own."""
        async with contextlib.AsyncExitStack() as stack:
            tally = stack.enter_context(self._counted(began))
            order = self._offer.order(request, self._limits)
            events = await stack.enter_async_context(contextlib.aclosing(self._pool.stream(order)))
            first = await self._within(_while_there(client, anext(events)), began)
            if first is None:
                return Response(status_code=_GONE)
            return _Stream(self._events(order, events, first, began, tally), stack.pop_all())
        raise AssertionError

    async def _events(
        self, order: Order, events: Events, event: Preview | Drawn, began: float, tally: _Tally
    ) -> AsyncIterator[str]:
        """Server-sent events: previews, then each image, or an error."""
        try:
            while isinstance(event, Preview):
                yield _event(
                    "image_generation.partial_image", index=event.index, partial_image_index=event.number,
                    b64_json=_base64(event.png),
                )  # fmt: skip
                event = await self._within(anext(events), began)
        except RefusedError as error:
            tally.code = error.status
            yield _event("error", **error.document())
            return
        self._drawn(order, event, began)
        tally.code = 200
        for index, (seed, png) in enumerate(zip(order.seeds, event.pngs, strict=True)):
            yield _event("image_generation.completed", index=index, seed=seed, b64_json=_base64(png))

    @contextlib.contextmanager
    def _counted(self, began: float) -> Iterator[_Tally]:
        """Counts a request by how it ends, and lets no more in than may wait."""
        if self._open >= self._limits.queue:
            self._metrics.answered(429, time.monotonic() - began)
            said = f"{self._open} requests are waiting, and no more may; send this one again later."
            raise RefusedError(429, said, retry_after=max(1, math.ceil(self._usual)))
        tally = _Tally()
        self._opened(1)
        try:
            yield tally
        except RefusedError as error:
            tally.code = error.status
            raise
        finally:
            self._opened(-1)
            self._metrics.answered(tally.code, time.monotonic() - began)

    def _opened(self, more: int) -> None:
        self._open += more
        self._metrics.open.set(self._open)

    async def _within(self, work: Awaitable[T], began: float) -> T:
        """What becomes of the work in the time that a request has; raises RefusedError where that is over."""
        try:
            return await asyncio.wait_for(work, max(0.0, began + self._limits.timeout - time.monotonic()))
        except TimeoutError:
            raise RefusedError(504, f"There was no image within {self._limits.timeout:g} s.") from None

    def _drawn(self, order: Order, drawn: Drawn, began: float) -> None:
        seconds = time.monotonic() - began
        self._usual += 0.1 * (seconds - self._usual)
        self._metrics.drawn(order.schedule, drawn, seconds)

    def _document(self, order: Order, pngs: tuple[bytes, ...]) -> dict[str, Any]:
        return {
            "created": int(time.time()),
            "model": self._offer.model,
            "schedule": order.schedule,
            "label": order.label,
            "size": f"{self._offer.width}x{self._offer.height}",
            "output_format": "png",
            "data": [{"b64_json": _base64(png), "seed": seed} for seed, png in zip(order.seeds, pngs, strict=True)],
        }

    async def on_invalid(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        self._metrics.answered(400, 0.0)
        return answer(refused(error.errors()))

    async def health(self) -> Response:
        """200 where at least one replica can answer."""
        running = await self._pool.running()
        told = {"status": "ok" if running else "no replica", "replicas": running}
        return JSONResponse(told, status_code=200 if running else 503)

    async def metrics(self) -> Response:
        """Prometheus's text format."""
        return Response(self._metrics.text(self._pool.retried), media_type=CONTENT_TYPE)


async def _while_there(client: Request, work: Awaitable[T]) -> T | None:
    """What becomes of the work, or None where its client goes before that: then it is cancelled."""

    async def left() -> None:
        while (await client.receive())["type"] != "http.disconnect":
            pass

    at_work, gone = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((at_work, gone), return_when=asyncio.FIRST_COMPLETED)
        return at_work.result() if at_work.done() else None
    finally:
        at_work.cancel()
        gone.cancel()
        await asyncio.gather(at_work, gone, return_exceptions=True)


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def answer(error: RefusedError) -> JSONResponse:
    """A refusal as HTTP has it."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error.document(), status_code=error.status, headers=headers)


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return answer(error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's own, of a body that could not be decoded
        return answer(no_json())
    said = {404: f"There is no {request.url.path}; /docs says what there is.",
            405: f"{request.method} is not for {request.url.path}; /docs says what is."}  # fmt: skip
    return answer(RefusedError(error.status_code, said.get(error.status_code, f"{error.detail}.")))


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s could not be answered", request.method, request.url.path, exc_info=error)
    return answer(RefusedError(500, f"The server has a mistake: {type(error).__name__}."))
