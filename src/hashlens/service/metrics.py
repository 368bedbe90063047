"""Prometheus metrics: requests, latency by stage, pool size, index size."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from hashlens.service.schemas import StageTimes

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "hashlens_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=own,
        )
        self._stages = Histogram(
            "hashlens_stage_seconds",
            "Time of a query in each stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=own,
        )
        self._pool = Histogram(
            "hashlens_pool_images", "Images a search ranked.", buckets=_SIZES, registry=own
        )
        self.batch = Histogram(
            "hashlens_encode_batch_images",
            "Images encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )
        self._images = Gauge("hashlens_index_images", "Images in the index.", registry=own)
        self._working = Gauge(
            "hashlens_requests_working", "Queries and adds under way.", registry=own
        )

    def count(self, scope: Scope, status: int) -> None:
        """Count an answer by method, route and status."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()

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
