"""Coarse-to-fine search over arrays against plain NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hamming_reference as reference
from hashlens import HashIndex, InvalidInputError, Searcher, SearchOptions, pack_bits, unpack_bits
from hashlens.index import features as feature_rows
from hashlens.index.ranking import ArraySearcher
from hashlens.types import MODES, SearchTrace, default_pool


def _arrays(seed: int, n: int, width: int, kind: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, 3), dtype=np.uint8)
    return codes, rng.integers(-2, 3, (n, width)).astype(kind)


def _by_distance(features: Any, query: Any, ids: Any) -> list[int]:
    squared = ((features[ids].astype(np.float64) - query) ** 2).sum(axis=1)
    return [int(ids[i]) for i in np.lexsort((ids, squared))]


def _by_latent(codes: Any, latent: Any, ids: Any) -> list[int]:
    signs = 2.0 * unpack_bits(codes[ids], 24) - 1
    apart = np.abs(latent).sum() - signs @ latent  # twice the sum over the bits that differ
    return [int(ids[i]) for i in np.lexsort((ids, apart))]


@given(
    seed=st.integers(0, 999),
    n=st.integers(0, 60),
    width=st.integers(1, 40),
    kind=st.sampled_from(["float16", "float32"]),
    k=st.integers(1, 20),
    pool=st.integers(1, 30),
    radius=st.none() | st.integers(0, 6),
    share=st.sampled_from([None, 0.0, 0.1, 0.6]),
    excluded=st.booleans(),
)
def test_all_modes_equal_plain_numpy(
    seed: int, n: int, width: int, kind: str, k: int, pool: int, radius: int | None,
    share: float | None, excluded: bool,
) -> None:  # fmt: skip
    codes, features = _arrays(seed, n, width, kind)
    _, query_features = _arrays(seed + 1, 3, width, "float32")
    rng = np.random.default_rng(seed + 2)
    latent = rng.integers(-2, 3, (3, 24)).astype(np.float32)
    queries = pack_bits(latent >= 0)
    allowed = None if share is None else rng.random(n) < share
    exclude = rng.integers(-1, n, 3) if excluded else None
    searcher = ArraySearcher(codes, features)
    found = {}
    for mode in MODES:
        options = SearchOptions(
            k, mode=mode, radius=None if mode == "es" else radius, pool=pool, exclude=exclude
        )
        asked = None if mode == "bcs" else query_features
        found[mode] = searcher.search_encoded(queries, asked, options, latent, allowed=allowed)
    for i, (code, query) in enumerate(zip(queries, query_features, strict=True)):
        may = np.ones(n, bool) if allowed is None else allowed.copy()
        if exclude is not None and exclude[i] >= 0:
            may[exclude[i]] = False
        distances, ids = reference.topk(codes, code[None], n, may)
        near = ids[0] if radius is None else ids[0][distances[0] <= radius]
        coarse = near if radius is not None else near[:pool]
        expected = {
            "bcs": near.tolist(),
            "hds": _by_distance(features, query, coarse),
            "es": _by_distance(features, query, np.flatnonzero(may)),
            "acs": _by_latent(codes, latent[i], coarse),
        }
        for mode, result in found.items():
            got = result.ids[i][result.ids[i] >= 0].tolist()
            assert got == expected[mode][:k], mode
            padding = result.distances[i][len(got) :]
            assert (padding == (65535 if mode == "bcs" else np.inf)).all()


@given(seed=st.integers(0, 99), n=st.integers(1, 50), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_stored_in_another_order(seed: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    codes, features = _arrays(seed, n, 7, "float32")
    features *= np.float32(scale)
    rows, ids = rng.permutation(n), np.sort(rng.choice(1000, n, replace=False))
    stored = np.empty_like(features)
    stored[rows] = features
    plain = ArraySearcher(codes, features)
    moved = ArraySearcher(codes, stored, ids=ids, rows=rows)
    assert isinstance(moved, Searcher)
    known_bits = np.full((n, 24), np.nan, np.float32)
    for mode in MODES:
        one = plain.search_encoded(codes, features, SearchOptions(5, mode=mode), known_bits)
        other = moved.search_encoded(codes, features, SearchOptions(5, mode=mode), known_bits)
        np.testing.assert_array_equal(ids[one.ids], other.ids)
        np.testing.assert_array_equal(one.distances, other.distances)


@given(seed=st.integers(0, 99), bits=st.integers(8, 40))
def test_a_query_of_bits_alone_is_ordered_by_hamming_distance(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    codes = pack_bits(rng.integers(0, 2, (40, bits)))
    searcher, queries = ArraySearcher(codes), codes[:3]
    latent = np.full((3, bits), np.nan)
    found = searcher.search_encoded(queries, None, SearchOptions(40, mode="acs"), latent)
    expected = searcher.search_encoded(queries, None, SearchOptions(40, mode="bcs"))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (None, "latent values"),
        (np.zeros((2, 24)), "one row per query"),
        (np.zeros((1, 30)), "one value per bit"),
        (np.array([[np.inf] + 23 * [0.0]]), "finite"),
    ],
)
def test_latent_values_that_do_not_fit(latent: Any, message: str) -> None:
    codes, _ = _arrays(0, 5, 2, "float32")
    with pytest.raises(InvalidInputError, match=message):
        ArraySearcher(codes).search_encoded(codes[:1], None, SearchOptions(3, mode="acs"), latent)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_exhaustive_search_is_exact_among_near_equal_features(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix product alone would mix these up: distances are far below the norms."""
    monkeypatch.setattr(feature_rows, "_BLOCK_BYTES", 4 * 512 * 64)
    rng = np.random.default_rng(0)
    base = rng.standard_normal(512) * 30
    features = (base + 1e-2 * rng.standard_normal((700, 512))).astype(kind)
    queries = features[:40].astype(np.float32)
    searcher = ArraySearcher(np.zeros((700, 1), np.uint8), features)
    found = searcher.search_encoded(
        np.zeros((40, 1), np.uint8), queries, SearchOptions(10, mode="es")
    )
    assert found.ids[:, 0].tolist() == list(range(40))
    assert (found.distances[:, 0] == 0).all()
    for query, ids, distances in zip(queries, found.ids, found.distances, strict=True):
        true = np.sqrt(((features.astype(np.float64) - query) ** 2).sum(axis=1))
        np.testing.assert_allclose(distances, true[ids], rtol=1e-5)
        assert np.sort(true)[9] >= distances[-1] * (1 - 1e-5)


def test_every_float16_value_is_widened() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)][:, None]
    rows = np.arange(len(halves))
    distances = feature_rows.distances_to_rows(halves, rows, np.zeros(1, np.float32))
    np.testing.assert_array_equal(distances, np.abs(halves[:, 0].astype(np.float32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_distances_are_the_same_with_numpy_and_with_the_kernels(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((500, 256)).astype(dtype)
    query, rows = rng.standard_normal(256).astype(np.float32), rng.permutation(500)
    found = []
    for in_numpy in (True, False):
        monkeypatch.setattr(feature_rows, "suffices", lambda *_, way=in_numpy: way)
        found.append(feature_rows.distances_to_rows(features, rows, query))
        (near,) = feature_rows.nearest_candidates(
            features, feature_rows.RowNorms().of(features), query[None], 9, None
        )
        assert set(rows[np.argsort(found[0])[:9]]) <= set(near)
    np.testing.assert_array_equal(*found)


def test_the_trace_counts_pools() -> None:
    codes, features = _arrays(0, 30, 4, "float32")
    trace = SearchTrace()
    ArraySearcher(codes, features).search_encoded(
        codes[:3], features[:3], SearchOptions(2, pool=9), trace=trace
    )
    assert trace.pools == [9, 9, 9]


def test_the_default_pool_grows_with_k() -> None:
    assert [default_pool(k) for k in (1, 10, 50, 51, 1000)] == [200, 200, 200, 204, 4000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "expected one of hds, acs, bcs, es, got 'fast'"),
        ({"k": 0}, "k: expected a whole number of 1 or more, got 0"),
        ({"k": True}, "k: expected a whole number of 1 or more, got True"),
        ({"pool": 2.5}, "pool: expected a whole number of 1 or more, got 2.5"),
        ({"mode": "es", "radius": 3}, "radius: goes with hds, acs or bcs"),
        ({"where": "label"}, "where: expected a mapping"),
        ({"exclude": 3}, "exclude: expected one id per query, got 3"),
        ({"radius": -1}, "radius: expected a whole number of 0 or more"),
        ({"where": {"label": "x"}}, "arrays hold no labels"),
        ({"exclude": np.zeros(5, np.int64)}, r"exclude: expected shape \(2,\), got \(5,\)"),
        ({"features": None}, "mode hds needs the queries' features"),
        ({"features": np.zeros((2, 3))}, r"query features: expected \(2, 4\), got \(2, 3\)"),
        ({"features": np.full((2, 4), np.nan)}, "finite"),
        ({"codes": np.zeros((2, 4), np.uint8)}, "expected 3 bytes per code"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    codes, features = _arrays(0, 9, 4, "float32")
    asked = {"codes": codes[:2], "features": features[:2]}
    asked |= {name: options.pop(name) for name in asked if name in options}
    with pytest.raises(InvalidInputError, match=message):
        ArraySearcher(codes, features).search_encoded(
            *asked.values(), SearchOptions(**{"k": 3, **options})
        )


def test_bad_arrays_are_named() -> None:
    codes, features = _arrays(0, 9, 4, "float32")
    with pytest.raises(InvalidInputError, match="expected 9 rows"):
        ArraySearcher(codes, features[:8])
    with pytest.raises(InvalidInputError, match="ids: expected 9 ascending"):
        ArraySearcher(codes, features, ids=np.zeros(9, np.int64))
    with pytest.raises(InvalidInputError, match="only codes are held"):
        ArraySearcher(codes).search_encoded(codes, features, SearchOptions(1))


def test_rows_from_a_slow_disk_are_asked_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking ahead changes no distance, in a mapped file or in memory."""
    features = np.random.default_rng(0).standard_normal((5000, 300)).astype(np.float16)
    features.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", np.float16, "r", shape=features.shape)
    rows = np.arange(0, 5000, 7)
    true = np.sqrt(((features[rows].astype(np.float64) - 1) ** 2).sum(axis=1))
    asked: list[int] = []
    will_need = feature_rows.will_need
    monkeypatch.setattr(
        feature_rows, "will_need", lambda a, r: (asked.append(len(r)), will_need(a, r))
    )
    for limit, times in ((0.0, 2), (1e9, 2)):
        monkeypatch.setattr(feature_rows, "_SLOW_ROW_SECONDS", limit)
        for array in (mapped, features):
            found = feature_rows.distances_to_rows(array, rows, np.ones(300, np.float32))
            np.testing.assert_allclose(found, true, rtol=1e-5)
        assert asked == [len(rows) - 32] * times


@pytest.mark.slow
def test_arrays_past_four_gigabytes(tmp_path: Path) -> None:
    """Offsets past 2^31 and 2^32 bytes: rows on both sides are added, found and verified."""
    width, part = 2**14, 2_000  # 64 KiB of features per image
    n = 2**32 // (4 * width) + 3_000
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (n, 8), dtype=np.uint8)
    rows = np.zeros((part, width), np.float32)
    with HashIndex.create(
        tmp_path / "x", bits=64, feature_dim=width, features="float32", fingerprint="aa"
    ) as index:
        for start in range(0, n, part):
            count = min(part, n - start)
            rows[:, 0] = np.arange(start, start + part)
            index.add_encoded(codes[start : start + count], rows[:count], ["u"] * count)
        assert (tmp_path / "x" / "features.1").stat().st_size == 4 * width * n > 2**32
        border = [2**31 // (4 * width), 2**32 // (4 * width)]
        asked = np.array([0, border[0] - 1, *border, border[1] + 1, n - 1])
        queries = np.zeros((len(asked), width), np.float32)
        queries[:, 0] = asked
        for mode in ("bcs", "hds", "es"):
            found = index.search_encoded(codes[asked], queries, SearchOptions(1, mode=mode))
            assert found.ids[:, 0].tolist() == asked.tolist()
        assert index.verify() == []
        index.remove(np.arange(0, n - 1, 2))
        index.compact()
        assert index.verify() == []
        found = index.search_encoded(codes[asked[-1:]], queries[-1:], SearchOptions(1, mode="es"))
        assert found.ids[0].tolist() == [n - 1]
