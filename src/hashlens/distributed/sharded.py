"""``ShardedIndex``: many indexes, used as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from hashlens.distributed.catalogue import Catalogue, Shard, change_catalogue, read_catalogue
from hashlens.distributed.cluster import connect
from hashlens.distributed.reader import ShardedReader
from hashlens.distributed.replicas import Replicas
from hashlens.errors import IndexStoreError, InvalidInputError
from hashlens.index.index import AddReport, HashIndex
from hashlens.protocols import Codes, Encoder, Features, Ids, ImageInput, Skipped

DEADLINE_SECONDS = 10.0
_ADD_ROWS = 256


class ShardedIndex(ShardedReader):
    """Shards on a Ray cluster, which answer as one index of the same images would.

    An instance may be used from many threads for searching; one process may change it at a time.
    """

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: Encoder | None = None,
        *,
        address: str | None = None,
        replicas: int = 1,
        deadline: float = DEADLINE_SECONDS,
        require_all: bool = False,
    ) -> ShardedIndex:
        """Open a sharded index: an actor a shard and replica is started.

        Parameters
        ----------
        path : str or Path
            Folder that holds ``shards.json``; every node must reach it.
        encoder : Encoder, optional
            Needed to search by image, and to add images.
        address : str, optional
            Ray's address; see :func:`hashlens.distributed.cluster.connect`.
        replicas : int
            Actors a shard, on different nodes where there are enough.
        deadline : float
            Seconds that a replica has for an answer.
        require_all : bool
            Raise when a shard does not answer, rather than answer without it.

        Raises
        ------
        IndexStoreError
            If there is no sharded index, or it was made by another model.
        """
        if replicas < 1 or deadline <= 0:
            raise InvalidInputError(
                f"expected replicas of 1 or more and a deadline above 0, got {replicas}, {deadline}"
            )
        folder = Path(path).absolute()
        catalogue = read_catalogue(folder)
        if encoder is not None and encoder.fingerprint != catalogue.fingerprint:
            raise IndexStoreError(
                f"{folder}: made by model {catalogue.fingerprint[:12]}, got model "
                f"{encoder.fingerprint[:12]}; use the index's own model, or index again"
            )
        actors = Replicas(connect(address), str(folder), replicas, deadline)
        index = cls(folder, actors, require_all=require_all, encoder=encoder)
        index._adopt()
        return index

    def _adopt(self) -> None:
        """Give ids to images that were committed to a shard just before a crash."""
        held = self._ask_all("held")
        self._publish({position: end for position, (_, end) in held.items()})

    def _publish(self, ends: Mapping[int, int]) -> None:
        """Give ids of the whole to the shards' own ids below each end."""

        def change(catalogue: Catalogue) -> Catalogue:
            for position, end in sorted(ends.items()):
                catalogue = catalogue.with_added(position, end)
            return catalogue

        before = self._catalogue
        change_catalogue(self.path, change)
        self._file.current(anew=True)
        if self._catalogue != before:
            self._replicas.ask({position: ("refresh",) for position in ends}, everyone=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors."""
        self._replicas.stop()

    # Growing and shrinking

    def add(
        self,
        images: Iterable[ImageInput],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        strict: bool = False,
    ) -> AddReport:
        """Encode images here and add them to the smallest shard, committing as it goes.

        Parameters
        ----------
        images : iterable of str, Path, bytes, PIL image or ndarray
            Unreadable ones are skipped and reported.
        labels, metadata, progress, strict
            As in ``HashIndex.add``.
        """
        listed = list(images)
        ids: list[Ids] = [np.zeros(0, np.int64)]
        skipped: list[Skipped] = []
        encoder = self._require_encoder()
        for batch in encoder.encode_batches(listed, batch_size=_ADD_ROWS, strict=strict):
            at = batch.positions.tolist()
            skipped += batch.skipped
            uris = [str(listed[i]) if isinstance(listed[i], str | Path) else "" for i in at]
            ids.append(
                self.add_encoded(
                    batch.codes,
                    batch.features,
                    uris,
                    None if labels is None else [labels[i] for i in at],
                    None if metadata is None else [metadata[i] for i in at],
                )
            )
            if progress is not None:
                progress(len(at) + len(batch.skipped))
        return AddReport(np.concatenate(ids), tuple(skipped))

    def add_encoded(
        self,
        codes: Codes,
        features: Features,
        uris: Sequence[str],
        labels: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
    ) -> Ids:
        """Add encoded images to the shard with the fewest ids, in one commit of that shard.

        Parameters
        ----------
        codes, features, uris, labels, metadata
            As in ``HashIndex.add_encoded``.

        Returns
        -------
        ndarray of shape (n,), int64
            Their ids.
        """
        position = min(range(len(self.shards)), key=lambda i: (self.shards[i].count, i))
        call = ("add_encoded", codes, features, list(uris), labels, metadata)
        local = self._ask_one(position, call)
        if not len(local):
            return np.zeros(0, np.int64)
        self._publish({position: int(local[-1]) + 1})
        return self.shards[position].to_global(local)

    def remove(self, ids: Any) -> None:
        """Remove images, in one commit a shard.

        Parameters
        ----------
        ids : int, or array_like of int
            All must be in the index, or nothing is removed.
        """
        wanted = np.unique(np.atleast_1d(np.asarray(ids, np.int64))).tolist()
        self.records(wanted)
        self._ask_holders("remove", wanted, repeat=False)

    def add_shard(self) -> Shard:
        """Add an empty shard; what is added later goes there until it is as full as the others."""
        shard = Shard(f"shard-{len(self.shards):04d}")
        HashIndex.create(
            self.path / shard.folder,
            bits=self.bits,
            feature_dim=self.feature_dim,
            fingerprint=self.fingerprint,
            model=self.model,
        ).close()
        change_catalogue(self.path, lambda c: replace(c, shards=(*c.shards, shard)))
        self._file.current(anew=True)
        self._ask_one(len(self.shards) - 1, ("refresh",))
        return shard

    def _ask_one(self, position: int, call: tuple[Any, ...]) -> Any:
        answers = self._replicas.ask({position: call}, repeat=False)
        if answers.missing:
            raise self._unanswered(answers.missing)
        return answers.values[position]
