"""``HashIndex``: an index on disk, to fill, change and search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hashlens.codes.packing import check_bits
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.file_uris import path_uri, uri_path
from hashlens.index import adding, compacting, syncing, writing
from hashlens.index.adding import AddReport
from hashlens.index.checks import check_encoded, check_ids
from hashlens.index.files import file_state
from hashlens.index.info import IndexInfo
from hashlens.index.records import Hit, Metadata, Record, store_metadata, store_text
from hashlens.index.schema import FEATURE_TYPES, Meta
from hashlens.index.searcher import IndexSearcher
from hashlens.index.store import Store
from hashlens.index.syncing import SyncReport
from hashlens.protocols import Encoder, Ids, ImageInput

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
        encoder: Encoder | None = None,
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
        encoder : Encoder, optional
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
        cls, path: str | Path, encoder: Encoder | None = None, *, read_only: bool = False
    ) -> HashIndex:
        """Open an index.

        Parameters
        ----------
        path : str or Path
            The folder.
        encoder : Encoder, optional
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
        return adding.add_images(
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
        images = adding.new_images(len(codes), uris, labels, metadata)
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
            values["label"] = adding.store_label(label)
        if not isinstance(metadata, _Keep):
            values["metadata"] = store_metadata(metadata, f"image {image_id}")
        if image is not None:
            self.get(image_id)
            uri = adding.uri_of(image)
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
        return compacting.compact(self.store)

    def _require_encoder(self) -> Encoder:
        if self._encoder is None:
            raise IndexStoreError(
                f"{self.path}: opened without an encoder; give one to HashIndex.open to add images"
            )
        return self._encoder
