"""Search by a picture or by an image of the index, one query or several.

Annotations are evaluated here, not postponed: the bounds of a form field are those of the limits
the app was made with.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from hashlens.protocols import Mode
from hashlens.service.disconnect import unless_gone
from hashlens.service.engine import Engine
from hashlens.service.errors import Refused
from hashlens.service.limits import Limits
from hashlens.service.schemas import BatchAnswer, ErrorAnswer, SearchAnswer
from hashlens.service.searching import SearchSettings, check_where
from hashlens.service.uploads import parse_object, read_upload

REFUSALS: dict[int | str, dict[str, Any]] = {
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


_PARTIAL = "Shards of the index did not answer: the result lacks their images."


def search_router(limits: Limits) -> APIRouter:
    """The search endpoints, bounded by ``limits``."""
    router = APIRouter(prefix="/v1/search", tags=["search"], responses=REFUSALS)

    def settings_form(
        k: Annotated[int, Form(ge=1, le=limits.k, description="Results a query.")] = 10,
        mode: Annotated[
            Mode,
            Form(description="hds: codes, then features; bcs: codes only; es: features only."),
        ] = "hds",
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
        histogram: Annotated[
            bool, Form(description="Count the images at each Hamming distance.")
        ] = False,
    ) -> SearchSettings:
        conditions = check_where(parse_object(where, limits, "where"))
        return SearchSettings(k, mode, radius, conditions, histogram)

    @router.post(
        "",
        summary="Search by one picture or image",
        responses={206: {"model": SearchAnswer, "description": _PARTIAL}},
    )
    async def search(
        request: Request,
        response: Response,
        settings: Annotated[SearchSettings, Depends(settings_form)],
        image: Annotated[
            UploadFile | None, File(description="The picture to search by, as a file.")
        ] = None,
        id: Annotated[
            int | None, Form(ge=0, le=2**63 - 1, description="Or the id of an image of the index.")
        ] = None,
    ) -> SearchAnswer:
        """The nearest images of a picture, or of an image of the index."""
        engine: Engine = request.app.state.engine
        if (image is None) == (id is None):
            raise Refused(422, "expected either an image file in 'image', or an 'id', and not both")
        if id is not None:
            asked = engine.search_by_id(id, settings)
        else:
            assert image is not None
            asked = engine.search_by_image(await read_upload(image, limits), settings)
        answer = await unless_gone(request, asked)
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
        settings: Annotated[SearchSettings, Depends(settings_form)],
        images: Annotated[list[UploadFile] | None, File(description="Pictures, as files.")] = None,
        ids: Annotated[
            list[Annotated[int, Form(ge=0, le=2**63 - 1)]] | None,
            Form(description="Ids of images of the index."),
        ] = None,
    ) -> BatchAnswer:
        """Results of each id, then of each picture; a query that fails says why in its place."""
        engine: Engine = request.app.state.engine
        count = len(images or ()) + len(ids or ())
        if not count:
            raise Refused(422, "expected image files in 'images', or 'ids', or both")
        if count > limits.batch:
            raise Refused(413, f"{count} queries; at most {limits.batch} are accepted at once")
        uploads = []
        for position, upload in enumerate(images or ()):
            uploads.append(await read_upload(upload, limits, f"images[{position}]"))
        answer = await unless_gone(request, engine.search_batch(ids or [], uploads, settings))
        response.status_code = 206 if answer.missing else 200
        return answer

    return router
