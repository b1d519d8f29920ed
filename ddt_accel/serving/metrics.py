"""What is counted and timed, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ddt_accel.serving.answers import Batch, Drawn

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ddt_accel_requests", "Requests for images that were answered.", ["code"], registry=registry
        )
        self._images = Counter("ddt_accel_images", "Images drawn.", ["schedule"], registry=registry)
        self.open = Gauge("ddt_accel_requests_open", "Requests that wait or are drawn.", registry=registry)
        self._retried = Gauge("ddt_accel_retries", "Times that a request went to another replica.", registry=registry)
        self._latency = Histogram(
            "ddt_accel_request_seconds", "From a request's arrival to its answer.", buckets=_SECONDS, registry=registry
        )
        self._queue = Histogram(
            "ddt_accel_queue_seconds", "What a request waits for other images.", buckets=_SECONDS, registry=registry
        )
        self._sizes = Histogram("ddt_accel_batch_images", "Images of a batch.", buckets=_SIZES, registry=registry)
        self._step = Histogram(
            "ddt_accel_step_seconds", "One evaluation of a batch.", buckets=_STEPS, registry=registry
        )

    def answered(self, code: int, seconds: float) -> None:
        self._requests.labels(code=str(code)).inc()
        self._latency.observe(seconds)

    def drawn(self, schedule: str, drawn: Drawn, seconds: float) -> None:
        """Pictures that were `seconds` on their way."""
        self._images.labels(schedule=schedule).inc(len(drawn.pngs))
        self._queue.observe(max(0.0, seconds - drawn.drawing))
        self._batches(drawn.batches)

    def _batches(self, batches: Sequence[Batch]) -> None:
        for one in batches:
            self._sizes.observe(one.images)
            self._step.observe(one.seconds / one.evaluations)

    def text(self, retried: int) -> bytes:
        self._retried.set(retried)
        return generate_latest(self._registry)
