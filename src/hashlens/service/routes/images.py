"""Images of the index: look at them, add and remove them.

Annotations are evaluated here, not postponed, as in ``search.py``.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile

from hashlens.service.disconnect import unless_gone
from hashlens.service.engine import Engine
from hashlens.service.limits import Limits
from hashlens.service.routes.search import REFUSALS
from hashlens.service.schemas import ErrorAnswer, ImageList, ImageRecord
from hashlens.service.security import require_key
from hashlens.service.uploads import parse_object, read_upload

ImageId = Annotated[int, Path(alias="id", ge=0, le=2**63 - 1, description="An image's id.")]
_READ: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (404, 422, 503)}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {}, "image/png": {}}},
    304: {"description": "Unchanged."},
}
_WRITE = REFUSALS | {
    401: {"model": ErrorAnswer, "description": "The API key is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "The service is read-only."},
}


def images_router(limits: Limits) -> APIRouter:
    """The image endpoints, bounded by ``limits``."""
    router = APIRouter(prefix="/v1/images", tags=["images"])

    @router.get("", summary="Some images", responses={s: REFUSALS[s] for s in (422, 503)})
    async def list_images(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 24,
        sample: Annotated[
            int, Query(ge=0, le=2**32 - 1, description="Another number, another sample.")
        ] = 0,
    ) -> ImageList:
        """A seeded random sample of the index, in the order of ids."""
        engine: Engine = request.app.state.engine
        return ImageList(images=await engine.sample(limit, sample))

    @router.post(
        "",
        status_code=201,
        summary="Add an image",
        responses=_WRITE,
        dependencies=[Depends(require_key)],
    )
    async def add_image(
        request: Request,
        image: Annotated[UploadFile, File(description="The image, as a file.")],
        label: Annotated[str | None, Form(max_length=500)] = None,
        metadata: Annotated[
            str | None, Form(description="A JSON object.", examples=['{"brand": "x"}'])
        ] = None,
    ) -> ImageRecord:
        """Add an image; the answer comes once it is stored durably."""
        engine: Engine = request.app.state.engine
        fields = parse_object(metadata, limits, "metadata")
        data = await read_upload(image, limits)
        return await unless_gone(request, engine.add(data, label or None, fields))

    @router.get("/{id}", summary="One image's record", responses=_READ)
    async def get_image(request: Request, image_id: ImageId) -> ImageRecord:
        """Label and metadata of an image."""
        engine: Engine = request.app.state.engine
        return await engine.record(image_id)

    @router.delete(
        "/{id}",
        status_code=204,
        summary="Remove an image",
        responses=_WRITE,
        dependencies=[Depends(require_key)],
    )
    async def remove_image(request: Request, image_id: ImageId) -> Response:
        """Remove an image from the index; its file is left alone."""
        engine: Engine = request.app.state.engine
        await engine.remove(image_id)
        return Response(status_code=204)

    @router.get(
        "/{id}/thumbnail",
        summary="One image's thumbnail",
        response_class=Response,
        responses=_READ | _PICTURE,
    )
    async def get_thumbnail(request: Request, image_id: ImageId) -> Response:
        """A small picture of an image of the index, as WebP or PNG."""
        engine: Engine = request.app.state.engine
        made = await engine.thumbnail(image_id)
        headers = {"ETag": made.etag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == made.etag:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type=made.media_type, headers=headers)

    return router
