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
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._unwatch_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._headers_due is None:
            self._watch()

    def pause_writing(self) -> None:
        """The client has left so much unread that no more can be sent."""
        super().pause_writing()
        seconds = self._limits.send_seconds
        self._reading_due = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads on."""
        self._unwatch_reading()
        super().resume_writing()

    def _unwatch_reading(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def _watch(self) -> None:
        self._headers_due = self.loop.call_later(self._limits.header_seconds, self._give_up)

    def _unwatch(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

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
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise HashlensError(
            f"{host} port {port}: cannot listen there ({system_reason(error)}); "
            "choose another with --port"
        ) from None
    return bound


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
        before = {sig: signal.signal(sig, _stopped) for sig in (signal.SIGTERM, signal.SIGINT)}
        mask = os.umask(0o077)  # pictures and what clients say of them are nobody else's
        try:
            server.run(sockets=[bound])
        finally:
            os.umask(mask)
            for sig, handler in before.items():
                signal.signal(sig, handler)
        if not server.started:
            raise HashlensError("the service could not start; the lines above say why")


def _stopped(*_: object) -> None:
    pass
