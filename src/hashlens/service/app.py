"""The app: routes, page, limits and protection around one index and one encoder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from hashlens import __version__
from hashlens.index.protocol import Index
from hashlens.service.engine import Engine
from hashlens.service.errors import answer_errors
from hashlens.service.limits import Limits
from hashlens.service.metrics import Metrics
from hashlens.service.routes import images_router, search_router, service_router
from hashlens.service.security import Door

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder

_WEB = Path(__file__).parent / "web"


def create_app(
    index: Index,
    encoder: Encoder | None,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    host_names: Sequence[str] | None = None,
) -> FastAPI:
    """An ASGI app that searches ``index``; nothing runs before the server starts it.

    Parameters
    ----------
    index : Index
        Open, and writable if there is a key. The caller closes it.
    encoder : Encoder or None
        The index's own model; without one, only an image of the index can be the query.
    limits : Limits, optional
        Bounds of requests and of the work that waits.
    api_key : str, optional
        What a client must send to add or remove images. Without one the service is read-only.
    host_names : sequence of str, optional
        Names that requests may ask for, without port; by default any.
    """
    limits = limits or Limits()
    metrics = Metrics()
    engine = Engine(index, encoder, limits, metrics, writable=api_key is not None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    app = FastAPI(
        title="Hashlens",
        version=__version__,
        description="Search an index of images by a picture, or by an image of the index. "
        "Every error is answered as one line in `detail`.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.engine = engine
    answer_errors(app)
    app.include_router(search_router(engine, limits))
    app.include_router(images_router(engine, limits, api_key))
    app.include_router(service_router(engine))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_WEB / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/assets", StaticFiles(directory=_WEB), name="assets")
    app.add_middleware(Door, limits=limits, metrics=metrics, host_names=host_names)
    return app
