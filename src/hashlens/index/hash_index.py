"""``HashIndex``: an index on disk, to fill, change and search."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlens.codes.packing import check_bits
from hashlens.codes.search import hamming_radius
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.files import compared, path_uri, uri_path
from hashlens.index import exporting, writing
from hashlens.index.layout import FEATURE_TYPES, FORMAT_VERSION, Meta
from hashlens.index.protocol import Hits, Index
from hashlens.index.rows import (
    ROW,
    check_encoded,
    check_ids,
    check_width,
    list_ids,
    load_text,
    require_same_model,
    to_records,
)
from hashlens.index.snapshot import Snapshot, View
from hashlens.index.store import Store, copy_index, find_damage
from hashlens.index.syncing import FolderSync, relocate
from hashlens.types import (
    Codes,
    DuplicateGroups,
    EncodedBatch,
    EncoderLike,
    Features,
    Ids,
    IndexInfo,
    Latent,
    Record,
    SearchOptions,
    SearchResult,
    SearchTrace,
    SyncReport,
)

SURE_SECONDS = 1.0
"""How long the file ``head`` is believed: a writer may have died before it wrote there."""


class HashIndex(Index):
    """An index in a folder; see ``docs/reference/index-format.md``.

    One process may write at a time and any number may search; a search sees one commit, the last.
    An instance may be used from many threads. ``index[17]`` is the record of an image, and
    iterating gives all records by id.

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

    def __init__(self, store: Store, encoder: EncoderLike | None = None) -> None:
        self.store = store
        self.path, self.encoder = store.path, encoder
        self._snapshot: Snapshot | None = None
        self._ask_at = 0.0  # the database, whether there is a later commit
        self._views = threading.local()
        try:
            with self._last_commit():
                pass
        except BaseException:
            store.close()
            raise

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
        features : {"float16", "float32", "none"}
            How features are stored; "none" keeps codes alone.
        model : str or Path, optional
            Where the encoder's model is, so that searching needs no ``--model``.

        Returns
        -------
        HashIndex

        Raises
        ------
        IndexStoreError
            If something exists at ``path`` already or it cannot be written.
        InvalidInputError
            If an argument does not fit.
        """
        if encoder is not None:
            bits, feature_dim = encoder.bits, encoder.feature_dim
            fingerprint = encoder.fingerprint
        if features == "none":
            feature_dim, features = 0, FEATURE_TYPES[0]
        if bits is None or feature_dim is None or feature_dim < 0:
            raise InvalidInputError(
                f"create: expected an encoder, or bits and feature_dim; got {bits}, {feature_dim}"
            )
        if features not in FEATURE_TYPES:
            raise InvalidInputError(
                f"features: expected one of {', '.join(FEATURE_TYPES)}, none; got {features!r}"
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

        Returns
        -------
        HashIndex

        Raises
        ------
        IndexStoreError
            If there is no index, it is damaged or of a newer version, or the encoder is not the
            one whose codes it holds.
        """
        return cls(Store(Path(path), read_only=read_only), encoder)

    def accept_replacement(self) -> bool:
        """Let changes go to the index that stands at the path now.

        Reading follows a folder that is replaced by another one by itself. Changes are refused
        from then on, because ids may mean other images; call this once the caller knows.
        """
        return self.store.accept_replacement()

    def close(self) -> None:
        """Close the database; arrays stay mapped while something uses them."""
        self.store.close()
        self._snapshot = None

    def __len__(self) -> int:
        with self._last_commit() as view:
            return len(view.snapshot)

    @property
    def model(self) -> str | None:  # as it is now: others may move it
        stored = self.store.meta().model
        return os.fspath(uri_path(stored)) if stored else None

    @property
    def meta(self) -> Meta:
        """What was read last; bits, width and fingerprint never change."""
        snapshot = self._snapshot
        return self.store.meta() if snapshot is None else snapshot.meta

    def info(self) -> IndexInfo:
        with self._last_commit() as view:
            images, meta = len(view.snapshot), view.snapshot.meta
            return IndexInfo(
                path=os.fspath(self.path),
                format_version=FORMAT_VERSION,
                images=images,
                removed=meta.count - images,
                bits=meta.bits,
                feature_dim=meta.feature_dim,
                features=meta.features,
                fingerprint=meta.fingerprint,
                model=meta.model,
                commit=meta.commit,
                bytes_on_disk=sum(f.stat().st_size for f in self.path.iterdir() if f.is_file()),
            )

    # Searching; `search` itself is in `Index`

    def search_encoded(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
    ) -> SearchResult:
        snapshot = self._snapshot
        if snapshot is not None and snapshot.ready is not None and not options.where:
            block = getattr(self._views, "view", None)
            # asking the database takes as long as a search
            if block is None and time.monotonic() < self._ask_at and snapshot.is_last():
                snapshot.arrays.require_sizes(snapshot.meta.count)
                codes = check_width(codes, snapshot.meta.bits)
                return snapshot.ready.search_encoded(codes, features, options, latent)
        with self._last_commit() as view:
            return view.search(codes, features, options, latent)

    def search_hits(
        self,
        codes: Codes,
        features: Features | None,
        options: SearchOptions,
        latent: Latent | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Hits]:
        """As ``search_encoded``, with records: a list of hits for each query, of one commit."""
        with self._last_commit() as view:
            found = view.search(codes, features, options, latent, trace)
            return view.hits(codes, found, options.mode)

    def histogram(
        self, code: Codes, where: Mapping[str, Any] | None = None, exclude: int | None = None
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
        with self._last_commit() as (connection, snapshot):
            allowed = snapshot.matching(connection, where)
            searcher = snapshot.searcher(connection)
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

        Returns
        -------
        DuplicateGroups
        """
        with self._last_commit() as (connection, snapshot):
            allowed = snapshot.matching(connection, None)
            searcher = snapshot.searcher(connection)
        return searcher.duplicates(radius, allowed, progress)

    # Reading what is stored

    def ids(self) -> Ids:
        with self._last_commit() as (_, snapshot):
            living: Ids = snapshot.ids[snapshot.living()]
            return living

    def records(self, ids: Iterable[int] | None = None) -> list[Record]:
        """What is known of images, in the order asked for; of all, by id, without ``ids``."""
        columns = f"SELECT {ROW} FROM images WHERE alive AND"
        with self._last_commit() as view:
            if ids is None:
                every = view.connection.execute(f"{columns} TRUE ORDER BY id")
                return to_records(list(every))
            return to_records([view.one(f"{columns} id = ?", each) for each in list_ids(ids)])

    def encoded(self, ids: Iterable[int] | None = None) -> tuple[Ids, Codes, NDArray[Any]]:
        with self._last_commit() as view:
            snapshot, sql = view.snapshot, "SELECT position FROM images WHERE id = ? AND alive"
            if ids is None:
                at = snapshot.living()
            else:
                at = np.array([view.one(sql, each)[0] for each in list_ids(ids)], np.int64)
            return snapshot.ids[at], snapshot.codes[at], snapshot.features[at]

    def uris(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        with self._last_commit() as view:
            sql = "SELECT id, uri FROM images WHERE alive ORDER BY id"
            for image_id, uri in view.connection.execute(sql):
                found.setdefault(load_text(uri) or "", []).append(image_id)
        return found

    def label_counts(self) -> dict[str | None, int]:
        sql = "SELECT label, COUNT(*) FROM images WHERE alive GROUP BY label ORDER BY label"
        counts: dict[str | None, int] = {}
        with self._last_commit() as view:
            for stored, count in view.connection.execute(sql):
                label = None if stored is None else compared(load_text(stored) or "")
                counts[label] = counts.get(label, 0) + count
        return counts

    def file_digest(self, image_id: int) -> bytes | None:
        """Digest of an image's file when it was encoded; None where it came from no file."""
        with self._last_commit() as view:
            sql = "SELECT digest FROM images WHERE id = ? AND alive"
            digest: bytes | None = view.one(sql, *list_ids(image_id))[0]
        return digest

    def copies(self, since: int = 0) -> list[list[int]]:
        """Groups of images whose files have the same content, one of id ``since`` or more."""
        sql = (
            "SELECT id, digest FROM images WHERE alive AND digest IN (SELECT digest FROM images "
            "WHERE alive AND digest NOT NULL AND id >= ?) ORDER BY id"
        )
        groups: dict[bytes, list[int]] = {}
        with self._last_commit() as view:
            for image_id, digest in view.connection.execute(sql, [since]):
                groups.setdefault(digest, []).append(image_id)
        return [group for group in groups.values() if len(group) > 1]

    def to_arrow(self) -> Any:
        """All images as a table: id, uri, label, metadata (JSON text), code (bytes), features.

        Each key of the metadata is a column too: yes or no, numbers, words or lists of words where
        all values agree, else text.

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        """
        with self._last_commit() as view:
            return exporting.to_arrow(view)

    def export(self, path: str | Path, format: str) -> list[str]:
        """Write the index as a file that other libraries read.

        Parameters
        ----------
        path : str or Path
            Must not exist.
        format : str
            "faiss", an ``IndexBinaryFlat`` (inside an ``IndexBinaryIDMap`` where ids are not 0, 1,
            2, ...); "parquet", a table with records, codes and features; "numpy", a folder of
            ``.npy`` files; or "pgvector", "milvus", "elasticsearch", "lancedb" or "sqlite-vec",
            see docs/guides/index.md.

        Returns
        -------
        list of str
            Notes: metadata whose type the file cannot keep.

        Raises
        ------
        MissingExtraError
            If the library that the format needs is not installed.
        IndexStoreError
            If something exists at ``path`` already, or it cannot be written.
        """
        with self._last_commit() as view:
            return exporting.export(view, Path(path), format)

    def verify(self, progress: Callable[[int], None] | None = None) -> list[str]:
        """Read every byte against its checksum.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of rows read since the last call; each of three arrays has
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
        return find_damage(self.store, progress)

    def copy(self, path: str | Path) -> int:
        """Copy the index as it is at its last commit, which others may go on writing.

        Parameters
        ----------
        path : str or Path
            New folder. It has all files of the index, every byte checked, and the pictures
            that a service was given.

        Returns
        -------
        int
            Images of the copy.

        Raises
        ------
        IndexStoreError
            If something exists at ``path`` already, it cannot be written, or the index is damaged.
        """
        return copy_index(self.store, Path(path))

    # Filling and changing; `add`, `add_encoded` and `update` are in `Index`

    def add_rows(self, codes: Any, features: Any, rows: writing.GivenRows) -> Ids:
        ids = writing.add_images(self.store, codes, features, rows)
        if self._snapshot is not None and self._snapshot.ready is not None:  # no search need do it
            with suppress(IndexStoreError), self._last_commit() as (connection, snapshot):
                if snapshot.in_order:  # or all codes are laid out again
                    snapshot.searcher(connection)
        return ids

    def _update(self, image_id: int, values: dict[str, Any], encoded: EncodedBatch | None) -> None:
        writing.update_image(self.store, image_id, values, encoded)

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
            raise InvalidInputError(f"codes: expected {len(ids)}, one per id, got {len(codes)}")
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
        kept: Sequence[Path] = (),
        verify_content: bool = False,
    ) -> SyncReport:
        """Make the index say what a folder holds, encoding only what is new or changed.

        A file counts as changed if its size or time differs, and then its content. A new file is
        one of the index that moved, if it has the content of one that is gone, here or elsewhere.
        Images of other folders, and rows of parquet files, stay. It commits as it goes: stopped and
        run again, it goes on where it was.

        Parameters
        ----------
        folder : str or Path
            Images of the index that are below it, and not among ``paths``, are removed.
        paths : sequence of Path
            The image files below the folder.
        labels : sequence of str, optional
            Class names of new and renamed images, one per path; None leaves a renamed one's own.
        progress : callable, optional
            Called with the number of images encoded, and the number to encode.
        strict : bool
            Raise on an unreadable image instead of skipping it.
        kept : sequence of Path
            Files, and folders with all below, that could not be read: what the index has of them
            stays.
        verify_content : bool
            Read every file, also those whose size and time say that they are unchanged.

        Returns
        -------
        SyncReport

        Raises
        ------
        IndexStoreError
            If there are no paths, though images of the index come from this folder.
        """
        encoder = self.require_encoder()
        syncing = FolderSync(self.store, encoder, Path(folder), progress, strict, verify_content)
        return syncing.run(paths, labels, kept)

    def relocate(self, old: str | Path, new: str | Path) -> tuple[int, int]:
        """Say that a folder's files are in another place now; nothing is encoded again.

        Parameters
        ----------
        old, new : str or Path
            Folders. Paths of images, of tables whose rows they are, and of the model that are
            below the one are changed to be below the other.

        Returns
        -------
        (int, int)
            Number of images whose path was changed, and of those whose file is not there.

        Raises
        ------
        IndexStoreError
            If nothing comes from ``old``, or no file is found below ``new``; nothing is changed.
        """
        places = (Path(os.path.abspath(os.path.expanduser(each))) for each in (old, new))
        return relocate(self.store, *places)

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

    def compact(self) -> int:
        """Free the space of removed images; ids stay. Readers go on meanwhile."""
        return writing.compact(self.store)

    @contextmanager
    def one_commit(self) -> Iterator[View]:
        """A block in which this thread reads one commit, whatever is written meanwhile."""
        with self._last_commit() as view:
            before, self._views.view = getattr(self._views, "view", None), view
            try:
                yield view
            finally:
                self._views.view = before

    @contextmanager
    def _last_commit(self) -> Iterator[View]:
        """A transaction, and the arrays of the commit that it sees; that of `one_commit` in it."""
        if (known := getattr(self._views, "view", None)) is not None:
            yield known
            return
        for last_try in (False, False, True):
            with self.store.reading() as transaction:
                snapshot = self._snapshot
                if snapshot is None or not snapshot.is_of(transaction):
                    if self.encoder is not None:  # another index may have come to the path
                        require_same_model(self.path, transaction.meta, self.encoder)
                    try:
                        snapshot = Snapshot(transaction, snapshot)
                    except IndexStoreError:
                        # `compact` may have switched files since the transaction began.
                        if last_try or self.store.meta().generation == transaction.meta.generation:
                            raise
                        continue
                    known = self._snapshot
                    if known is None or not known.is_later(snapshot):
                        self._snapshot = snapshot
                snapshot.arrays.require_sizes(snapshot.meta.count)
                self._ask_at = time.monotonic() + SURE_SECONDS
                yield View(transaction.connection, snapshot)
                return
