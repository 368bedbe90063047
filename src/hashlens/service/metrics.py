"""Prometheus metrics: requests, latency whole and by stage, pool size, index size, the process."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from starlette.types import Scope

from hashlens import __version__
from hashlens.service.schemas import StageTimes

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        histogram = partial(Histogram, registry=own)
        named = ["method", "route"]
        self._requests = Counter(
            "hashlens_requests_total", "Requests answered.", [*named, "status"], registry=own
        )
        about = "Time from a request's head to the end of its answer."
        self._seconds = histogram("hashlens_request_seconds", about, named, buckets=_SECONDS)
        about = "Time of a query in each stage."
        self._stages = histogram("hashlens_stage_seconds", about, ["stage"], buckets=_SECONDS)
        self._pool = histogram("hashlens_pool_images", "Images a search ranked.", buckets=_SIZES)
        about = "Images, or texts, encoded together."
        self.batch = histogram("hashlens_encode_batch_images", about, buckets=_BATCHES)
        self._images = Gauge("hashlens_index_images", "Images in the index.", registry=own)
        about = "Queries and adds under way."
        self._working = Gauge("hashlens_requests_working", about, registry=own)
        Info("hashlens_build", "Versions.", registry=own).info(
            {"version": __version__, "python": sys.version.split()[0], "numpy": np.__version__}
        )
        ProcessCollector(registry=own)

    def count(self, scope: Scope, status: int) -> None:
        """Count an answer by method, route and status."""
        self._requests.labels(*_named(scope), str(status)).inc()

    def time(self, scope: Scope, seconds: float) -> None:
        """Count the time that a whole request took."""
        self._seconds.labels(*_named(scope)).observe(seconds)

    def observe(self, times: StageTimes, pools: list[int]) -> None:
        """Count one answered search."""
        for stage in ("decode", "encode", "coarse", "fine"):
            self._stages.labels(stage).observe(getattr(times, stage) / 1000)
        for pool in pools:
            self._pool.observe(pool)

    def page(self, images: int, working: int) -> bytes:
        """All metrics in Prometheus' text format."""
        self._images.set(images)
        self._working.set(working)
        return generate_latest(self._registry)


def _named(scope: Scope) -> tuple[str, str]:
    """Method and route of a request, of few values whatever clients send."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    return method, getattr(scope.get("route"), "path", "other")
