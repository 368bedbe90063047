"""HashIndex against a plain dictionary, over any sequence of changes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hashlens import HashIndex, SearchOptions
from hashlens.codes import rings

BITS, WIDTH = 12, 3
LABELS = st.sampled_from(["cat", "dog", "naïve \"quoted'", None])
METADATA = st.dictionaries(
    st.sampled_from(["brand", "a\"b'c", "ключ", "nul\0", "$.x"]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from(["x", "x\0y", "'; DROP TABLE images; --", "é", "\udc80"]),
    ),
    max_size=2,
)
# Few codes and whole-number features: ties are common and distances exact.
ITEM = st.tuples(st.integers(0, 7), st.tuples(*[st.integers(0, 2)] * WIDTH), LABELS, METADATA)


def _code(value: int) -> list[int]:
    return [value, value % 4]


def _matches(item: Any, where: dict[str, Any]) -> bool:
    _, _, label, metadata = item
    for key, wanted in where.items():
        value = label if key == "label" else metadata.get(key)
        if value != wanted:
            return False
    return True


class IndexMachine(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["float16", "float32"]), organised=st.booleans())
    def create(self, kind: str, organised: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        if organised:  # after a few searches, and again when codes were added
            self.patch.setattr(rings, "MIN_CODES", 2)
            self.patch.setattr(rings, "_CODES_PER_PIVOT", 3)
            self.patch.setattr(rings, "_pays", lambda *_: True)
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "index"
        self.index = HashIndex.create(self.path, bits=BITS, feature_dim=WIDTH, features=kind)
        self.reader = HashIndex.open(self.path)
        self.model: dict[int, Any] = {}
        self.next_id = 0

    @rule(items=st.lists(ITEM, max_size=6))
    def add(self, items: list[Any]) -> None:
        ids = self.index.add_encoded(
            np.array([_code(item[0]) for item in items], np.uint8).reshape(-1, 2),
            np.array([item[1] for item in items], np.float32).reshape(-1, WIDTH),
            [f"uri {self.next_id + i}" for i in range(len(items))],
            [item[2] for item in items],
            [item[3] for item in items],
        )
        assert ids.tolist() == list(range(self.next_id, self.next_id + len(items)))
        self.model.update(zip(ids.tolist(), items, strict=True))
        self.next_id += len(items)

    def _some(self, data: st.DataObject) -> list[int]:
        if not self.model:
            return []
        return data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True, max_size=4))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        for image_id in (ids := self._some(data)):
            del self.model[image_id]
        self.index.remove(ids)

    @rule(data=st.data(), label=LABELS, metadata=METADATA)
    def update(self, data: st.DataObject, label: str | None, metadata: dict[str, Any]) -> None:
        for image_id in self._some(data):
            self.index.update(image_id, label=label, metadata=metadata)
            self.model[image_id] = (*self.model[image_id][:2], label, metadata)

    @rule(data=st.data(), code=st.integers(0, 7))
    def replace(self, data: st.DataObject, code: int) -> None:
        ids = self._some(data)
        self.index.replace_encoded(
            ids,
            np.array([_code(code)] * len(ids), np.uint8).reshape(-1, 2),
            np.ones((len(ids), WIDTH), np.float32),
        )
        for image_id in ids:
            self.model[image_id] = (code, (1,) * WIDTH, *self.model[image_id][2:])

    @rule()
    def swap(self) -> None:
        """The one that only read writes from now on."""
        self.index, self.reader = self.reader, self.index

    @rule(items=st.lists(ITEM, min_size=1, max_size=3), query=ITEM, data=st.data())
    def read_one_commit(self, items: list[Any], query: Any, data: st.DataObject) -> None:
        """A block sees its commit, codes and records, while the other handle changes the index."""
        codes, features = np.array([_code(query[0])], np.uint8), np.array([query[1]], np.float32)
        options = SearchOptions(20, mode="bcs")
        expected = self._expected(query, 20, "bcs", None, 0, {}, -1)
        labels = [self.model[image_id][2] for image_id in expected]
        with self.reader.one_commit():
            self.add(items)
            self.remove(data)
            self.index.search_hits(codes, features, options)
            hits = self.reader.search_hits(codes, features, options)[0]
        assert [hit.id for hit in hits] == expected
        assert [hit.label for hit in hits] == labels

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert self.index.info().removed == 0

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = HashIndex.open(self.path)

    @rule(
        query=ITEM,
        k=st.integers(1, 8),
        mode=st.sampled_from(["hds", "bcs", "es"]),
        radius=st.none() | st.integers(0, 4),
        pool=st.integers(1, 6),
        where=METADATA | st.fixed_dictionaries({"label": LABELS}),
        data=st.data(),
    )
    def search(
        self, query: Any, k: int, mode: Any, radius: Any, pool: int, where: Any, data: Any
    ) -> None:
        radius = None if mode == "es" else radius
        exclude = data.draw(st.sampled_from([-1, *self.model]))
        expected = self._expected(query, k, mode, radius, pool, where, exclude)
        codes, features = np.array([_code(query[0])], np.uint8), np.array([query[1]], np.float32)
        for index in (self.index, self.reader):
            hits = index.search_hits(
                codes, features,
                SearchOptions(
                    k, mode=mode, radius=radius, pool=pool, where=where,
                    exclude=np.array([exclude]),
                ),
            )[0]  # fmt: skip
            assert [hit.id for hit in hits] == expected
            for hit in hits:
                assert hit.hamming == self._hamming(query, self.model[hit.id])
                if mode != "bcs":
                    true = np.sqrt(self._squared(query, self.model[hit.id]))
                    assert np.isclose(hit.euclidean, true)

    def _expected(
        self, query: Any, k: int, mode: str, radius: Any, pool: int, where: Any, exclude: int
    ) -> list[int]:
        ids = [i for i in sorted(self.model) if _matches(self.model[i], where) and i != exclude]
        by_code = sorted(ids, key=lambda i: (self._hamming(query, self.model[i]), i))
        if radius is not None:
            by_code = [i for i in by_code if self._hamming(query, self.model[i]) <= radius]
        if mode == "bcs":
            return by_code[:k]
        if mode == "hds" and radius is None:
            by_code = by_code[:pool]
        return sorted(by_code, key=lambda i: (self._squared(query, self.model[i]), i))[:k]

    @staticmethod
    def _hamming(one: Any, other: Any) -> int:
        pairs = zip(_code(one[0]), _code(other[0]), strict=True)
        return sum((a ^ b).bit_count() for a, b in pairs)

    @staticmethod
    def _squared(one: Any, other: Any) -> int:
        return sum((a - b) ** 2 for a, b in zip(one[1], other[1], strict=True))

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        records = {record.id: record for record in self.reader.records()}
        assert sorted(records) == sorted(self.model)
        for image_id, (_, _, label, metadata) in self.model.items():
            assert records[image_id][1:] == (f"uri {image_id}", label, metadata)
        assert len(self.reader) == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.patch.undo()
            assert self.index.verify() == []
            self.index.close()
            self.reader.close()
            shutil.rmtree(self.folder)


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
