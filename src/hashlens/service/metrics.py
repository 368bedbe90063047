"""Prometheus metrics: requests, latency by stage, pool size, index size."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlens.service.schemas import StageTimes

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hashlens_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.stages = Histogram(
            "hashlens_stage_seconds",
            "Time of a query in each stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pool = Histogram(
            "hashlens_pool_images",
            "Images a search ranked.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self.batch = Histogram(
            "hashlens_encode_batch_images",
            "Images encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.images = Gauge("hashlens_index_images", "Images in the index.", registry=self.registry)
        self.working = Gauge(
            "hashlens_requests_working",
            "Queries and adds under way.",
            registry=self.registry,
        )

    def observe(self, times: StageTimes, pools: list[int]) -> None:
        """Count one answered search."""
        for stage in ("decode", "encode", "coarse", "fine"):
            self.stages.labels(stage).observe(getattr(times, stage) / 1000)
        for pool in pools:
            self.pool.observe(pool)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """Counts each answer by method, route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)
