"""Fast search equals the plain reference and FAISS, whatever comes in."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming_reference as reference
from hashlens import InvalidInputError, hamming_radius, hamming_topk, pack_bits, unpack_bits
from hashlens.codes import rings, scan, search, threads
from hashlens.codes.database import Allowed, CodeDatabase
from hashlens.codes.search import hamming_distances

# Widths in bytes that have been compiled for others already would cost nothing; each number of
# 64-bit words is compiled once, so most examples use few of them.
WIDTHS = [1, 2, 6, 8, 12, 16]


def clustered(rng: np.random.Generator, n: int, n_bytes: int, centres: int) -> np.ndarray:
    """Codes near few centres: many ties, many duplicates."""
    middle = rng.integers(0, 256, (max(centres, 1), n_bytes), dtype=np.uint8)
    flips = rng.random((n, 8 * n_bytes)) < rng.choice([0.0, 0.02, 0.2])
    return middle[rng.integers(0, len(middle), n)] ^ pack_bits(flips)


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_bytes = draw(st.sampled_from(WIDTHS))
    n = draw(st.sampled_from([0, 1, 2, 63, 64, 65, 200, 2047, 2048, 2049, 5000]))
    centres = draw(st.sampled_from([1, 3, 1000]))
    codes = clustered(rng, n + draw(st.integers(0, 4)), n_bytes, centres)
    k = draw(st.sampled_from([0, 1, 2, 10, 100, n // 16, n, n + 7]))
    share = draw(st.sampled_from([None, 0.0, 0.01, 0.3, 0.9, 1.0]))
    allowed = None if share is None else rng.random(n) < share
    return codes[:n], codes[n:], k, allowed


@contextmanager
def searching(in_numpy: bool) -> Iterator[None]:
    """Search with NumPy alone, as a process that has not loaded numba, or with the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "suffices", lambda *_: in_numpy)
        yield


@settings(max_examples=250, deadline=None)
@given(problems(), st.booleans(), st.booleans())
def test_topk_equals_reference(problem: Any, prepared: bool, in_numpy: bool) -> None:
    codes, queries, k, allowed = problem
    database = CodeDatabase(codes) if prepared else codes
    with searching(in_numpy):
        distances, ids = hamming_topk(database, queries, k, allowed=allowed)
    expected, expected_ids = reference.topk(codes, queries, k, allowed)
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(ids, expected_ids)
    assert (distances.dtype, ids.dtype) == (np.uint16, np.int64)


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.integers(0, 140), st.booleans())
def test_radius_equals_reference(problem: Any, prepared: bool, radius: int, in_numpy: bool) -> None:
    codes, queries, _, allowed = problem
    database = CodeDatabase(codes) if prepared else codes
    with searching(in_numpy):
        found = hamming_radius(database, queries, radius, allowed=allowed)
    assert len(found.offsets) == len(queries) + 1
    for i, (distances, ids) in enumerate(reference.radius(codes, queries, radius, allowed)):
        own = slice(found.offsets[i], found.offsets[i + 1])
        np.testing.assert_array_equal(found.distances[own], distances)
        np.testing.assert_array_equal(found.ids[own], ids)


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(1, 60), st.integers(0, 140))
def test_clustered_codes_equal_reference(problem: Any, codes_a_pivot: int, radius: int) -> None:
    """Organised, then grown, then organised again: always the same results."""
    codes, queries, k, allowed = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "MIN_CODES", 2)
        patch.setattr(rings, "_CODES_PER_PIVOT", codes_a_pivot)
        patch.setattr(rings, "_pays", lambda *_: True)
        half = len(codes) // 2
        database = CodeDatabase(codes[:half])
        assert database.organise() == (half >= 2)
        for stage in ("part", "grown", "again"):
            if stage == "grown":
                database.append(codes[half : half + half // 2])
                database.append(codes[half + half // 2 :])
            if stage == "again":
                database.organise()
            own, mask = codes[: len(database)], allowed
            mask = None if allowed is None else allowed[: len(own)]
            np.testing.assert_array_equal(database.packed(), own)
            found = hamming_topk(database, queries, k, allowed=mask)
            for got, right in zip(found, reference.topk(own, queries, k, mask), strict=True):
                np.testing.assert_array_equal(got, right)
            near = hamming_radius(database, queries, radius, allowed=mask)
            right_near = reference.radius(own, queries, radius, mask)
            for i, (distances, ids) in enumerate(right_near):
                part = slice(near.offsets[i], near.offsets[i + 1])
                np.testing.assert_array_equal(near.distances[part], distances)
                np.testing.assert_array_equal(near.ids[part], ids)


def organised(database: CodeDatabase) -> rings.Rings | None:
    """The rings of a database, once the thread that organises it is done, if there is one."""
    for thread in threading.enumerate():
        if thread.name == "hashlens-organise":
            thread.join()
    return database.current().rings


def test_a_database_organises_itself_only_where_that_pays() -> None:
    rng = np.random.default_rng(7)
    n = rings.MIN_CODES
    queries = clustered(rng, 3 * rings.worth_queries(n), 8, 50)
    near = CodeDatabase(clustered(rng, n, 8, 50))
    spread = CodeDatabase(rng.integers(0, 256, (n, 8), dtype=np.uint8))
    few = CodeDatabase(clustered(rng, n - 1, 8, 50))
    for database in (near, spread, few):
        hamming_topk(database, queries[:1], 1)
        assert organised(database) is None
        hamming_topk(database, queries, 1)
    assert [organised(database) is not None for database in (near, spread, few)] == [
        True, False, False,
    ]  # fmt: skip
    near.append(near.packed(np.arange(1)))  # one more is not worth it
    hamming_topk(near, queries, 1)
    before = organised(near)
    near.append(near.packed(np.arange(n)))
    hamming_topk(near, queries, 1)
    after = organised(near)
    assert before is not None
    assert after is not None
    assert (before.clustered, after.clustered) == (n, len(near))


def test_first_searches_load_no_numba_and_later_ones_agree() -> None:
    """Radius, masks, large batches and all: the same before and after the kernels are loaded."""
    script = """
import sys, numpy as np
from hashlens import hamming_radius, hamming_topk
from concurrent.futures import ThreadPoolExecutor
from hashlens.codes import light
from hashlens.codes.database import CodeDatabase
rng = np.random.default_rng(1)
codes = rng.integers(0, 4, (70_000, 6), dtype=np.uint8)
allowed = rng.random(len(codes)) < 0.5
databases = codes, CodeDatabase(codes)
def answers():
    for each in databases:
        for mask in None, allowed, np.arange(len(codes)) < 3:
            yield from hamming_topk(each, codes[:2], 10, allowed=mask)
            yield from hamming_radius(each, codes[:2], 3, allowed=mask)
first = list(answers())
assert "numba" not in sys.modules
light.load_kernels(lambda: ThreadPoolExecutor(1).submit(lambda: list(answers())).result())
assert "numba" not in sys.modules  # other threads go on without
hamming_topk(codes, codes[:2000], 1)  # worth loading them
assert "numba" in sys.modules
for one, two in zip(first, answers(), strict=True):
    np.testing.assert_array_equal(one, two)
    assert one.dtype == two.dtype
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_codes_appended_while_others_are_organised_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Searches, appends and organising at the same time: every search is right."""
    monkeypatch.setattr(rings, "MIN_CODES", 2)
    codes = clustered(np.random.default_rng(9), 60_000, 8, 20)
    database = CodeDatabase(codes[:2000])
    done = threading.Event()

    def organise() -> None:
        while not done.is_set():
            database.organise()

    thread = threading.Thread(target=organise)
    thread.start()
    try:
        for n in range(3000, len(codes) + 1, 3000):
            database.append(codes[len(database) : n])
            first = Allowed(n - 1000, np.zeros(0, np.bool_), n - 1000)
            for allowed, seen in ((None, n), (first, n - 1000)):
                found = hamming_topk(database, codes[n - 1 : n], 20, allowed=allowed)
                expected = reference.topk(codes[:seen], codes[n - 1 : n], 20)
                for got, right in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(got, right)
    finally:
        done.set()
        thread.join()
    assert database.organise()
    np.testing.assert_array_equal(database.packed(), codes)


def test_no_search_sees_clusters_without_what_was_appended_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = clustered(np.random.default_rng(9), 60_000, 8, 20)
    lengths = []

    class Watched(CodeDatabase):
        """Looks at the database after every change of its state, as another thread might."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if "_codes" in self.__dict__:
                lengths.append(len(self))

    database = Watched(codes[:50_000])
    build = rings.build

    def slow_build(*arguments: Any) -> Any:
        made = build(*arguments)
        database.append(codes[len(database) :])
        return made

    monkeypatch.setattr(rings, "MIN_CODES", 2)
    monkeypatch.setattr(rings, "build", slow_build)
    assert database.organise()
    assert lengths == sorted(lengths)
    assert len(database) == lengths[-1] == 60_000
    np.testing.assert_array_equal(database.packed(), codes)


@pytest.mark.parametrize("n_bytes", [192, 384, 512])
@pytest.mark.parametrize("in_numpy", [False, True])
def test_wide_codes_equal_reference(n_bytes: int, in_numpy: bool) -> None:
    rng = np.random.default_rng(n_bytes)
    codes = clustered(rng, 2200, n_bytes, 3)
    queries = np.concatenate([codes[:3], ~codes[:2]])  # as far as can be, too
    allowed = rng.random(len(codes)) < 0.9
    database = CodeDatabase(codes)
    radius = 8 * n_bytes // 3
    with searching(in_numpy), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "MIN_CODES", 2)
        for stage in ("array", "blocks", "clusters"):
            if stage == "clusters":
                database.organise()
            held = codes if stage == "array" else database
            for k in (1, 50, 2300):
                found = hamming_topk(held, queries, k, allowed=allowed)
                for got, right in zip(
                    found, reference.topk(codes, queries, k, allowed), strict=True
                ):
                    np.testing.assert_array_equal(got, right)
            near = hamming_radius(held, queries, radius, allowed=allowed)
            for i, (distances, ids) in enumerate(reference.radius(codes, queries, radius, allowed)):
                own = slice(near.offsets[i], near.offsets[i + 1])
                np.testing.assert_array_equal(near.distances[own], distances)
                np.testing.assert_array_equal(near.ids[own], ids)
    bits = rng.integers(0, 2, (5, 8 * n_bytes))
    np.testing.assert_array_equal(unpack_bits(pack_bits(bits), 8 * n_bytes), bits)


@pytest.mark.parametrize("bits", [24, 48, 64, 128, 136, 256, 1024, 1536, 3072, 4096])
def test_topk_equals_faiss(bits: int) -> None:
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(bits)
    codes = clustered(rng, 6005, bits // 8, 20)
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(codes[5:])
    for k in (1, 50, 6000):
        expected, _ = flat.search(codes[:5], k)
        distances, ids = hamming_topk(codes[5:], codes[:5], k)
        np.testing.assert_array_equal(distances, expected)
        for row, query, at in zip(distances, codes[:5], ids, strict=True):
            np.testing.assert_array_equal(row, hamming_distances(codes[5:], query, at))


@pytest.mark.parametrize(
    ("kinds", "flipped", "pays"),
    [(2, 0.0, True), (10, 0.1, True), (5000, 0.0, True), (50, 0.25, False), (2, 0.5, False)],
    ids=["two codes", "ten classes", "copies", "loose classes", "random"],
)
@pytest.mark.parametrize("n_bytes", [8, 16, 128])
def test_which_codes_are_organised(kinds: int, flipped: float, pays: bool, n_bytes: int) -> None:
    rng = np.random.default_rng(3)
    middle = rng.integers(0, 256, (kinds, n_bytes), dtype=np.uint8)
    codes = middle[rng.integers(0, kinds, 2 * rings.MIN_CODES)]
    codes ^= pack_bits(rng.random((len(codes), 8 * n_bytes), dtype=np.float32) < flipped)
    assert CodeDatabase(codes).organise() == pays


@pytest.mark.parametrize("order", ["mixed", "sorted", "misleading"])
def test_large_k_guessed_from_a_sample(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """Also where the sample misleads: every sampled code equals the query, few others do.

    In clusters a sample hardly misleads, so there a wrong guess is given.
    """
    monkeypatch.setattr(scan, "_SAMPLED_CODES", 1000)
    rng = np.random.default_rng(8)
    codes = clustered(rng, 9000, 16, 3)
    queries = clustered(rng, 9, 16, 3)
    if order == "sorted":
        codes = codes[np.argsort(codes[:, 0], kind="stable")]
    if order == "misleading":
        codes[:: scan._SAMPLED] = codes[:: scan._SAMPLED - 3] = queries[0]
        monkeypatch.setattr(rings, "reach", lambda *_: np.ones(9, np.uint64))
    monkeypatch.setattr(rings, "MIN_CODES", 2)
    monkeypatch.setattr(rings, "_KEYS_TOGETHER", 2000)  # four queries at a time
    clusters = CodeDatabase(codes)
    assert clusters.organise()
    expected = reference.topk(codes, queries, 500)
    for database in (codes, CodeDatabase(codes), clusters):
        for found, right in zip(hamming_topk(database, queries, 500), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_equal_codes_are_ordered_by_id() -> None:
    codes = np.full((70_000, 16), 7, np.uint8)
    for database in (codes, CodeDatabase(codes)):
        for k in (1, 10, 1000, 70_000):
            distances, ids = hamming_topk(database, codes[:2], k)
            assert not distances.any()
            np.testing.assert_array_equal(ids, np.tile(np.arange(k), (2, 1)))


@pytest.mark.parametrize("n_bytes", [6, 16])
def test_any_memory_layout(tmp_path: Path, n_bytes: int) -> None:
    rng = np.random.default_rng(1)
    codes = clustered(rng, 3000, n_bytes, 5)
    expected = reference.topk(codes, codes[:3], 20)
    (tmp_path / "codes").write_bytes(b"odd" + codes.tobytes())
    mapped = np.memmap(tmp_path / "codes", np.uint8, "r", offset=3, shape=codes.shape)
    frozen = codes.copy()
    frozen.flags.writeable = False
    wide = np.zeros((6000, n_bytes + 3), np.uint8)
    wide[::2, 1:-2] = codes
    for layout in (mapped, frozen, wide[::2, 1:-2], np.asfortranarray(codes), codes.tolist()):
        array = np.asarray(layout, np.uint8) if isinstance(layout, list) else layout
        for database in (array, CodeDatabase(array)):
            for found, right in zip(hamming_topk(database, array[:3], 20), expected, strict=True):
                np.testing.assert_array_equal(found, right)


def test_appending_in_pieces_and_reading_back() -> None:
    rng = np.random.default_rng(2)
    codes = clustered(rng, 10_000, 6, 9)
    database = CodeDatabase(codes[:0])
    assert hamming_topk(database, codes[:2], 3)[1].shape == (2, 0)
    at = 0
    while at < len(codes):
        step = int(rng.integers(1, 3000))
        database.append(codes[at : at + step])
        at += step
    assert len(database) == len(codes)
    np.testing.assert_array_equal(database.packed(), codes)
    np.testing.assert_array_equal(database.packed([5, 9_999, 0]), codes[[5, 9_999, 0]])
    expected = reference.topk(codes, codes[:4], 50)
    np.testing.assert_array_equal(hamming_topk(database, codes[:4], 50)[1], expected[1])


def test_a_search_sees_the_codes_it_began_with() -> None:
    codes = clustered(np.random.default_rng(3), 20_000, 8, 4)
    database = CodeDatabase(codes[:100])
    sizes: list[int] = []

    def read() -> None:
        while len(database) < len(codes):
            before = len(database)
            distances, ids = hamming_topk(database, codes[:1], 20_000)
            assert before <= ids.shape[1]
            rows = np.sort(ids[0])
            np.testing.assert_array_equal(rows, np.arange(len(rows)))
            np.testing.assert_array_equal(distances[0], hamming_distances(codes, codes[0], ids[0]))
            sizes.append(len(rows))

    reader = threading.Thread(target=read)
    reader.start()
    for at in range(100, len(codes), 100):
        database.append(codes[at : at + 100])
    reader.join()
    assert sizes == sorted(sizes)


def test_many_threads_at_once() -> None:
    codes = clustered(np.random.default_rng(4), 30_000, 16, 30)
    expected = reference.topk(codes, codes[:40], 10)[1]
    answers: list[np.ndarray | None] = [None] * 40

    def ask(i: int) -> None:
        answers[i] = hamming_topk(codes, codes[i : i + 1], 10)[1][0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack([a for a in answers if a is not None]), expected)


@pytest.mark.parametrize("order", [list, reversed])
def test_ties_go_to_the_lower_ids_whichever_thread_is_first(
    monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    """Threads tell each other how far their k-th nearest is; that must not cost a tie its place."""
    monkeypatch.setattr(scan, "thread_count", lambda: 4)
    monkeypatch.setattr(scan, "run_all", lambda tasks: [task() for task in order(tasks)])
    codes = clustered(np.random.default_rng(2), 20_000, 8, 3)
    for k in (1, 10, 300):
        distances, ids = hamming_topk(codes, codes[:60], k)
        expected_distances, expected_ids = reference.topk(codes, codes[:60], k)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(distances, expected_distances)


def test_thread_settings_are_respected_and_kept() -> None:
    before = numba.get_num_threads()
    affinity = os.sched_getaffinity(0)
    codes = clustered(np.random.default_rng(5), 9000, 8, 3)
    try:
        numba.set_num_threads(1)
        assert threads.thread_count() == 1
        hamming_topk(codes, codes[:3], 5)
        assert numba.get_num_threads() == 1
        numba.set_num_threads(before)
        os.sched_setaffinity(0, {min(affinity)})
        assert threads.thread_count() == 1
    finally:
        os.sched_setaffinity(0, affinity)
        numba.set_num_threads(before)


def test_a_forked_child_can_search() -> None:
    codes = clustered(np.random.default_rng(6), 9000, 8, 3)
    expected = hamming_topk(codes, codes[:3], 5)[1]
    child = os.fork()
    if child == 0:  # never returns into pytest
        same = np.array_equal(hamming_topk(codes, codes[:3], 5)[1], expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("database", "queries", "k", "allowed", "says"),
    [
        (np.zeros((3, 8), np.uint8), np.zeros((1, 6), np.uint8), 1, None, "8 bytes"),
        (np.zeros((3, 8), np.uint8), np.zeros((1, 8), np.int64), 1, None, "uint8"),
        (np.zeros(8, np.uint8), np.zeros((1, 8), np.uint8), 1, None, "shape"),
        (np.zeros((3, 8), np.uint8), np.zeros((1, 8), np.uint8), -1, None, "0 or more"),
        (np.zeros((3, 8), np.uint8), np.zeros((1, 8), np.uint8), 1, np.ones(3), "bool"),
        (np.zeros((3, 8), np.uint8), np.zeros((1, 8), np.uint8), 1, np.ones(2, bool), "(3,)"),
    ],
)
def test_bad_input_is_explained(
    database: Any, queries: Any, k: int, allowed: Any, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says.replace("(", r"\(").replace(")", r"\)")):
        hamming_topk(database, queries, k, allowed=allowed)


def test_bad_radius_and_bad_appended_codes() -> None:
    database = CodeDatabase(np.zeros((3, 8), np.uint8))
    with pytest.raises(InvalidInputError, match="radius"):
        hamming_radius(database, np.zeros((1, 8), np.uint8), -1)
    with pytest.raises(InvalidInputError, match="8 bytes"):
        database.append(np.zeros((1, 6), np.uint8))
    with pytest.raises(InvalidInputError, match="rows"):
        database.packed([3])
    for codes in (database, database.packed()):
        for row in (-1, 3):
            with pytest.raises(InvalidInputError, match="rows: expected 0 to 2"):
                hamming_distances(codes, np.zeros(8, np.uint8), [0, row])
