"""What answers and refusals look like; FastAPI writes the OpenAPI description from these."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from hashlens.types import Mode

_KNOWN: dict[str, Any] = {
    "id": 17,
    "name": "0017.jpg",
    "path": None,
    "label": "boot",
    "metadata": {"brand": "x"},
}
_DISTANCES = {"hamming": 3, "euclidean": 11.25, "asymmetric": None, "code": "0f3c91a07be2"}


class Refused(HTTPException):
    """A request that is answered with ``status`` and one line."""

    def __init__(self, status: int, line: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, line, named or None)

    def answer(self) -> JSONResponse:
        """The refusal as ``{"detail": line}``."""
        return JSONResponse({"detail": self.detail}, self.status_code, self.headers)


class ErrorAnswer(BaseModel):
    """Why a request was refused, in one line."""

    detail: str = Field(examples=["k: expected 1 to 1000, got 5000"])


class _Known(BaseModel):
    id: int
    name: str = Field(description="The last part of its path.")
    path: str | None = Field(
        description="Where its file is; null where the service does not show files."
    )
    label: str | None
    metadata: dict[str, Any]


class HitAnswer(_Known):
    """One result."""

    model_config = ConfigDict(json_schema_extra={"example": _KNOWN | _DISTANCES})

    hamming: int = Field(description="Bits that differ from the query's code.")
    euclidean: float | None = Field(
        description="Distance between features; null in modes bcs and acs, which compute none."
    )
    asymmetric: float | None = Field(
        description="Mode acs: how sure the query is of the bits that differ, summed; the number "
        "of these bits, if the query is an image of the index. Null in other modes."
    )
    code: str = Field(description="The image's packed code, hexadecimal; bit j is in byte j // 8.")


class ImageRecord(_Known):
    """An image of the index."""

    model_config = ConfigDict(
        json_schema_extra={"example": _KNOWN | {"thumbnail": "/v1/images/17/thumbnail"}}
    )

    thumbnail: str = Field(description="Path of its thumbnail.")


class QueryAnswer(BaseModel):
    """The query: a picture, a text, a vector, or an image of the index."""

    id: int | None = Field(description="Its id, if it is an image of the index.")
    label: str | None
    code: str = Field(description="Its packed code, hexadecimal; bit j is in byte j // 8.")


class StageTimes(BaseModel):
    """Milliseconds of each stage; a stage that did not run took 0."""

    decode: float = Field(examples=[1.2])
    encode: float = Field(examples=[9.8])
    coarse: float = Field(examples=[0.4])
    fine: float = Field(examples=[0.3])
    total: float = Field(examples=[12.1])


STAGES = tuple(StageTimes.model_fields)


class _Results(BaseModel):
    query: QueryAnswer | None
    hits: list[HitAnswer]
    pool: int = Field(description="Images that the search ranked.")
    histogram: list[int] | None = Field(
        description="Images at each Hamming distance 0 to bits, after the filter; if asked for."
    )


class SearchAnswer(_Results):
    """The nearest images of one query, nearest first, ties by id."""

    query: QueryAnswer
    mode: Mode = Field(description="How it was searched.")
    missing: list[str] = Field(description="Shards that did not answer (status 206).")
    timings_ms: StageTimes


class BatchItem(_Results):
    """The results of one query of a batch, or why it could not be answered."""

    error: str | None = Field(examples=["images[2]: not an image"])


class BatchAnswer(BaseModel):
    """Results in the order of the queries: ids, then images, then vectors, then texts."""

    results: list[BatchItem]
    mode: Mode = Field(description="How they were searched.")
    missing: list[str] = Field(description="Shards that did not answer (status 206).")
    timings_ms: StageTimes


class ImageList(BaseModel):
    """Some images of the index."""

    images: list[ImageRecord]


class LabelCount(BaseModel):
    """A label and how many images carry it."""

    label: str
    count: int


class MetadataField(BaseModel):
    """A key of the images' metadata and some of its values, for a filter."""

    key: str
    values: list[str | int | float | bool]


class ServiceLimits(BaseModel):
    """Bounds of a request."""

    upload_bytes: int
    pixels: int
    text_characters: int
    k: int
    batch: int


class IndexAnswer(BaseModel):
    """The index, and what may be asked of it."""

    name: str
    images: int
    bits: int
    feature_dim: int
    fingerprint: str
    radius: int | None = Field(description="What `hashlens inspect` stored with the model.")
    labels: list[LabelCount] = Field(description="The most frequent, at most 1000.")
    metadata: list[MetadataField] = Field(description="Keys with few values, for filters.")
    modes: list[Mode] = Field(description="Ways in which it can be searched.")
    mode: Mode = Field(
        description="The one taken where a search names none: the best on the model's validation "
        "images, else hds, or acs or bcs if the index has no features. With a radius, hds "
        "takes the place of es."
    )
    searches_images: bool = Field(
        description="False if the service has no model, or one over vectors: search by id."
    )
    searches_texts: bool = Field(description="Whether the model knows words to search by.")
    vector_width: int | None = Field(description="Numbers of a vector; null if it takes none.")
    writable: bool
    shows_files: bool = Field(
        description="Whether answers name paths, and /v1/images/{id}/file gives the file itself."
    )
    limits: ServiceLimits


class Health(BaseModel):
    """Whether the service runs, or is ready."""

    status: str = Field(examples=["ok"])
