"""``HashIndex``: an index on disk, to fill, change and search."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_bits, code_bytes
from hashlens.codes.search import hamming_radius
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.files import path_uri, uri_path
from hashlens.index import exporting, syncing, verifying, writing
from hashlens.index.duplicates import DuplicateGroups, find_duplicates
from hashlens.index.files import file_state
from hashlens.index.layout import FEATURE_TYPES, FORMAT_VERSION, Meta
from hashlens.index.rows import (
    Hit,
    Metadata,
    Record,
    check_encoded,
    check_ids,
    check_width,
    require_same_model,
    store_metadata,
    store_text,
)
from hashlens.index.snapshot import (
    Snapshot,
    file_digest,
    ids_by_uri,
    label_counts,
    positions,
    records,
    to_hits,
)
from hashlens.index.store import Store, Transaction
from hashlens.index.syncing import SyncReport
from hashlens.index.writing import AddReport
from hashlens.types import (
    Codes,
    EncoderLike,
    Features,
    Ids,
    ImageInput,
    Mode,
    SearchOptions,
    SearchResult,
    SearchTrace,
)


@dataclass(frozen=True)
class IndexInfo:
    """What an index is.

    Attributes
    ----------
    path : str
        The folder.
    format_version : int
        Of the folder.
    images, removed : int
        Living images; rows that ``compact`` would drop.
    bits, feature_dim : int
        Length of a code; width of a feature vector (0: codes only).
    features : str
        "float16" or "float32".
    fingerprint, model : str
        Of the encoder, and where its model lies; empty where unknown.
    commit : int
        Number of the last commit.
    bytes_on_disk : int
        Size of all files.
    """

    path: str
    format_version: int
    images: int
    removed: int
    bits: int
    feature_dim: int
    features: str
    fingerprint: str
    model: str
    commit: int
    bytes_on_disk: int


def describe(folder: Path, snapshot: Snapshot) -> IndexInfo:
    """What the index in ``folder`` is at one of its commits."""
    meta = snapshot.meta
    return IndexInfo(
        path=os.fspath(folder),
        format_version=FORMAT_VERSION,
        images=len(snapshot),
        removed=meta.count - len(snapshot),
        bits=meta.bits,
        feature_dim=meta.feature_dim,
        features=meta.features,
        fingerprint=meta.fingerprint,
        model=meta.model,
        commit=meta.commit,
        bytes_on_disk=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()),
    )


class EncodedQueries(NamedTuple):
    """Queries of which the images are encoded, and the ids still to be looked up."""

    total: int
    images: list[int]
    codes: Codes | None
    features: Features | None
    ids: dict[int, int]


def encode_queries(
    queries: Sequence[Any], encoder: EncoderLike | None, path: Path
) -> EncodedQueries:
    """Encode the queries that are images.

    Raises
    ------
    IndexStoreError
        If there are images and no encoder.
    ImageError
        If one cannot be read.
    """
    ids = {
        place: int(query)
        for place, query in enumerate(queries)
        if isinstance(query, int | np.integer) and not isinstance(query, bool)
    }
    images = [place for place in range(len(queries)) if place not in ids]
    if not images:
        return EncodedQueries(len(queries), [], None, None, ids)
    if encoder is None:
        raise IndexStoreError(
            f"{path}: opened without an encoder; give one to HashIndex.open to search by image, "
            "or search by id"
        )
    codes, features = encoder.encode([queries[place] for place in images])
    return EncodedQueries(len(queries), images, codes, features, ids)


def fill_in_ids(
    connection: sqlite3.Connection, snapshot: Snapshot, queries: EncodedQueries
) -> tuple[Codes, Features]:
    """Codes and features of all queries, those given by id from the index."""
    meta = snapshot.meta
    codes = np.zeros((queries.total, code_bytes(meta.bits)), np.uint8)
    features = np.zeros((queries.total, meta.feature_dim), np.float32)
    if queries.codes is not None and queries.features is not None:
        codes[queries.images], features[queries.images] = queries.codes, queries.features
    if queries.ids:
        places = list(queries.ids)
        at = positions(connection, queries.ids.values())
        codes[places], features[places] = snapshot.codes[at], snapshot.features[at]
    return codes, features


class IndexReader:
    """An index at its last commit, and what is known of its images.

    Parameters
    ----------
    store : Store
        The folder.
    encoder : EncoderLike, optional
        Needed to search by image.
    """

    def __init__(self, store: Store, encoder: EncoderLike | None = None) -> None:
        self.store = store
        self._encoder = encoder
        self._snapshot: Snapshot | None = None
        try:
            with self._at_last_commit() as (_, snapshot):
                if encoder is not None:
                    require_same_model(store.path, snapshot.meta, encoder)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; arrays stay mapped while something uses them."""
        self.store.close()
        self._snapshot = None

    def __len__(self) -> int:
        with self._at_last_commit() as (_, snapshot):
            return len(snapshot)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.store.path

    @property
    def encoder(self) -> EncoderLike | None:
        """What encodes images, if it was given."""
        return self._encoder

    @property
    def model(self) -> str | None:
        """Where the encoder's model lies, if known."""
        stored = self.store.meta().model
        return os.fspath(uri_path(stored)) if stored else None

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.store.meta().bits

    @property
    def feature_dim(self) -> int:
        """Width of a feature vector."""
        return self.store.meta().feature_dim

    @property
    def fingerprint(self) -> str:
        """Of the encoder whose codes it holds; empty where unknown."""
        return self.store.meta().fingerprint

    def info(self) -> IndexInfo:
        """Size, kind and origin of the index."""
        with self._at_last_commit() as (_, snapshot):
            return describe(self.path, snapshot)

    def label_counts(self) -> dict[str | None, int]:
        """Number of images with each label, by name; None are those without."""
        with self._at_last_commit() as (transaction, _):
            return label_counts(transaction.connection)

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte against its checksum.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of rows read since the last call; three arrays have each
            ``images + removed`` rows.

        Returns
        -------
        list of str
            A line for each thing that is damaged, with its file; empty if all is well.

        Raises
        ------
        IndexStoreError
            If the database is too damaged to be read at all.
        """
        return verifying.find_damage(self.store, progress)

    def ids(self) -> Ids:
        """Ids of all images, ascending."""
        with self._at_last_commit() as (_, snapshot):
            living: Ids = snapshot.ids[snapshot.living()]
            return living

    def get(self, image_id: int) -> Record:
        """What is known of an image.

        Raises
        ------
        InvalidInputError
            If it is not in the index.
        """
        return self.records([image_id])[0]

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        """What is known of images, in the order asked for; of all, by id, without ``ids``.

        Raises
        ------
        InvalidInputError
            If one is not in the index.
        """
        with self._at_last_commit() as (transaction, _):
            return records(transaction.connection, ids)

    def file_digest(self, image_id: int) -> bytes | None:
        """Digest of an image's file when it was encoded; None where it came from no file.

        Raises
        ------
        InvalidInputError
            If it is not in the index.
        """
        with self._at_last_commit() as (transaction, _):
            return file_digest(transaction.connection, image_id)

    def uris(self) -> dict[str, list[int]]:
        """Ids of the images that have each URI."""
        with self._at_last_commit() as (transaction, _):
            return ids_by_uri(transaction.connection)

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        """Ids, codes and features (as stored) of images; of all, by id, without ``ids``."""
        with self._at_last_commit() as (transaction, snapshot):
            if ids is None:
                at = snapshot.living()
            else:
                at = positions(transaction.connection, check_ids(ids).tolist())
            return snapshot.ids[at], snapshot.codes[at], snapshot.features[at]

    def export(self, path: str | Path, format: str) -> None:
        """Write the index as a file that other libraries read.

        Parameters
        ----------
        path : str or Path
            Must not exist.
        format : {"faiss", "parquet", "numpy"}
            A FAISS ``IndexBinaryFlat`` (inside an ``IndexBinaryIDMap`` where ids are not 0, 1,
            2, ...); a Parquet table with records, codes and features; a folder of ``.npy`` files.

        Raises
        ------
        MissingExtraError
            If the library that the format needs is not installed.
        IndexStoreError
            If something stands at ``path``, or it cannot be written.
        """
        with self._at_last_commit() as (transaction, snapshot):
            exporting.export(transaction, snapshot, Path(path), format)

    @contextmanager
    def _at_last_commit(self) -> Iterator[tuple[Transaction, Snapshot]]:
        """A transaction, and the arrays of the commit it sees."""
        for last_try in (False, False, True):
            with self.store.reading() as transaction:
                snapshot = self._snapshot
                if snapshot is None or snapshot.meta.commit != transaction.meta.commit:
                    try:
                        snapshot = Snapshot(self.store, transaction)
                    except IndexStoreError:
                        # `compact` may have switched files since the transaction began.
                        if last_try or self.store.meta().generation == transaction.meta.generation:
                            raise
                        continue
                    self._snapshot = snapshot
                yield transaction, snapshot
                return


Query: TypeAlias = "ImageInput | int"


class IndexSearcher(IndexReader):
    """What an index answers without being changed; ``HashIndex`` adds what changes it."""

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
        mode: Mode = "hds",
        radius: int | None = None,
        where: Mapping[str, Any] | None = None,
        pool: int | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Find the images most like a query, nearest first, ties by id.

        Parameters
        ----------
        query : image, path, or int; or a list of these
            An int is the id of an image in the index, which then comes first itself. A list is
            answered together, and gives a list of lists.
        k : int
            At most k results a query.
        mode : {"hds", "bcs", "es"}
            Coarse by codes then fine by features; codes only; or exhaustive over features.
        radius : int, optional
            ``hds`` and ``bcs``: only images within this Hamming distance.
        where : mapping, optional
            ``label`` or metadata keys, to a value, a list of values, or {">=": value, ...}.
        pool : int, optional
            ``hds`` without radius: images that the fine search looks at.
        trace : SearchTrace, optional
            ``hds`` adds its times and pools.

        Raises
        ------
        ImageError
            If an image cannot be read.
        InvalidInputError
            If an argument does not fit.
        IndexStoreError
            If the index is damaged, or no encoder was given for an image.
        """
        options = SearchOptions(k, mode=mode, radius=radius, where=where, pool=pool)
        queries = query if isinstance(query, list) else [query]
        encoded = encode_queries(queries, self._encoder, self.path)
        with self._at_last_commit() as (transaction, snapshot):
            codes, features = fill_in_ids(transaction.connection, snapshot, encoded)
            hits = self._find_hits(transaction, snapshot, codes, features, options, trace)
        return hits if isinstance(query, list) else hits[0]

    def search_encoded(
        self, codes: Codes, features: Features | None, options: SearchOptions
    ) -> SearchResult:
        """Search with encoded queries; see :class:`hashlens.types.Searcher`."""
        with self._at_last_commit() as (transaction, snapshot):
            return self._find(transaction, snapshot, codes, features, options)

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        trace: SearchTrace | None = None,
    ) -> list[list[Hit]]:
        """As ``search_encoded``, with records: a list of hits for each query, of one commit."""
        with self._at_last_commit() as (transaction, snapshot):
            return self._find_hits(transaction, snapshot, codes, features, options, trace)

    def histogram(
        self,
        code: Codes,
        where: Mapping[str, Any] | None = None,
        exclude: int | None = None,
    ) -> NDArray[np.int64]:
        """Number of images at each Hamming distance from a code.

        Parameters
        ----------
        code : ndarray of shape (bytes,), uint8
            A packed code.
        where : mapping, optional
            As in ``search``.
        exclude : int, optional
            The id of an image that is not counted.

        Returns
        -------
        ndarray of shape (bits + 1,), int64
        """
        with self._at_last_commit() as (transaction, snapshot):
            allowed = snapshot.matching(transaction.connection, where)
            searcher = snapshot.searcher(transaction.connection)
            bits = snapshot.meta.bits
            found = hamming_radius(searcher.codes, np.atleast_2d(code), bits, allowed=allowed)
            distances = found.distances
            if exclude is not None:
                distances = distances[searcher.to_ids(found.ids) != exclude]
            return np.bincount(distances, minlength=bits + 1).astype(np.int64)

    def duplicates(
        self, radius: int, *, progress: Callable[[int], None] | None = None
    ) -> DuplicateGroups:
        """Groups of images whose codes differ in at most ``radius`` bits, by an exact self-join.

        Parameters
        ----------
        radius : int
            In bits; 0 finds equal codes.
        progress : callable, optional
            Called with the number of pairs found since the last call.
        """
        with self._at_last_commit() as (transaction, snapshot):
            searcher = snapshot.searcher(transaction.connection)
            allowed = snapshot.matching(transaction.connection, None)
        return find_duplicates(searcher, radius, allowed, progress)

    def _find(
        self,
        transaction: Transaction,
        snapshot: Snapshot,
        codes: Any,
        features: Any,
        options: SearchOptions,
        trace: SearchTrace | None = None,
    ) -> SearchResult:
        """Search one commit."""
        codes = check_width(codes, snapshot.meta.bits)
        allowed = snapshot.matching(transaction.connection, options.where)
        searcher = snapshot.searcher(transaction.connection)
        return searcher.search_encoded(codes, features, options, allowed=allowed, trace=trace)

    def _find_hits(
        self,
        transaction: Transaction,
        snapshot: Snapshot,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        trace: SearchTrace | None,
    ) -> list[list[Hit]]:
        found = self._find(transaction, snapshot, codes, features, options, trace)
        euclidean = options.mode != "bcs"
        return to_hits(transaction.connection, snapshot, codes, found, euclidean=euclidean)


class SearchKeywords(TypedDict, total=False):
    """What ``search`` takes after k."""

    mode: Mode
    radius: int | None
    where: Mapping[str, Any] | None
    pool: int | None
    trace: SearchTrace | None


__all__ = ["AddReport", "HashIndex", "Hit", "IndexInfo", "Record", "SyncReport"]


class _Keep:
    """Stands for: leave as it is."""


_KEEP = _Keep()


class HashIndex(IndexSearcher):
    """An index in a folder; see ``docs/reference/index-format.md``.

    One process may write at a time and any number may search; a search sees one commit, the last.
    An instance may be used from many threads.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> index = HashIndex.create(folder, bits=8, feature_dim=2)
    >>> codes, features = np.array([[0], [255]], np.uint8), np.eye(2, dtype=np.float32)
    >>> index.add_encoded(codes, features, ["a.jpg", "b.jpg"], labels=["cat", "dog"])
    array([0, 1])
    >>> [hit.label for hit in index.search(1, k=2)]
    ['dog', 'cat']
    """

    @classmethod
    def create(
        cls,
        path: str | Path,
        encoder: EncoderLike | None = None,
        *,
        bits: int | None = None,
        feature_dim: int | None = None,
        fingerprint: str | None = None,
        features: str = "float16",
        model: str | Path | None = None,
    ) -> HashIndex:
        """Make a new, empty index.

        Parameters
        ----------
        path : str or Path
            A folder that does not exist yet, or is empty.
        encoder : EncoderLike, optional
            Encodes what is added and searched; gives bits, feature_dim and fingerprint.
        bits, feature_dim : int, optional
            Needed without an encoder; feature_dim 0 keeps codes alone.
        fingerprint : str, optional
            Of the encoder, where codes are made elsewhere.
        features : {"float16", "float32"}
            How features are stored.
        model : str or Path, optional
            Where the encoder's model lies, so that searching needs no ``--model``.

        Raises
        ------
        IndexStoreError
            If something stands at ``path`` or it cannot be written.
        InvalidInputError
            If an argument does not fit.
        """
        if encoder is not None:
            bits, feature_dim = encoder.bits, encoder.feature_dim
            fingerprint = encoder.fingerprint
        if bits is None or feature_dim is None or feature_dim < 0:
            raise InvalidInputError(
                f"create: expected an encoder, or bits and feature_dim; got {bits}, {feature_dim}"
            )
        if features not in FEATURE_TYPES:
            raise InvalidInputError(
                f"features: expected one of {', '.join(FEATURE_TYPES)}, got {features!r}"
            )
        meta = Meta(
            bits=check_bits(int(bits)),
            feature_dim=int(feature_dim),
            features=features,
            fingerprint=fingerprint or "",
            model=path_uri(model) if model else "",
        )
        return cls(Store.create(Path(path), meta), encoder)

    @classmethod
    def open(
        cls, path: str | Path, encoder: EncoderLike | None = None, *, read_only: bool = False
    ) -> HashIndex:
        """Open an index.

        Parameters
        ----------
        path : str or Path
            The folder.
        encoder : EncoderLike, optional
            Needed to add or search images rather than codes.
        read_only : bool
            Refuse changes; needed where the folder cannot be written.

        Raises
        ------
        IndexStoreError
            If there is no index, it is damaged or of a newer version, or the encoder is not the
            one whose codes it holds.
        """
        return cls(Store(Path(path), read_only=read_only), encoder)

    # Filling and changing

    def add(
        self,
        images: Iterable[ImageInput],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        strict: bool = False,
    ) -> AddReport:
        """Encode images and add them, committing as it goes.

        Interrupted, it leaves whole what was committed.

        Parameters
        ----------
        images : iterable of str, Path, bytes, PIL image or ndarray
            Paths are stored absolute; images from memory have an empty URI.
        labels : sequence of str, optional
            Class names, one an image; None for no label.
        metadata : sequence of mapping, optional
            JSON values, one mapping an image.
        progress : callable, optional
            Called with the number of images done since the last call.
        strict : bool
            Raise on an unreadable image instead of skipping it.

        Raises
        ------
        ImageError
            If strict and an image cannot be read; what came before it is kept.
        InvalidInputError
            If labels or metadata do not fit.
        IndexStoreError
            If it cannot be written.
        """
        return writing.add_images(
            self.store, self._require_encoder(), images, labels, metadata, progress, strict
        )

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
        features : array_like of shape (n, d), floating; or None where feature_dim is 0
            Finite; rounded to the stored type.
        uris : sequence of str
            One an image; stored as they are.
        labels : sequence of str, optional
            Class names; None for no label.
        metadata : sequence of mapping, optional
            JSON values.

        Returns
        -------
        ndarray of shape (n,), int64
            Their ids: consecutive.
        """
        codes, stored = check_encoded(self.store.meta(), codes, features)
        images = writing.new_images(len(codes), uris, labels, metadata)
        return writing.append_images(self.store, codes, stored, images)

    def replace_encoded(self, ids: Any, codes: Any, features: Any) -> None:
        """Give images new codes and features, in one commit; ids and records stay.

        Parameters
        ----------
        ids : array_like of shape (n,), int64
            Images of the index, each once.
        codes : array_like of shape (n, bytes), uint8
            Packed codes.
        features : array_like of shape (n, d), floating
            As in ``add_encoded``.
        """
        ids = check_ids(ids)
        codes, stored = check_encoded(self.store.meta(), codes, features)
        if len(codes) != len(ids):
            raise InvalidInputError(f"codes: expected {len(ids)}, one an id, got {len(codes)}")
        if len(ids):
            writing.replace_images(self.store, ids, codes, stored, [None] * len(ids))

    def sync(
        self,
        folder: str | Path,
        paths: Sequence[Path],
        labels: Sequence[Any] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        strict: bool = False,
    ) -> SyncReport:
        """Make the index say what a folder holds, encoding only what is new or changed.

        A file counts as changed if its size or time differs, and then its content. Images of
        other folders, and rows of parquet files, stay. Commits as it goes: stopped, it goes on
        where it was.

        Parameters
        ----------
        folder : str or Path
            Images of the index that lie below it, and are not among ``paths``, are removed.
        paths : sequence of Path
            The image files below the folder.
        labels : sequence of str, optional
            Class names of new and renamed images, one a path; None leaves a renamed one's own.
        progress : callable, optional
            Called with the number of images encoded, and the number to encode.
        strict : bool
            Raise on an unreadable image instead of skipping it.

        Raises
        ------
        IndexStoreError
            If there are no paths, though images of the index come from this folder.
        """
        return syncing.sync_folder(
            self.store, self._require_encoder(), Path(folder), paths, labels, progress, strict
        )

    def remove(self, ids: Any) -> None:
        """Remove images, in one commit; their space is freed by ``compact``.

        Parameters
        ----------
        ids : int, or array_like of int
            All must be in the index, or nothing is removed.

        Raises
        ------
        InvalidInputError
            If one is not there; the message names it.
        """
        checked = check_ids(ids)
        if len(checked):
            writing.remove_images(self.store, checked)

    def update(
        self,
        image_id: int,
        *,
        label: str | _Keep | None = _KEEP,
        metadata: Metadata | _Keep | None = _KEEP,
        image: ImageInput | None = None,
    ) -> None:
        """Change what is stored of an image; its id stays.

        Parameters
        ----------
        image_id : int
            An image of the index.
        label : str or None, optional
            The new label; None takes it away.
        metadata : mapping or None, optional
            Replaces all metadata.
        image : str, Path, bytes, PIL image or ndarray, optional
            Encoded anew; a path also becomes the URI.

        Raises
        ------
        InvalidInputError
            If the id is not in the index, or a value does not fit.
        """
        values: dict[str, Any] = {}
        if not isinstance(label, _Keep):
            values["label"] = writing.store_label(label)
        if not isinstance(metadata, _Keep):
            values["metadata"] = store_metadata(metadata, f"image {image_id}")
        if image is not None:
            self.get(image_id)
            uri = writing.uri_of(image)
            state = file_state(uri_path(uri)) if uri else None
            codes, features = self._require_encoder().encode([image])
            self.replace_encoded([image_id], codes, features)
            if uri:
                values["uri"] = store_text(uri)
            if state:
                values |= state._asdict()
        if values:
            writing.update_records(self.store, [(int(image_id), values)])

    def compact(self) -> int:
        """Free the space of removed images; ids stay. Readers go on meanwhile.

        Returns
        -------
        int
            Rows that were dropped.
        """
        return writing.compact(self.store)

    def _require_encoder(self) -> EncoderLike:
        if self._encoder is None:
            raise IndexStoreError(
                f"{self.path}: opened without an encoder; give one to HashIndex.open to add images"
            )
        return self._encoder
