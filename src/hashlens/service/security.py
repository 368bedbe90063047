"""Response headers, the key for writing, and bounds on what is received."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import HTTPException as BodyError  # FastAPI lets this one through while parsing
from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlens.service.batching import Slots
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names that a browser on this machine may ask for."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_PORT = re.compile(r":\d*$")
_bearer = HTTPBearer(auto_error=False, description="The key given to `hashlens serve`.")


async def require_key(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Let a request write if it carries the service's key."""
    key: str | None = request.app.state.api_key
    if key is None:
        raise Refused(403, "this service is read-only: it was started without an API key")
    if given is None or not hmac.compare_digest(given.credentials.encode(), key.encode()):
        raise Refused(
            401,
            "writing needs the API key: send it as 'Authorization: Bearer KEY'",
            WWW_Authenticate="Bearer",
        )


class SecureHeaders:
    """Adds the same protective headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)


class HostGuard:
    """Refuses requests for other names, so that no web site can pose as this machine.

    A page elsewhere may have its own name resolve to 127.0.0.1 and would then read the answers
    (DNS rebinding); its requests still carry its own name.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if _PORT.sub("", host).lower() not in self._names:
                line = f"unknown host; ask for one of: {', '.join(sorted(self._names))}"
                await _answer(Refused(421, line), scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyGuard:
    """Bounds the size of a request's body, the time it takes, and how many come at once."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._bodies = Slots(limits.bodies, "too many uploads at once")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limits.body_bytes:
            await _answer(self._too_large(), scope, receive, send)
            return
        try:
            async with self._bodies.take():
                await self._app(scope, self._guarded(receive), send)
        except Refused as refusal:
            await _answer(refusal, scope, receive, send)

    def _too_large(self) -> BodyError:
        line = f"the request is too large; at most {self._limits.body_bytes:,} bytes are accepted"
        return BodyError(413, line, {"Connection": "close"})

    def _guarded(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        received = 0
        whole = False

        async def guarded() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                line = f"the request took longer than {self._limits.body_seconds:g} s to arrive"
                raise BodyError(408, line, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self._limits.body_bytes:
                raise self._too_large()
            return message

        return guarded


async def _answer(refusal: BodyError | Refused, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(
        {"detail": str(refusal.detail)}, refusal.status_code, dict(refusal.headers or {})
    )
    await response(scope, receive, send)


Answer = TypeVar("Answer")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Await ``work``, and cancel it if the client hangs up first; the body must be read already."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "the client has gone")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
