"""What the gateway counts of itself, for Prometheus: by route template and status, so that no key becomes a label."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNMATCHED: Final = "unmatched"
"""The route of requests that fit none."""

METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
"""Any other one is counted as OTHER: whoever asks chooses the word."""

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meters:
    """Of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rekindle_gateway_requests",
            "Requests that were answered, by route template and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "rekindle_gateway_request_duration_seconds",
            "From the head of a request to the last byte of its answer; not of streams.",
            ("route",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "rekindle_gateway_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.streams = Gauge("rekindle_gateway_streams", "Clients of the event stream.", registry=self.registry)
        self.dropped = Counter(
            "rekindle_gateway_streams_dropped",
            "Clients of the event stream that were too slow and were sent away.",
            registry=self.registry,
        )
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a request. seconds: None of a stream, which lasts as long as its client likes."""
        labels = (method if method in METHODS else "OTHER", route, status)
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = self._requests.labels(*labels)
        counter.inc()
        if seconds is not None:
            histogram = self._histograms.get(route)
            if histogram is None:
                histogram = self._histograms[route] = self._seconds.labels(route)
            histogram.observe(seconds)

    def exposed(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
