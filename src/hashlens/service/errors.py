"""Refusals of the service: a status and one clear line, never a stack or a path."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlens.errors import HashlensError, IndexStoreError

log = logging.getLogger("hashlens.service")


class ServiceError(HashlensError):
    """The service cannot run as asked."""


class Refused(HTTPException):
    """A request that is answered with ``status`` and one line."""

    def __init__(self, status: int, line: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, line, named or None)


def busy(what: str) -> Refused:
    """Too much waits already; the client should come back."""
    return Refused(503, f"the service is busy ({what}); try again in a second", Retry_After="1")


def validation_line(error: RequestValidationError) -> str:
    """The first thing that does not fit, as ``field: reason``."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
    return f"{'.'.join(where) or 'request'}: {first['msg'].lower()}"


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as ``{"detail": line}``."""

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return JSONResponse({"detail": str(error.detail)}, error.status_code, headers)

    @app.exception_handler(IndexStoreError)
    async def _unreadable(request: Request, error: IndexStoreError) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        line = "the index, or a shard of it, cannot be read now; the server's log says more"
        return JSONResponse({"detail": line}, 503, {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": validation_line(error)}, 422)


class AnswerFailures:
    """Answers what nothing else has caught with 500; the log, not the client, learns why."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            answer = {"detail": "internal error; the server's log says more"}
            await JSONResponse(answer, 500)(scope, receive, send)
