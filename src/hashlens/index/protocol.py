"""``Index``: what an index of images does, on one machine or many; ``Hits``: what it finds."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol, Self, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from hashlens.errors import HashlensError, IndexStoreError, InvalidInputError
from hashlens.files import uri_path
from hashlens.index.layout import Meta
from hashlens.index.rows import store_metadata, store_text
from hashlens.index.writing import GivenRows, encode_images, store_label, uri_of
from hashlens.types import (
    AddReport,
    Codes,
    DuplicateGroups,
    EncodedBatch,
    EncoderLike,
    Features,
    Hit,
    Ids,
    ImageInput,
    IndexInfo,
    Latent,
    Metadata,
    Mode,
    Record,
    Searcher,
    SearchOptions,
    SearchTrace,
    SyncReport,
    Text,
    is_id,
)

Query: TypeAlias = "ImageInput | int"


class SearchKeywords(TypedDict, total=False):
    """What ``Index.search`` takes after k."""

    mode: Mode | None
    radius: int | None
    where: Mapping[str, Any] | None
    pool: int | None
    trace: SearchTrace | None


class Index(Searcher, Protocol):
    """Images with codes, features and records, to fill, change and search.

    ``HashIndex`` is one folder on this machine, ``ShardedIndex`` many on a cluster. What both do
    in the same way is written here.
    """

    path: Path
    encoder: EncoderLike | None

    @overload
    def search(
        self, query: list[Query], k: int = ..., **options: Unpack[SearchKeywords]
    ) -> list[list[Hit]]: ...

    @overload
    def search(
        self, query: Query, k: int = ..., **options: Unpack[SearchKeywords]
    ) -> list[Hit]: ...

    def search(
        self,
        query: Query | list[Query],
        k: int = 10,
        mode: Mode | None = None,
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        pool: int | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the images most like a query, nearest first, ties by id.

        Parameters
        ----------
        query : image, path, vector, Text or int; or a list of these
            An int is the id of an image in the index, which then comes first itself. A vector is
            a one-dimensional array of floating numbers, where the model takes vectors.
            ``Text("red shoes")`` is a description, where it knows texts. A list, or an array
            (q, d) of vectors, is answered together, and gives a list of lists.
        k : int
            At most k results per query.
        mode : {"hds", "acs", "bcs", "es"}, optional
            Coarse by codes, then fine by features (``hds``) or by the query's latent values
            against the stored bits (``acs``; equal to ``bcs`` for an image of the index, of
            which only bits are stored); codes only; or exhaustive over features. By default
            what ``default_mode`` says.
        radius : int, optional
            All modes but ``es``: only images within this Hamming distance.
        where : mapping, optional
            ``label`` or metadata keys, to a value, a list of values, or {">=": value, ...}.
        pool : int, optional
            ``hds`` and ``acs`` without radius: number of images that the fine search orders.
        trace : SearchTrace, optional
            Is told the mode; ``hds`` and ``acs`` add their times and pools.

        Returns
        -------
        list of Hit, or list of these
            Shown as pictures in a notebook; ``pandas.DataFrame(hits)`` makes a table of it.

        Raises
        ------
        ImageError
            If an image cannot be read.
        InvalidInputError
            If an argument does not fit.
        IndexStoreError
            If the index is damaged, or no encoder was given for an image.
        """
        options = SearchOptions(k, mode=mode or "hds", radius=radius, where=where, pool=pool)
        if isinstance(query, np.ndarray) and query.ndim == 2 and query.dtype.kind == "f":
            query = list(query)
        queries: list[Any] = query if isinstance(query, list) else [query]
        codes, features, latent = self._encode_images(queries)
        if mode is None:
            knows_latent = latent is not None and not all(is_id(query) for query in queries)
            options = replace(options, mode=self.default_mode(knows_latent, radius))
        if trace is not None:
            trace.mode = options.mode
        ids = [place for place, query in enumerate(queries) if is_id(query)]
        with self.one_commit():
            if ids:
                _, codes[ids], features[ids] = self.encoded([queries[place] for place in ids])
            hits = self.search_hits(codes, features, options, latent, trace)
        return list(hits) if isinstance(query, list) else hits[0]

    def default_mode(self, latent: bool, radius: int | None = None) -> Mode:
        """How a search that names no mode is done.

        The mode that was best on the model's validation images, where the encoder knows it;
        otherwise ``hds``. An index without features takes ``acs`` instead of ``hds`` and ``es``.
        """
        best: Mode = getattr(self.encoder, "mode", None) or "hds"
        if best in ("hds", "es") and not self.feature_dim:
            best = "acs"
        if best == "acs" and not latent:
            return "bcs"
        return "hds" if best == "es" and radius is not None else best

    def one_commit(self) -> AbstractContextManager[object]:
        """A block in which this thread reads one commit, where the index can promise that."""
        return nullcontext()

    def _encode_images(self, queries: Sequence[Any]) -> tuple[Codes, Features, Latent | None]:
        """Codes, features and latent values of images; rows of ids are left open, latent NaN."""
        bits, width = self.bits, self.feature_dim
        codes = np.zeros((len(queries), -(-bits // 8)), np.uint8)
        features = np.zeros((len(queries), width), np.float32)
        latent: Latent | None = np.full((len(queries), bits), np.nan, np.float32)
        texts = [place for place, query in enumerate(queries) if isinstance(query, Text)]
        images = [i for i, query in enumerate(queries) if i not in texts and not is_id(query)]
        made: list[tuple[Any, Any]] = []
        if texts:
            encode_text = getattr(self.require_encoder(), "encode_text", None)
            if encode_text is None:
                raise InvalidInputError("query: this index's encoder knows no texts; got a Text")
            made.append((texts, encode_text([queries[place] for place in texts])))
        if images:
            given = [_check_image(queries[place]) for place in images]
            batches = self.require_encoder().encode_batches(given, strict=True)
            made += [(np.array(images)[batch.positions], batch) for batch in batches]
        for at, batch in made:
            codes[at] = batch.codes
            if width:  # else the index keeps codes alone
                features[at] = batch.features
            if batch.latent is None:
                latent = None  # an encoder of the user's own, which gives codes only
            elif latent is not None:
                latent[at] = batch.latent
        return codes, features, latent

    def get(self, image_id: int) -> Record:
        """What is known of an image."""
        if not is_id(image_id):
            raise InvalidInputError(
                f"id: expected one whole number, got {image_id!r:.80}; `records` takes a list"
            )
        return self.records([image_id])[0]

    def __getitem__(self, image_id: int) -> Record:
        return self.get(image_id)

    def __contains__(self, image_id: object) -> bool:
        return is_id(image_id) and image_id in self.ids()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records())

    def __repr__(self) -> str:
        name, folder = type(self).__name__, str(self.path)
        try:
            return (
                f"{name}({folder!r}, {len(self):,} images, {self.bits} bits, "
                f"features of {self.feature_dim} values)"
            )
        except HashlensError as error:  # closed or damaged
            return f"{name}({folder!r}: {error})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_encoder(self) -> EncoderLike:
        """The encoder, or ``IndexStoreError`` where none was given."""
        if self.encoder is None:
            name = type(self).__name__
            raise IndexStoreError(
                f"{self.path}: opened without an encoder; give one to {name}.open to add images or "
                "search by image"
            )
        return self.encoder

    def to_pandas(self) -> Any:
        """All images as a pandas ``DataFrame``, with the columns of ``to_arrow``."""
        table = self.to_arrow()
        try:
            return table.to_pandas()
        except ImportError as error:
            raise HashlensError("a pandas table needs pandas: pip install pandas") from error

    def add(
        self,
        images: Iterable[ImageInput],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        *,
        uris: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
        strict: bool = False,
    ) -> AddReport:
        """Encode images, or vectors, and add them, committing as it goes.

        If it is interrupted, what was committed stays.

        Parameters
        ----------
        images : iterable of str, Path, bytes, PIL image or ndarray
            Paths are stored absolute; images from memory have an empty URI. Where the model
            takes vectors: an array (n, d) of floating numbers, or its rows.
        labels : sequence of str, optional
            Class names, one per image; None for no label.
        metadata : sequence of mapping, optional
            JSON values, one mapping per image.
        uris : sequence of str, optional
            Stored as they are, one per image: what vectors, or images from memory, stand for.
        progress : callable, optional
            Called with the number of images done since the last call.
        strict : bool
            Raise on an unreadable image instead of skipping it.

        Returns
        -------
        AddReport
            Ids of the images that were added, and the images that could not be read.

        Raises
        ------
        ImageError
            If strict and an image cannot be read; what came before it is kept.
        InvalidInputError
            If labels or metadata do not fit.
        IndexStoreError
            If it cannot be written.
        """
        return encode_images(self, images, labels, metadata, uris, progress=progress, strict=strict)

    def add_encoded(
        self,
        codes: Any,
        features: Any,
        uris: Sequence[str],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
    ) -> Ids:
        """Add images that are encoded already, in one commit.

        Parameters
        ----------
        codes : array_like of shape (n, bytes), uint8
            Packed codes.
        features : array_like of shape (n, d), floating
            Finite; rounded to the stored type. Left out where the index keeps codes alone.
        uris : sequence of str
            One per image; stored as they are.
        labels : sequence of str, optional
            Class names; None for no label.
        metadata : sequence of mapping, optional
            JSON values.

        Returns
        -------
        ndarray of shape (n,), int64
            Their ids: consecutive.
        """
        return self.add_rows(codes, features, GivenRows(uris, labels, metadata))

    def update(
        self,
        image_id: int,
        *,
        label: str | EllipsisType | None = ...,
        metadata: Metadata | EllipsisType | None = ...,
        image: ImageInput | None = None,
    ) -> None:
        """Change what is stored of an image; its id stays.

        Parameters
        ----------
        image_id : int
            An image of the index.
        label : str or None, optional
            The new label; None takes it away. Left out, it stays, and so do metadata and image.
        metadata : mapping or None, optional
            Replaces all metadata.
        image : str, Path, bytes, PIL image or ndarray, optional
            A new picture, which is encoded; a path also becomes the URI.

        Raises
        ------
        InvalidInputError
            If the id is not in the index, or a value does not fit.
        """
        image_id = self.get(image_id).id
        values: dict[str, Any] = {}
        if label is not ...:
            values["label"] = store_label(label)
        if metadata is not ...:
            values["metadata"] = store_metadata(metadata, f"image {image_id}")
        encoded = None
        if image is not None:
            (encoded,) = self.require_encoder().encode_batches([image], strict=True)
            if uri := uri_of(image):
                values["uri"] = store_text(uri)
        self._update(image_id, values, encoded)

    @property
    def model(self) -> str | None:
        """Where the encoder's model is, if known."""
        stored = self.meta.model
        return os.fspath(uri_path(stored)) if stored else None

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.meta.bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self.meta.feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds; empty where unknown."""
        return self.meta.fingerprint

    # What the two do in their own ways

    @property
    def meta(self) -> Meta:
        """Of what kind it is."""

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> Sequence[list[Hit]]:
        """As ``search_encoded``, with records: a list of hits for each query."""

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None = None, exclude: int | None = None
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code."""

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """Groups of images whose codes differ in at most ``radius`` bits."""

    def info(self) -> IndexInfo:
        """Size, kind and origin of the index."""

    def ids(self) -> Ids:
        """Ids of all images, ascending."""

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        """What is known of images, in the order asked for; of all, by id, without ``ids``."""

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features (as stored) of images; of all, by id, without ``ids``."""

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""

    def file_digest(self, image_id: int) -> bytes | None:
        """Digest of an image's file when it was encoded; None where it came from no file."""

    def label_counts(self) -> dict[str | None, int]:
        """Number of images with each label, by name; None are those without."""

    def to_arrow(self) -> Any:
        """All images as a ``pyarrow.Table``."""

    def export(self, path: str | Path, format: str) -> list[str]:
        """Write the index as a file that other libraries read."""

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte against its checksum; a line for each thing that is damaged."""

    def add_rows(self, codes: Any, features: Any, rows: GivenRows) -> Ids:
        """As ``add_encoded``, with what is known of the images' files."""

    def _update(self, image_id: int, values: dict[str, Any], encoded: EncodedBatch | None) -> None:
        """Change columns of an image, and put another picture in its place."""

    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features; ids and records stay."""

    def sync(
        self,
        folder: str | Path,
        paths: Sequence[Path],
        labels: Sequence[Any] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        strict: bool = False,
        kept: Sequence[Path] = (),
        verify_content: bool = False,
    ) -> SyncReport:
        """Make the index say what a folder holds, encoding only what is new or changed."""

    def relocate(self, old: str | Path, new: str | Path) -> tuple[int, int]:
        """Say that a folder's files are in another place now; files renamed, and missing there."""

    def copy(self, path: str | Path) -> int:
        """Copy the index as it is at its last commit; the number of its images."""

    def remove(self, ids: Any) -> None:
        """Remove images; their space is freed by ``compact``."""

    def compact(self) -> int:
        """Free the space of removed images; the number of rows that were dropped."""

    def close(self) -> None:
        """End what searches and writes."""


def _check_image(query: Any) -> ImageInput:
    """The query, or ``InvalidInputError`` if it is neither an image nor an id."""
    known = isinstance(query, str | os.PathLike | bytes | np.ndarray)
    if not known and not any(base.__module__.startswith("PIL.") for base in type(query).__mro__):
        raise InvalidInputError(
            "query: expected an image (path, bytes, PIL picture, uint8 array), an id, or a list of "
            f"these, got {type(query).__name__} {query!r:.60}"
        )
    image: ImageInput = query
    return image


_SIDE = 112
_SHOWN = 50


class Hits(list[Hit]):
    """The hits of one query, nearest first.

    A list like any other; ``pandas.DataFrame(hits)`` makes a table of it.
    """

    def _repr_html_(self) -> str:
        cells = [_cell(hit) for hit in self[:_SHOWN]]
        if len(self) > _SHOWN:
            cells.append(f"<div>and {len(self) - _SHOWN} more</div>")
        style = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-end"
        return f'<div style="{style}">{"".join(cells) or "no hits"}</div>'


def _cell(hit: Hit) -> str:
    """A hit as HTML: its picture, or its name where there is none, and what is known of it."""
    picture = _thumbnail(hit.uri)
    if picture is None:
        picture = f"<code>{html.escape(hit.uri.rpartition('/')[2] or 'no file')}</code>"
    distance = f"{hit.hamming} bits"
    for fine in (hit.euclidean, hit.asymmetric):
        if fine is not None:
            distance += f", {fine:.4g}"
    lines = [f"{hit.id}", hit.label or "", distance]
    text = "<br>".join(html.escape(line) for line in lines if line)
    style = f"width:{_SIDE}px;overflow-wrap:anywhere;font-size:12px"
    return f'<figure style="margin:0;{style}">{picture}<figcaption>{text}</figcaption></figure>'


def _thumbnail(uri: str) -> str | None:
    """A small copy of the picture, embedded; None where it cannot be read."""
    from hashlens.data.opening import load_image

    if not uri:
        return None
    try:
        picture = load_image(uri, size_hint=_SIDE)
    except HashlensError:
        return None
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" title="{html.escape(uri)}">'
