"""What a request passes before anything of it is read: the key, and how long its body may be."""

from __future__ import annotations

import asyncio

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddt_accel.serving.keys import Keys
from ddt_accel.serving.request import RefusedError

OPEN = ("/health",)  # whoever watches over the server has no key


class Gate:
    """An ASGI middleware around `app`; bodies are of `most` bytes, whatever their headers say, and have come `within`
    so many seconds."""

    def __init__(self, app: ASGIApp, *, keys: Keys, most: int, within: float) -> None:
        self._app, self._keys, self._most, self._within = app, keys, most, within

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN and not self._keys.admit(headers.get("authorization")):
            told = RefusedError(401, "There is no valid key; send one as Authorization: Bearer KEY.").document()
            await JSONResponse(told, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._body(headers, receive), self._within)
        except TimeoutError:
            body = RefusedError(408, f"The body did not come within {self._within:g} s.")
        if isinstance(body, RefusedError):
            await JSONResponse(body.document(), body.status, {"connection": "close"})(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()  # that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | RefusedError:
        """The body, or what is told where it is too long."""
        too_long = RefusedError(413, f"The body is longer than the {self._most} bytes that it may have.")
        said = headers.get("content-length", "0")
        if said.isdecimal() and int(said) > self._most:
            return too_long
        body = b""
        while True:
            message = await receive()
            body += bytes(message.get("body", b""))
            if len(body) > self._most:
                return too_long
            if message["type"] != "http.request" or not message.get("more_body"):
                return body
