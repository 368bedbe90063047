"""Codes of vectors next to other compressions: what is found with so many bytes a vector."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlens.baselines.base import principal_components, random_rotation
from hashlens.bench.search import Say
from hashlens.bench.timing import environment, interleaved, write_page
from hashlens.codes.packing import pack_bits
from hashlens.data.preprocessing import Metric, VectorInput
from hashlens.errors import InvalidInputError
from hashlens.evaluation.metrics import LabelArray, precision_at_k, shares_label
from hashlens.hasher import Hasher
from hashlens.index.ranking import ArraySearcher
from hashlens.report.page import Table
from hashlens.report.plot import Curve, panels, plot_curves
from hashlens.types import Codes, Features, Ids, SearchOptions

K, POOL = 10, 200
FITTED, TIMED = 10_000, 8  # vectors that a method learns from at most; queries in a timed round
SECONDS = 1.0  # of timing for each search
CLUSTERS = 1_000  # of made vectors
_LEAST = 1_000  # vectors to search among
_OPQ_WIDTH = 256  # of wider vectors OPQ takes so many dimensions: it would learn for hours

Search = Callable[[Features], Ids]
Hash = Callable[[Features], Codes]


class Sample(NamedTuple):
    """Vectors to search among, in random order, and others to search with, with their labels."""

    database: Features
    labels: LabelArray
    queries: Features
    query_labels: LabelArray
    metric: Metric

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from and to score by."""
        return bool(_known(self.labels).any() and _known(self.query_labels).any())


def _known(labels: LabelArray) -> NDArray[np.bool_]:
    """Which vectors have a label."""
    return np.asarray(labels >= 0 if labels.ndim == 1 else labels.any(axis=1))


class Method(NamedTuple):
    """A fitted method: its bytes a vector, and its searches by the size of the pool (0: none)."""

    size: int
    searches: Mapping[int, Search]


def made_vectors(count: int, width: int, seed: int) -> tuple[Features, LabelArray]:
    """Vectors in clusters, and their clusters; the variance falls as that of pixels does."""
    rng = np.random.default_rng(seed)
    deviation = np.arange(1, width + 1)[:, None] ** -0.5
    turn = (deviation * random_rotation(width, rng)).astype(np.float32)
    kinds = rng.integers(0, CLUSTERS, count)
    vectors = rng.standard_normal((CLUSTERS, width), np.float32)[kinds]
    vectors += 0.7 * rng.standard_normal(vectors.shape, np.float32)
    return vectors @ turn, kinds


def hold_out(
    vectors: Features, labels: LabelArray, metric: Metric, queries: int, seed: int
) -> Sample:
    """Take queries out, at random: no method learns from them, and they are not found."""
    if len(vectors) < queries + _LEAST:
        raise InvalidInputError(
            f"expected at least {queries + _LEAST:,} vectors, {queries:,} of them as queries, got "
            f"{len(vectors):,}; give more, or fewer queries"
        )
    for row, fault in VectorInput(vectors.shape[1], metric).faults(vectors).items():
        raise InvalidInputError(f"row {row}: {fault}; leave it out")
    if metric == "cosine":  # of unit length, the nearest by Euclid are the nearest by the cosine
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked, rest = np.split(np.random.default_rng(seed).permutation(len(vectors)), [queries])
    return Sample(vectors[rest], labels[rest], vectors[asked], labels[asked], metric)


def run(sample: Sample, sizes: Sequence[int], seed: int, say: Say) -> dict[str, Any]:
    """Fit each method for each number of bytes; what is found, and how fast, all taking turns."""
    n, width = sample.database.shape
    if not 1 <= min(sizes) <= max(sizes) <= width:
        raise InvalidInputError(
            f"bytes: expected 1 to {width}, as a vector has {width} values, got {list(sizes)}"
        )
    rows: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], None]] = {}
    with _one_thread():
        reach = _reach(sample)
        Hasher(8, method="LSH").fit(sample.database[:_LEAST])  # loads what learning needs
        for name, fit in _methods(sample, sorted(set(sizes)), seed):
            say(f"fitting {name}")
            began = time.perf_counter()
            method = fit()
            taken = time.perf_counter() - began
            for pool, search in method.searches.items():
                calls[str(len(rows))] = partial(_one_by_one, search, sample.queries[:TIMED])
                cell = {"method": name, "bytes": method.size, "pool": pool, "fit_seconds": taken}
                rows.append({**cell, **_scores(sample, search(sample.queries), reach)})
        say(f"timing {len(rows)} searches, which take turns")
        times = interleaved(calls, min(TIMED, len(sample.queries)), SECONDS * len(calls))
    rows = [{**row, **asdict(times[str(place)])} for place, row in enumerate(rows)]
    rows.sort(key=lambda row: (row["bytes"], row["pool"], -row["recall"]))
    return {
        "n": n,
        "width": width,
        "queries": len(sample.queries),
        "metric": sample.metric,
        "labelled": sample.labelled,
        "sizes": sorted(set(sizes)),
        "seed": seed,
        "environment": environment(1),
        "measured": rows,
    }


def _methods(
    sample: Sample, sizes: Sequence[int], seed: int
) -> Iterator[tuple[str, Callable[[], Method]]]:
    """Each method at each size, and once those whose size is that of the vectors."""
    import faiss

    width = sample.database.shape[1]
    learned = sample.database[:FITTED]
    exact = faiss.IndexFlatL2(width)
    exact.add(sample.database)
    for size in sizes:
        bits = 8 * size
        if bits <= width:
            yield "ITQ", partial(_by_codes, sample, partial(_hasher, sample, bits, seed, False))
            turned = partial(_rotated_components, learned, bits, seed)
            yield "PCA, random rotation, sign", partial(_by_codes, sample, turned)
        if sample.labelled:
            taught = partial(_hasher, sample, bits, seed, True)
            yield "learned from labels", partial(_by_codes, sample, taught)
        for name, recipe in _recipes(width, size).items():
            yield name, partial(_by_faiss, sample, recipe, exact)
    yield "sign", partial(_by_codes, sample, partial(_signs, learned))
    for name in ("RaBitQ", "SQ4", "SQ8"):
        yield name, partial(_by_faiss, sample, name, exact)
    yield "float, exact", lambda: Method(4 * width, {0: partial(_faiss_ids, exact)})


def _recipes(width: int, size: int) -> dict[str, str]:
    """What FAISS's ``index_factory`` makes of vectors with ``size`` bytes for each."""
    whole = -(-width // (2 * size)) * 2 * size  # PQ cuts vectors into equal parts
    pad = "" if whole == width else f"Pad{whole},"
    dimensions = min(width, _OPQ_WIDTH) // size * size
    recipes = {
        "PQ": f"{pad}PQ{size}x8np",
        "PQ, 4 bits, fast scan": f"{pad}PQ{2 * size}x4fs",
        "OPQ": f"OPQ{size}_{dimensions},PQ{size}x8np",
        "PCA, SQ8": f"PCAR{size},SQ8",
    }
    if 2 * size <= width:
        recipes["PCA, SQ4"] = f"PCAR{2 * size},SQ4"
    if 0 < 8 * (size - 8) <= width:  # it keeps two numbers for each vector besides the bits
        recipes["PCA, RaBitQ"] = f"PCAR{8 * (size - 8)},RaBitQ"
    return recipes


def _by_faiss(sample: Sample, recipe: str, exact: Any) -> Method:
    import faiss

    index = faiss.index_factory(sample.database.shape[1], recipe)
    index.train(sample.database[:FITTED])
    index.add(sample.database)
    refined = faiss.IndexRefine(index, exact)
    refined.k_factor = POOL / K
    searches = {0: partial(_faiss_ids, index), POOL: partial(_faiss_ids, refined)}
    return Method(index.sa_code_size(), searches)


def _faiss_ids(index: Any, queries: Features) -> Ids:
    return np.asarray(index.search(queries, K)[1])


def _by_codes(sample: Sample, learn: Callable[[], Hash]) -> Method:
    encode = learn()
    codes = encode(sample.database)
    searcher = ArraySearcher(codes, sample.database)
    searcher.codes.organise()

    def search(options: SearchOptions, queries: Features) -> Ids:
        return searcher.search_encoded(encode(queries), queries, options).ids

    alone, pooled = SearchOptions(K, mode="bcs"), SearchOptions(K, mode="hds", pool=POOL)
    return Method(codes.shape[1], {0: partial(search, alone), POOL: partial(search, pooled)})


def _hasher(sample: Sample, bits: int, seed: int, taught: bool) -> Hash:
    vectors, labels = sample.database[:FITTED], sample.labels[:FITTED]
    hasher = Hasher(bits, metric=sample.metric, seed=seed)
    if not taught:
        return hasher.fit(vectors).transform
    known = _known(labels)
    words = labels[known] if labels.ndim == 1 else map(np.flatnonzero, labels[known])
    return hasher.fit(vectors[known], [each.tolist() for each in words]).transform


def _rotated_components(learned: Features, bits: int, seed: int) -> Hash:
    found = principal_components(learned, bits)
    turned = found.directions @ random_rotation(bits, np.random.default_rng(seed))
    return lambda vectors: pack_bits((vectors - found.mean) @ turned >= 0)


def _signs(learned: Features) -> Hash:
    mean = learned.mean(axis=0)
    return lambda vectors: pack_bits(vectors >= mean)


def _one_by_one(search: Search, queries: Features) -> None:
    for query in queries:
        search(query[None])


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for FAISS and for our kernels; with two, training OPQ was seen to hang."""
    import faiss
    import numba

    before = faiss.omp_get_max_threads(), numba.get_num_threads()
    faiss.omp_set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _reach(sample: Sample) -> Features:
    """Distance of each query's K-th neighbour, with room for rounding."""
    no_codes = np.zeros((len(sample.database), 1), np.uint8)
    exact = ArraySearcher(no_codes, sample.database)
    asked = no_codes[: len(sample.queries)]
    found = exact.search_encoded(asked, sample.queries, SearchOptions(K, mode="es"))
    return np.asarray(found.distances[:, -1] * 1.00001 + 1e-6, np.float32)


def _scores(sample: Sample, ids: Ids, reach: Features) -> dict[str, float | None]:
    """Recall, where what is as near as the true K-th counts, and precision by labels."""
    near, same = [], []
    asked = zip(ids, sample.queries, sample.query_labels, reach, strict=True)
    for row, query, label, limit in asked:
        near.append(np.linalg.norm(sample.database[row] - query, axis=1) <= limit)
        same.append(shares_label(label[None], sample.labels[row])[0])
    precision = None
    if sample.labelled:
        scored = np.stack(same)[_known(sample.query_labels)]
        precision = float(precision_at_k(scored, [K]).mean())
    return {"recall": float(np.mean(near)), "precision": precision}


_COLUMNS = (
    ("bytes", "bytes", ",d"), ("pool", "pool", "d"), ("method", "method", "s"),
    (f"recall at {K}", "recall", ".3f"), (f"precision at {K}", "precision", ".3f"),
    ("ms per query, minimum", "minimum", ".3f"), ("median", "median", ".3f"),
    ("seconds to fit", "fit_seconds", ".1f"),
)  # fmt: skip


def text(results: dict[str, Any]) -> str:
    """The table, as Markdown: of each size and pool, what finds most first."""
    shown = [one for one in _COLUMNS if results["labelled"] or one[1] != "precision"]
    return Table.of(results["measured"], shown).markdown()


def write(results: dict[str, Any], out: Path, command: str) -> Path:
    """Write vectors.md, vectors.png and vectors.json; return the page's path."""
    drawn = panels(2)
    for axes, pool in zip(drawn, (0, POOL), strict=True):
        curves: dict[str, dict[int, float]] = {}
        for row in results["measured"]:
            if row["pool"] == pool and row["bytes"] in results["sizes"]:
                curves.setdefault(row["method"], {})[row["bytes"]] = row["recall"]
        plot_curves(
            {name: Curve.through(points) for name, points in sorted(curves.items())},
            axes=axes,
            xlabel="bytes per vector",
            ylabel=f"recall at {K}",
            title=f"the nearest {pool} ordered by the vectors" if pool else "by the codes alone",
        )
    notes = f"""- One thread for every method. Vectors: {results["source"]}; {results["n"]:,} of
  {results["width"]} values are searched among, {results["queries"]:,} others are queries, seed
  {results["seed"]}. A method learns from at most {FITTED:,} of the former.
- *Recall*: how many of the {K} nearest by the {results["metric"]} distance are found. *Precision*:
  how many of the first {K} have the query's label. With a *pool*, the vectors themselves order so
  many that are nearest by their codes.
- Times are from one vector to its ids, means of {TIMED} queries; all searches take turns. The
  order of the rows is by bytes, pool and recall."""
    title = "What codes keep of vectors"
    return write_page(out, "vectors", title, results, command, notes, text(results), drawn)
