"""Runs the app with uvicorn: bounded headers, a deadline for them, and a graceful stop."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hashlens.errors import HashlensError, system_reason
from hashlens.service.limits import Limits

_GRACE_SECONDS = 30
_KEEP_ALIVE_SECONDS = 15


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on a client that sends no headers, or reads no answer, in time."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._due: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch("headers")
        self._unwatch("reading")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch("headers")
        elif "headers" not in self._due:
            self._watch()

    def pause_writing(self) -> None:
        """The client has left so much unread that no more can be sent."""
        super().pause_writing()
        seconds = self._limits.send_seconds
        self._due["reading"] = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads on."""
        self._unwatch("reading")
        super().resume_writing()

    def _watch(self) -> None:
        seconds = self._limits.header_seconds
        self._due["headers"] = self.loop.call_later(seconds, self._give_up)

    def _unwatch(self, what: str) -> None:
        if timer := self._due.pop(what, None):
            timer.cancel()

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Calls back once it accepts connections."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()


def make_server(app: FastAPI, limits: Limits, started: Callable[[], None]) -> uvicorn.Server:
    """A server for ``app``; ``run(sockets=[listen(host, port)])`` runs it."""
    config = uvicorn.Config(
        app,
        http=partial(DeadlineProtocol, limits=limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=limits.header_bytes,
        limit_concurrency=8 * limits.bodies,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        server_header=False,
        access_log=False,
        log_level="warning",
    )
    return _Server(config, started)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = system_reason(error).partition(" (")[0]
        raise HashlensError(
            f"{host} port {port}: cannot listen there ({reason}); choose another with --port"
        ) from None


def serve(
    app: FastAPI, host: str, port: int, limits: Limits, announce: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; requests that are being answered are finished first."""
    if sys.__stderr__ is not None:
        # a mapped file that is cut while it is read ends the process: say where
        faulthandler.enable(sys.__stderr__)
    with listen(host, port) as bound:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound.getsockname()[1]}"
        server = make_server(app, limits, lambda: announce(url))
        # uvicorn raises the signal again once it has stopped; by then there is nothing left to do.
        stops = (signal.SIGTERM, signal.SIGINT)
        before = {sig: signal.signal(sig, lambda *_: None) for sig in stops}
        mask = os.umask(0o077)  # pictures and what clients say of them are nobody else's
        try:
            server.run(sockets=[bound])
        finally:
            os.umask(mask)
            for sig, handler in before.items():
                signal.signal(sig, handler)
        if not server.started:
            raise HashlensError("the service could not start; the lines above say why")
