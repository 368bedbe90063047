"""Refusals of the service: a status and one clear line, never a stack or a path."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hashlens.errors import HashlensError, IndexStoreError, TimeLimitError

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


def answer_refusal(error: HTTPException) -> JSONResponse:
    """A refusal as ``{"detail": line}``."""
    headers = dict(error.headers or {})
    return JSONResponse({"detail": str(error.detail)}, error.status_code, headers)


def answer_errors(app: FastAPI) -> None:
    """Answer every error that ``app`` expects as ``{"detail": line}``."""

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> JSONResponse:
        return answer_refusal(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
        line = f"{'.'.join(where) or 'request'}: {first['msg'].lower()}"
        return answer_refusal(Refused(422, line))

    @app.exception_handler(IndexStoreError)
    async def _unreadable(request: Request, error: IndexStoreError) -> JSONResponse:
        if isinstance(error, TimeLimitError):
            return answer_refusal(Refused(503, str(error), Retry_After="5"))
        log.error("%s %s: %s", request.method, request.url.path, error)
        line = "the index, or a shard of it, cannot be read now; the server's log says more"
        return answer_refusal(Refused(503, line, Retry_After="5"))
