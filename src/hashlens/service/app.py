"""The app: the endpoints, the page, and the protection around one index and one encoder.

There is no ``from __future__ import annotations`` here, on purpose: FastAPI evaluates the
annotations of an endpoint in this module's namespace, so one that names ``limits``, a variable of
the function around it, must be evaluated where it is written.
"""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    File,
    Form,
    Path,
    Query,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from hashlens import __version__
from hashlens.errors import InvalidInputError
from hashlens.index.protocol import Index
from hashlens.service.engine import Asked, Engine
from hashlens.service.errors import Refused, answer_errors
from hashlens.service.limits import Limits
from hashlens.service.metrics import Metrics
from hashlens.service.schemas import (
    BatchAnswer,
    ErrorAnswer,
    Health,
    ImageList,
    ImageRecord,
    IndexAnswer,
    SearchAnswer,
)
from hashlens.service.security import Door, require_key
from hashlens.service.uploads import parse_object, parse_vector, parse_where, read_upload
from hashlens.types import Mode, SearchOptions

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder

_WEB = pathlib.Path(__file__).parent / "web"


def create_app(
    index: Index,
    encoder: "Encoder | None",
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    host_names: Sequence[str] | None = None,
    show_files: bool = False,
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
    show_files : bool
        Tell the paths of images, and give their files; for people on this machine.
    """
    limits = limits or Limits()
    metrics = Metrics()
    engine = Engine(
        index, encoder, limits, metrics, writable=api_key is not None, show_files=show_files
    )

    @contextlib.asynccontextmanager
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


Responses = dict[int | str, dict[str, Any]]

REFUSALS: Responses = {
    400: {"model": ErrorAnswer, "description": "The request's body is malformed."},
    404: {"model": ErrorAnswer, "description": "No such image in the index."},
    408: {"model": ErrorAnswer, "description": "The body took too long to arrive."},
    413: {"model": ErrorAnswer, "description": "More than the service accepts."},
    422: {"model": ErrorAnswer, "description": "Something in the request does not fit."},
    503: {
        "model": ErrorAnswer,
        "description": "Too busy, or the index cannot be used; Retry-After says when to come back.",
    },
}
_WRITE = REFUSALS | {
    401: {"model": ErrorAnswer, "description": "The API key is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "The service is read-only."},
}
_PARTIAL = "Shards of the index did not answer: the result lacks their images."

Histogram = Annotated[bool, Form(description="Count the images at each Hamming distance.")]
ImageId = Annotated[int, Path(alias="id", ge=0, le=2**63 - 1, description="An image's id.")]


def _refusals(*statuses: int) -> Responses:
    return {status: REFUSALS[status] for status in statuses}


def search_router(engine: Engine, limits: Limits) -> APIRouter:
    """The search endpoints, bounded by ``limits``."""
    router = APIRouter(prefix="/v1/search", tags=["search"], responses=REFUSALS)

    def options_form(
        k: Annotated[int, Form(ge=1, le=limits.k, description="Results per query.")] = 10,
        mode: Annotated[
            Mode | None,
            Form(
                description="hds: codes, then features; acs: codes, then how sure the query is of "
                "each bit; bcs: codes only; es: features only. By default the `mode` of /v1/index."
            ),
        ] = None,
        radius: Annotated[
            int | None,
            Form(ge=0, le=65535, description="Only images within this Hamming distance."),
        ] = None,
        where: Annotated[
            str | None,
            Form(
                description="Only images whose label or metadata equal these values, as JSON.",
                examples=['{"label": "boot"}'],
            ),
        ] = None,
    ) -> SearchOptions:
        conditions = parse_where(where, limits) or None
        mode = mode or engine.default_mode(radius)
        try:
            return SearchOptions(k, mode=mode, radius=radius, where=conditions)
        except InvalidInputError as error:
            raise Refused(422, str(error)) from None

    @router.post(
        "",
        summary="Search by one picture or image",
        responses={206: {"model": SearchAnswer, "description": _PARTIAL}},
    )
    async def search(
        request: Request,
        response: Response,
        options: Annotated[SearchOptions, Depends(options_form)],
        image: Annotated[
            UploadFile | None, File(description="The picture to search by, as a file.")
        ] = None,
        id: Annotated[
            int | None, Form(ge=0, le=2**63 - 1, description="Or the id of an image of the index.")
        ] = None,
        vector: Annotated[
            str | None,
            Form(
                description="Or a vector, as a JSON list of numbers, where `vector_width` of "
                "/v1/index says that the model takes vectors.",
                examples=["[0.25, -1.5, 0.125]"],
            ),
        ] = None,
        histogram: Histogram = False,
    ) -> SearchAnswer:
        """The nearest images of a picture, of an image of the index, or of a vector."""
        if sum(given is not None for given in (image, id, vector)) != 1:
            raise Refused(422, "expected one of: a file in 'image', an 'id', or a 'vector'")
        query: Asked
        if image is not None:
            query = await read_upload(image, limits)
        else:
            query = id if id is not None else parse_vector(vector or "", engine.vectors)
        answer = await _unless_gone(request, engine.search(query, options, histogram=histogram))
        response.status_code = 206 if answer.missing else 200
        return answer

    @router.post(
        "/batch",
        summary="Search by several pictures or images",
        responses={206: {"model": BatchAnswer, "description": _PARTIAL}},
    )
    async def search_batch(
        request: Request,
        response: Response,
        options: Annotated[SearchOptions, Depends(options_form)],
        images: Annotated[list[UploadFile] | None, File(description="Pictures, as files.")] = None,
        ids: Annotated[
            list[Annotated[int, Form(ge=0, le=2**63 - 1)]] | None,
            Form(description="Ids of images of the index."),
        ] = None,
        vectors: Annotated[
            list[str] | None, Form(description="Vectors, each as a JSON list of numbers.")
        ] = None,
        histogram: Histogram = False,
    ) -> BatchAnswer:
        """Results of ids, pictures, then vectors; a query that fails says why in its place."""
        count = len(images or ()) + len(ids or ()) + len(vectors or ())
        if not count:
            raise Refused(422, "expected image files in 'images', or 'ids', or 'vectors'")
        if count > limits.batch:
            raise Refused(413, f"{count} queries; at most {limits.batch} are accepted at once")
        uploads = [
            await read_upload(upload, limits, f"images[{position}]")
            for position, upload in enumerate(images or ())
        ]
        queries: list[tuple[Asked, str]] = [(image_id, "") for image_id in ids or ()]
        queries += [(data, f"images[{place}]") for place, data in enumerate(uploads)]
        for place, text in enumerate(vectors or ()):
            name = f"vectors[{place}]"
            queries.append((parse_vector(text, engine.vectors, name), name))
        work = engine.search_batch(queries, options, histogram=histogram)
        answer = await _unless_gone(request, work)
        response.status_code = 206 if answer.missing else 200
        return answer

    return router


def images_router(engine: Engine, limits: Limits, api_key: str | None) -> APIRouter:
    """The endpoints of the index's images; writing needs the key."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    writing: dict[str, Any] = {"responses": _WRITE, "dependencies": [Depends(require_key(api_key))]}

    @router.get("", summary="Some images", responses=_refusals(422, 503))
    async def list_images(
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        sample: Annotated[
            int, Query(ge=0, le=2**32 - 1, description="Another number, another sample.")
        ] = 0,
    ) -> ImageList:
        """A seeded random sample of the index, in the order of ids."""
        return ImageList(images=await engine.run("files", engine.view.sample, limit, sample))

    @router.post("", status_code=201, summary="Add an image", **writing)
    async def add_image(
        request: Request,
        image: Annotated[UploadFile, File(description="The image, as a file.")],
        label: Annotated[str | None, Form(max_length=500)] = None,
        metadata: Annotated[
            str | None, Form(description="A JSON object.", examples=['{"brand": "x"}'])
        ] = None,
    ) -> ImageRecord:
        """Add an image; the answer comes once it is stored durably."""
        fields = parse_object(metadata, limits, "metadata")
        data = await read_upload(image, limits)
        return await _unless_gone(request, engine.add(data, label or None, fields))

    @router.get("/{id}", summary="One image's record", responses=_refusals(404, 422, 503))
    async def get_image(image_id: ImageId) -> ImageRecord:
        """Label and metadata of an image."""
        return await engine.run("files", engine.view.record, image_id)

    replaced = {409: {"model": ErrorAnswer, "description": "Another index has come to the path."}}
    removing = writing | {"responses": _WRITE | replaced}

    @router.delete("/{id}", status_code=204, summary="Remove an image", **removing)
    async def remove_image(image_id: ImageId) -> Response:
        """Remove an image from the index; its file is left alone."""
        await engine.remove(image_id)
        return Response(status_code=204)

    @router.get(
        "/{id}/thumbnail",
        summary="One image's thumbnail",
        response_class=Response,
        responses=_refusals(404, 422, 503)
        | {
            200: {"content": {"image/webp": {}, "image/png": {}}},
            304: {"description": "Unchanged."},
        },
    )
    async def get_thumbnail(request: Request, image_id: ImageId) -> Response:
        """A small picture of an image of the index, as WebP or PNG."""
        made = await engine.run("files", engine.view.thumbnail, image_id)
        headers = {"ETag": made.etag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == made.etag:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type=made.media_type, headers=headers)

    @router.get(
        "/{id}/file",
        summary="One image's file",
        response_class=Response,
        responses=_refusals(404, 422, 503)
        | {
            200: {"content": {"image/*": {}}},
            403: {"model": ErrorAnswer, "description": "The service shows no files."},
        },
    )
    async def get_file(image_id: ImageId) -> Response:
        """The image itself, as its file holds it; as PNG where browsers do not show its kind."""
        made = await engine.run("files", engine.view.original, image_id)
        headers = {"Cache-Control": "private, no-cache"}
        return Response(made.data, media_type=made.media_type, headers=headers)

    return router


def service_router(engine: Engine) -> APIRouter:
    """What describes the index, and what a load balancer and Prometheus ask."""
    router = APIRouter()

    @router.get("/v1/index", tags=["index"], responses=_refusals(503))
    async def describe_index() -> IndexAnswer:
        """Size, bits, modes, labels and metadata for filters, and the limits of a request."""
        return await engine.run("files", engine.view.describe)

    @router.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @router.get("/readyz", tags=["service"], responses=_refusals(503))
    async def readyz() -> Health:
        """Whether searches are answered: the service is not stopping, and none is stuck."""
        if not engine.answers:
            what = "searches are stuck" if engine.ready else "the service is stopping"
            raise Refused(503, what, Retry_After="5")
        return Health(status="ready")

    @router.get(
        "/metrics",
        tags=["service"],
        response_class=Response,
        responses=_refusals(503)
        | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(await engine.metrics_page(), media_type="text/plain; version=0.0.4")

    return router


Answer = TypeVar("Answer")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
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
