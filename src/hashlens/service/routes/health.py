"""Whether the service lives and is ready, what it searches, and its metrics."""

from fastapi import APIRouter, Request, Response

from hashlens.service.engine import Engine
from hashlens.service.errors import Refused
from hashlens.service.schemas import ErrorAnswer, Health, IndexAnswer

router = APIRouter()


@router.get("/healthz", tags=["service"])
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/readyz", tags=["service"], responses={503: {"model": ErrorAnswer}})
async def readyz(request: Request) -> Health:
    """Whether searches are answered: the index is open and the service is not stopping."""
    engine: Engine = request.app.state.engine
    if not engine.ready:
        raise Refused(503, "the service is stopping", Retry_After="5")
    return Health(status="ready")


@router.get(
    "/metrics",
    tags=["service"],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        503: {"model": ErrorAnswer},
    },
)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    engine: Engine = request.app.state.engine
    return Response(await engine.metrics_page(), media_type="text/plain; version=0.0.4")


@router.get("/v1/index", tags=["index"], responses={503: {"model": ErrorAnswer}})
async def describe_index(request: Request) -> IndexAnswer:
    """Size, bits, labels and metadata for filters, and the limits of a request."""
    engine: Engine = request.app.state.engine
    return await engine.describe()
