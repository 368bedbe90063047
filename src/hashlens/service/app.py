"""The app: the endpoints, the page, and the protection around one index and one encoder.

There is no ``from __future__ import annotations`` here, on purpose: FastAPI and pydantic evaluate
the annotations of endpoints and models in this module's namespace, so one that names ``limits`` or
``taken``, variables of the function around it, must be evaluated where it is written.
"""

import asyncio
import contextlib
import logging
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
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException

from hashlens import __version__
from hashlens.data.preprocessing import VectorInput
from hashlens.errors import IndexStoreError, TimeLimitError
from hashlens.index.protocol import Index
from hashlens.service import schemas
from hashlens.service.engine import Asked, Engine, Found, refusing
from hashlens.service.limits import Limits
from hashlens.service.schemas import Refused
from hashlens.service.security import Door, require_key
from hashlens.service.uploads import (
    CHARACTER_BYTES,
    NUMBER_BYTES,
    parse_object,
    parse_text,
    parse_vector,
    parse_where,
    read_upload,
)
from hashlens.types import Features, Mode, SearchOptions, Text

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder

log = logging.getLogger("hashlens.service")

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
    engine = Engine(index, encoder, limits, writable=api_key is not None, show_files=show_files)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    app = FastAPI(
        title="Hashlens",
        version=__version__,
        description="Search an index of images by a picture, by words, or by an image of it. "
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
    app.add_middleware(Door, limits=limits, metrics=engine.metrics, host_names=host_names)
    return app


def answer_errors(app: FastAPI) -> None:
    """Answer every error that ``app`` expects as FastAPI answers refusals: ``{"detail": line}``."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
        return Refused(422, f"{'.'.join(where) or 'request'}: {first['msg'].lower()}").answer()

    @app.exception_handler(IndexStoreError)
    async def _unusable(request: Request, error: IndexStoreError) -> JSONResponse:
        line = str(error)
        if not isinstance(error, TimeLimitError):
            log.error("%s %s: %s", request.method, request.url.path, line)
            writes = request.method != "GET" and "/search" not in request.url.path
            line = (
                f"the index, or a shard of it, cannot be {'written' if writes else 'read'} now; "
                "the server's log says more"
            )
        return Refused(503, line, Retry_After="5").answer()


_WHY = {
    400: "The request's body is malformed.",
    401: "The API key is missing or wrong.",
    403: "The service is read-only, or shows no files.",
    404: "No such image in the index.",
    408: "The body took too long to arrive.",
    409: "Another index has come to the path.",
    413: "More than the service accepts.",
    415: "The body is of a kind that is not expected.",
    422: "Something in the request does not fit.",
    503: "Too busy, or the index cannot be used; Retry-After says when to come back.",
}
_PARTIAL = "Shards of the index did not answer: the result lacks their images."


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {each: {"model": schemas.ErrorAnswer, "description": _WHY[each]} for each in statuses}


_Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
ImageId = Annotated[int, Path(alias="id", ge=0, le=2**63 - 1, description="An image's id.")]

_FORM = "multipart/form-data"
_SHORT_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
_RAW = "application/octet-stream"
_IN_BODY = {"image", "images", "vector", "vectors", "text", "texts"}


def search_router(engine: Engine, limits: Limits) -> APIRouter:
    """The search endpoints, bounded by ``limits``."""
    refusals = _refusals(400, 404, 408, 413, 415, 422, 503)
    router = APIRouter(prefix="/v1/search", tags=["search"], responses=refusals)
    taken = engine.vectors
    numbers: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
    if taken is not None:
        numbers |= {"minItems": taken.width, "maxItems": taken.width}
    words = {"type": "string", "minLength": 1, "maxLength": limits.text_characters}

    def vectors_of(values: list[Any]) -> list[Features]:
        return [parse_vector(v, taken, f"vectors[{place}]") for place, v in enumerate(values)]

    def texts_of(values: list[Any]) -> list[Text]:
        return [parse_text(v, limits, f"texts[{place}]") for place, v in enumerate(values)]

    class Settings(BaseModel, extra="forbid"):
        k: int = Field(10, ge=1, le=limits.k, description="Results per query.")
        mode: Mode | None = Field(
            None,
            description="hds: codes, then features; acs: codes, then how sure the query is of "
            "each bit; bcs: codes only; es: features only. By default the `mode` of /v1/index.",
        )
        radius: int | None = Field(
            None, ge=0, le=65535, description="Only images within this Hamming distance."
        )
        where: Annotated[
            Any,
            PlainValidator(lambda value: parse_where(value, limits)),
            WithJsonSchema({"type": "object", "examples": [{"label": "boot"}]}),
        ] = Field(None, description="Only images whose label or metadata equal these values.")
        histogram: bool = Field(False, description="Count the images at each Hamming distance.")

        def options(self) -> SearchOptions:
            mode = self.mode or engine.default_mode(self.radius)
            where = self.where or None
            with refusing(422):
                return SearchOptions(self.k, mode=mode, radius=self.radius, where=where)

    class One(Settings):
        image: bytes | None = Field(None, description="The picture to search by, as a file.")
        id: _Id | None = Field(None, description="Or the id of an image of the index.")
        vector: Annotated[
            Any, PlainValidator(lambda value: parse_vector(value, taken)), WithJsonSchema(numbers)
        ] = Field(None, description="Or a vector, where /v1/index has a `vector_width`.")
        text: Annotated[
            Any, PlainValidator(lambda value: parse_text(value, limits)), WithJsonSchema(words)
        ] = Field(None, description="Or words, where `searches_texts` of /v1/index is true.")

    class Many(Settings):
        images: list[bytes] = Field([], description="Pictures, as files.")
        ids: list[_Id] = Field([], description="Ids of images of the index.")
        vectors: Annotated[
            list[Any],
            AfterValidator(vectors_of),
            WithJsonSchema({"type": "array", "items": numbers}),
        ] = Field([], description="Vectors, where the model takes them.")
        texts: Annotated[
            list[Any], AfterValidator(texts_of), WithJsonSchema({"type": "array", "items": words})
        ] = Field([], description="Descriptions in words, where the model knows texts.")

    @router.post(
        "",
        summary="Search by one picture, image, vector or text",
        responses={206: {"model": schemas.SearchAnswer, "description": _PARTIAL}},
        openapi_extra=_described(One),
    )
    async def search(request: Request, response: Response) -> schemas.SearchAnswer:
        """The nearest images of a picture, of an image of the index, of a vector or of words."""
        asked = await _read_search(request, One, limits, taken)
        names = ("image", "id", "vector", "text")
        given = [(value, name) for name in names if (value := getattr(asked, name)) is not None]
        if len(given) != 1:
            raise Refused(422, "expected one of: an 'image' file, an 'id', a 'vector' or a 'text'")
        options = asked.options()
        work = engine.search(given, options, histogram=asked.histogram)
        (found,), times = await _unless_gone(request, work)
        if isinstance(found, Refused):
            raise found
        response.status_code = 206 if found.missing else 200
        return schemas.SearchAnswer(
            **found.answer, mode=options.mode, missing=found.missing, timings_ms=times
        )

    @router.post(
        "/batch",
        summary="Search by several pictures, images, vectors or texts",
        responses={206: {"model": schemas.BatchAnswer, "description": _PARTIAL}},
        openapi_extra=_described(Many),
    )
    async def search_batch(request: Request, response: Response) -> schemas.BatchAnswer:
        """Results of ids, pictures, vectors, then texts; a query that fails says why."""
        asked = await _read_search(request, Many, limits, taken)
        queries: list[tuple[Asked, str]] = [(image_id, "") for image_id in asked.ids]
        queries += [(data, f"images[{place}]") for place, data in enumerate(asked.images)]
        queries += [(vector, f"vectors[{place}]") for place, vector in enumerate(asked.vectors)]
        queries += [(text, f"texts[{place}]") for place, text in enumerate(asked.texts)]
        if not queries:
            raise Refused(422, "expected image files in 'images', 'ids', 'vectors' or 'texts'")
        if len(queries) > limits.batch:
            raise Refused(413, f"{len(queries)} queries; at most {limits.batch} are accepted")
        options = asked.options()
        work = engine.search(queries, options, histogram=asked.histogram)
        outcomes, times = await _unless_gone(request, work)
        results = [
            schemas.BatchItem(query=None, hits=[], pool=0, histogram=None, error=found.detail)
            if isinstance(found, Refused)
            else schemas.BatchItem(**found.answer, error=None)
            for found in outcomes
        ]
        found = [each for each in outcomes if isinstance(each, Found)]
        missing = sorted({shard for each in found for shard in each.missing})
        response.status_code = 206 if missing else 200
        return schemas.BatchAnswer(
            results=results, mode=options.mode, missing=missing, timings_ms=times
        )

    return router


Body = TypeVar("Body", bound=BaseModel)


async def _read_search(
    request: Request, model: type[Body], limits: Limits, taken: VectorInput | None
) -> Body:
    """What a search asks for: its body, and settings in the address."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (known := (_FORM, _SHORT_FORM, _JSON, _RAW)) and kind:
        raise Refused(415, f"Content-Type: expected one of {', '.join(known)}; got {kind:.80}")
    single = "vector" in model.model_fields
    most, width = (1 if single else limits.batch), (taken.width if taken else 1)
    try:
        form = await request.form()  # empty for the other kinds
        data = await request.body() if kind in (_JSON, _RAW) else b""
        body = await _fields(form, model, limits)
    except HTTPException:
        raise
    except Exception:  # the parser of forms raises anything on hostile bytes
        raise Refused(400, "the request's body is malformed") from None
    finally:
        await request.close()
    if kind == _JSON:
        # may be megabytes, which the event loop does not wait for
        query = max(width * NUMBER_BYTES, limits.text_characters * CHARACTER_BYTES)
        size = limits.json_bytes + most * query
        body = await asyncio.to_thread(parse_object, data, size, "body")
    elif kind == _RAW:
        if taken is None:
            raise Refused(422, "body: this service has no model that takes vectors")
        if len(data) > most * 4 * width:
            raise Refused(413, f"{len(data):,} bytes; at most {most * 4 * width:,} are accepted")
        parts = [data[at : at + 4 * width] for at in range(0, len(data), 4 * width)]
        body = {"vector": data} if single else {"vectors": parts}
    address = await _fields(request.query_params, model, limits)
    if wrong := request.query_params.keys() - model.model_fields.keys() | address.keys() & _IN_BODY:
        raise Refused(422, f"{min(wrong):.80}: not expected in the address of a search")
    if twice := address.keys() & body.keys():
        raise Refused(422, f"{min(twice)}: given in the address and in the body")
    try:
        return model.model_validate(address | body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _fields(
    given: ImmutableMultiDict[str, Any], model: type[BaseModel], limits: Limits
) -> dict[str, Any]:
    """What a form or an address gives of the fields of ``model``; files as their bytes."""
    found: dict[str, Any] = {}
    for name in model.model_fields:
        values = [value for value in given.getlist(name) if value != ""]
        for place, value in enumerate(values):
            if not isinstance(value, str):
                shown = f"{name}[{place}]" if name == "images" else name
                values[place] = await read_upload(value, limits, shown)
        if values:
            found[name] = values if name in ("images", "ids", "vectors", "texts") else values[-1]
    return found


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """The bodies of a search, and its settings in the address, for OpenAPI."""
    fields = model.model_json_schema()["properties"]
    text = {"type": "string", "contentMediaType": _JSON}
    texts = fields | {
        name: {"description": f"{fields[name]['description']} As JSON."} | text
        for name in ("where", "vector")
        if name in fields
    }
    if "vectors" in fields:
        texts["vectors"] = fields["vectors"] | {"items": text}
    short = {name: field for name, field in texts.items() if "image" not in name}
    as_json = {"properties": {name: fields[name] for name in short}, "additionalProperties": False}
    bodies = {_FORM: {"properties": texts}, _SHORT_FORM: {"properties": short}, _JSON: as_json}
    content = {kind: {"schema": {"type": "object"} | body} for kind, body in bodies.items()}
    raw = {"type": "string", "format": "binary", "description": "Vectors as little-endian float32."}
    return {
        "requestBody": {"content": content | {_RAW: {"schema": raw}}},
        "parameters": [
            {"name": name, "in": "query", "schema": field}
            for name, field in short.items()
            if name not in _IN_BODY
        ],
    }


def images_router(engine: Engine, limits: Limits, api_key: str | None) -> APIRouter:
    """The endpoints of the index's images; writing needs the key."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    key = [Depends(require_key(api_key))]
    refusals = _refusals(400, 401, 403, 404, 408, 409, 413, 422, 503)

    @router.get("", summary="Some images", responses=_refusals(422, 503))
    async def list_images(
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        sample: Annotated[
            int, Query(ge=0, le=2**32 - 1, description="Another number, another sample.")
        ] = 0,
    ) -> schemas.ImageList:
        """A seeded random sample of the index, in the order of ids."""
        return schemas.ImageList(images=await engine.run("files", engine.sample, limit, sample))

    @router.post("", status_code=201, summary="Add an image", dependencies=key, responses=refusals)
    async def add_image(
        request: Request,
        image: Annotated[UploadFile, File(description="The image, as a file.")],
        label: Annotated[str | None, Form(max_length=500)] = None,
        metadata: Annotated[
            str | None, Form(description="A JSON object.", examples=['{"brand": "x"}'])
        ] = None,
    ) -> schemas.ImageRecord:
        """Add an image; the answer comes once it is stored durably."""
        fields = parse_object(metadata, limits.json_bytes, "metadata")
        data = await read_upload(image, limits)
        return await _unless_gone(request, engine.add(data, label or None, fields))

    @router.get("/{id}", summary="One image's record", responses=_refusals(404, 422, 503))
    async def get_image(image_id: ImageId) -> schemas.ImageRecord:
        """Label and metadata of an image."""
        return await engine.run("files", engine.record, image_id)

    @router.delete(
        "/{id}", status_code=204, summary="Remove an image", dependencies=key, responses=refusals
    )
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
        made = await engine.run("files", engine.thumbnail, image_id)
        headers = {"ETag": made.etag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == made.etag:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type=made.media_type, headers=headers)

    @router.get(
        "/{id}/file",
        summary="One image's file",
        response_class=Response,
        responses=_refusals(403, 404, 422, 503) | {200: {"content": {"image/*": {}}}},
    )
    async def get_file(image_id: ImageId) -> Response:
        """The image itself, as its file holds it; as PNG where browsers do not show its kind."""
        made = await engine.run("files", engine.original, image_id)
        headers = {"Cache-Control": "private, no-cache"}
        return Response(made.data, media_type=made.media_type, headers=headers)

    return router


def service_router(engine: Engine) -> APIRouter:
    """What describes the index, and what a load balancer and Prometheus ask."""
    router = APIRouter()

    @router.get("/v1/index", tags=["index"], responses=_refusals(503))
    async def describe_index() -> schemas.IndexAnswer:
        """Size, bits, modes, labels and metadata for filters, and the limits of a request."""
        return await engine.run("files", engine.describe)

    @router.get("/healthz", tags=["service"])
    async def healthz() -> schemas.Health:
        """Whether the process answers."""
        return schemas.Health(status="ok")

    @router.get("/readyz", tags=["service"], responses=_refusals(503))
    async def readyz() -> schemas.Health:
        """Whether searches are answered: the service is not stopping, and none is stuck."""
        if not engine.answers:
            what = "searches are stuck" if engine.ready else "the service is stopping"
            raise Refused(503, what, Retry_After="5")
        return schemas.Health(status="ready")

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
