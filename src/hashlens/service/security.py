"""The service's door: bounds on what comes in, headers on what goes out, the key for writing."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlens.service.limits import Limits
from hashlens.service.metrics import Metrics
from hashlens.service.schemas import Refused

log = logging.getLogger("hashlens.service")

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names that a browser on this machine may ask for."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every response."""

_PORT = re.compile(r":\d*$")


class Door:
    """Every request comes in and every answer goes out through here.

    A request must ask for one of ``host_names``. A page elsewhere may have its own name resolve
    to 127.0.0.1 and would then read the answers (DNS rebinding); its requests still carry its own
    name. The size of a body, the time it takes and the number that arrive at once are bounded.
    Each answer gets the protective headers and is counted. An error that nothing else has caught
    becomes a 500; the log, not the client, learns why.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        host_names: Sequence[str] | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._host_names = None if host_names is None else frozenset(host_names)
        self._bodies = Slots(limits.bodies, "too many uploads at once")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, began = False, time.perf_counter()

        async def send_out(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
                self._metrics.count(scope, message["status"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._metrics.time(scope, time.perf_counter() - began)

        try:
            self._check_head(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self._app(scope, receive, send_out)
            else:
                async with contextlib.AsyncExitStack() as arriving:
                    await arriving.enter_async_context(self._bodies.take())
                    await self._app(scope, self._bounded(receive, arriving), send_out)
        except (Exception, asyncio.CancelledError) as error:
            if started:
                raise
            if isinstance(error, asyncio.CancelledError):
                error = Refused(503, "the service stops; ask again later", Retry_After="5")
            elif not isinstance(error, Refused):
                log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
                error = Refused(500, "internal error; the server's log says more")
            await error.answer()(scope, receive, send_out)

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _PORT.sub("", headers.get("host", "")).lower()
        if self._host_names is not None and host not in self._host_names:
            raise Refused(
                421, f"unknown host; ask for one of: {', '.join(sorted(self._host_names))}"
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        line = f"the request is too large; at most {self._limits.body_bytes:,} bytes are accepted"
        return Refused(413, line, Connection="close")

    def _bounded(self, receive: Receive, arriving: contextlib.AsyncExitStack) -> Receive:
        """``receive`` with its bounds; ``arriving`` ends once the body is there."""
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        received = 0
        whole = False

        async def receive_in() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                line = f"the request took longer than {self._limits.body_seconds:g} s to arrive"
                raise Refused(408, line, Connection="close") from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self._limits.body_bytes:
                raise self._too_large()
            if whole:  # a client that does not read its answer holds up no other upload
                await arriving.aclose()
            return message

        return receive_in


class Slots:
    """A bound on what runs or waits; past it a request is refused instead of queued."""

    def __init__(self, capacity: int, what: str) -> None:
        self.capacity = capacity
        self.taken = 0
        self._what = what

    @contextlib.asynccontextmanager
    async def take(self, count: int = 1) -> AsyncIterator[None]:
        """Hold ``count`` slots."""
        if self.taken + count > self.capacity:
            line = f"the service is busy ({self._what}); try again in a second"
            raise Refused(503, line, Retry_After="1")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


_bearer = HTTPBearer(auto_error=False, description="The key given to `hashlens serve`.")


def require_key(key: str | None) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request write if it carries ``key``; without a key, none may."""

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> None:
        if key is None:
            raise Refused(403, "this service is read-only: it was started without an API key")
        if given is None or not hmac.compare_digest(given.credentials.encode(), key.encode()):
            raise Refused(
                401,
                "writing needs the API key: send it as 'Authorization: Bearer KEY'",
                WWW_Authenticate="Bearer",
            )

    return check
