"""Every metric: its name, labels and buckets, as docs/metrics.md lists them.

A service has one `Metrics` with a registry of its own. Children that the hot path uses are made at
the start and kept, because `labels()` takes a lock. Values that a queue or pool has already (rows,
device states) are read from its `statistics()` at the scrape, and are not counted twice.
"""

import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.errors import RequestError
from service.telemetry.grouped_histogram import GroupedHistogram

REQUEST_SECONDS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10,
)  # fmt: skip
STAGE_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1, 5,
)  # fmt: skip
BODY_BYTES = (4096, *(65536 << step for step in range(10)))
IMAGES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
PIXELS = (50_176, 250_000, 1_000_000, 4_000_000, 12_000_000, 25_000_000, 50_000_000)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

IMAGE_ROUTES = ("classify", "v1", "v2")
ROUTES = (*IMAGE_ROUTES, "admin", "other")
"""The routes of HTTP. The route of all calls over gRPC is `grpc`."""
DEVICE_STATES = (
    "starting", "proving", "ready", "failed", "waiting", "quarantined", "stopped",
)  # fmt: skip
HANDSHAKE_FAILURES = (
    "plain",
    "closed",
    "timeout",
    "version",
    "no_certificate",
    "untrusted",
    "other",
)
"""Why a TLS handshake failed: server/tls.py."""
FETCH_OUTCOMES = ("ok", "refused", "failed", "timeout", "too_large")
RESTART_REASONS = ("crashed", "hung", "wrong_answer", "driver", "artifact")

disable_created_metrics()


class Metrics:
    """The metric families. Attributes have the names of the metrics, without `topfive_` and unit.

    `counter_type` and `histogram_type` may keep their values elsewhere (server/metrics_merge.py).
    """

    def __init__(
        self,
        counter_type: type[Counter] = Counter,
        histogram_type: type[Histogram] = GroupedHistogram,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._snapshots: list[_Snapshot] = []
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return counter_type(f"topfive_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"topfive_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            name = f"topfive_{name}"
            return histogram_type(name, help, labels, buckets=buckets, registry=registry)

        self.http_requests = counter(
            "http_requests_total",
            "Answers by status. Status 499: the client disconnected.",
            "route",
            "code",
        )
        self.http_requests_in_flight = gauge(
            "http_requests_in_flight",
            "Requests whose head was read and whose answer is not finished.",
            "route",
        )
        self.http_request_duration = histogram(
            "http_request_duration_seconds",
            "Seconds from the head of a request to the last byte of its answer handed "
            "to the socket.",
            REQUEST_SECONDS,
            "route",
            "outcome",
        )
        self.http_request_body = histogram(
            "http_request_body_bytes", "Size of bodies as received.", BODY_BYTES, "route"
        )
        self.grpc_requests = counter(
            "grpc_requests_total",
            "gRPC requests by status. CANCELLED: the client cancelled the call.",
            "method",
            "code",
        )
        self.grpc_requests_in_flight = gauge(
            "grpc_requests_in_flight",
            "gRPC requests whose call has begun and whose answer is not written.",
        )
        self.grpc_request_duration = histogram(
            "grpc_request_duration_seconds",
            "Seconds from the begin of an inference over gRPC to the end of its answer.",
            REQUEST_SECONDS,
            "outcome",
        )
        self.request_stage = histogram(
            "request_stage_duration_seconds",
            "Per request: seconds to receive the body and to encode the answer.",
            STAGE_SECONDS,
            "route",
            "stage",
        )
        self.refusals = counter(
            "refusals_total", "Answers from status 400 up, by error code.", "route", "reason"
        )
        self.url_fetches = counter(
            "url_fetches_total", "Images to fetch by URL, by outcome.", "outcome"
        )
        self.key_checks = counter(
            "key_checks_total", "API keys that were checked, by outcome.", "outcome"
        )
        self.images = counter(
            "images_total", "Images that got a row, by outcome.", "model", "outcome"
        )
        self.image_stage = histogram(
            "image_stage_duration_seconds",
            "Per image: seconds to decode the file into its row, and in the queue.",
            STAGE_SECONDS,
            "model",
            "stage",
        )
        self.image_pixels = histogram(
            "image_pixels", "Pixels of an image before scaling.", PIXELS, "model"
        )
        self.row_seconds = counter(
            "row_seconds_total", "Time integral of the rows in use.", "model"
        )
        self.batches = counter("batches_total", "Batches by outcome.", "model", "device", "outcome")
        self.batch_images = histogram(
            "batch_images", "Images per batch sent.", IMAGES, "model", "device"
        )
        self.batch_padding_rows = counter(
            "batch_padding_rows_total", "Rows computed without an image.", "model", "device"
        )
        self.batch_stage = histogram(
            "batch_stage_duration_seconds",
            "Per batch, on the clock of the host: seconds of copy_in, compute, copy_out.",
            STAGE_SECONDS,
            "model",
            "device",
            "stage",
        )
        self.batch_behind = histogram(
            "batch_behind_duration_seconds",
            "Per batch: seconds from sending to answer, without its own copies and computing.",
            STAGE_SECONDS,
            "model",
            "device",
        )
        self.device_idle = counter(
            "device_idle_seconds_total",
            "Seconds that a device was idle while images were held back for it.",
            "model",
            "device",
        )
        self.image_retries = counter(
            "image_retries_total", "Images retried after a device failed.", "model"
        )
        self.late_replies = counter(
            "late_replies_total",
            "Replies for a batch that was no longer expected.",
            "model",
            "device",
        )
        self.device_restarts = counter(
            "device_restarts_total", "Restarts of device hosts.", "model", "device", "reason"
        )
        self.golden_probes = counter(
            "golden_probes_total", "Golden rows run on a device.", "model", "device", "result"
        )
        self.golden_probe_deviation = gauge(
            "golden_probe_deviation",
            "Largest difference from the golden answers at the last probe.",
            "model",
            "device",
        )
        self.golden_probe_success = gauge(
            "golden_probe_success_timestamp_seconds",
            "Unix time of the last probe that passed.",
            "model",
            "device",
        )
        self.doubtful_images = counter(
            "doubtful_images_total",
            "Images answered by a device between its last passed probe and a failed one.",
            "model",
            "device",
        )
        self.device_precision_fallback = gauge(
            "device_precision_fallback",
            "1 if the device lacks the artifact's precision and computes in another one.",
            "model",
            "device",
        )
        self.model_load_duration = gauge(
            "model_load_duration_seconds",
            "Seconds from the start to the first device that passed its self-test.",
            "model",
        )
        self.tls_handshake_failures = counter(
            "tls_handshake_failures_total",
            "Connections over HTTP whose TLS handshake failed.",
            "reason",
        )
        for reason in HANDSHAKE_FAILURES:
            self.tls_handshake_failures.labels(reason)
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds", "Lateness of a tick that is due every 100 ms.", LAG_SECONDS
        )
        self.log_lines_lost = counter(
            "log_lines_lost_total", "Log lines that could not be written."
        )
        self.workers = gauge(
            "workers", "Processes that serve, by whether they answered this scrape.", "state"
        )
        self.decode_restarts = counter("decode_restarts_total", "Restarts of the decode processes.")
        self.decode_cpu_seconds = counter(
            "decode_cpu_seconds_total", "CPU time of the decode processes."
        )
        self.worker_restarts = counter("worker_restarts_total", "Restarts of workers.")
        self.workers.labels("answering").set(1)
        self.workers.labels("silent")
        self.build_info = gauge(
            "build_info",
            "1. The labels describe this build of topfive.",
            "version",
            "revision",
            "python",
        )
        for route, code in (("admin", 200), ("admin", 503), ("other", 404)):
            self.http_requests.labels(route, str(code))
        self.grpc_requests.labels("ModelInfer", "OK")
        for outcome in ("ok", "error"):
            self.grpc_request_duration.labels(outcome)
        for outcome in FETCH_OUTCOMES:
            self.url_fetches.labels(outcome)
        for route in IMAGE_ROUTES:
            self.http_requests.labels(route, "200")
        for error in RequestError.__subclasses__():
            for route in IMAGE_ROUTES:
                self.http_requests.labels(route, str(error.status))
            for route in (*ROUTES, "grpc"):
                self.refusals.labels(route, error.code)

    def describe_build(self, version: str, revision: str) -> None:
        self.build_info.labels(version, revision, platform.python_version()).set(1)

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Expose the families that `collect` yields; it is called by `snapshot` alone."""
        snapshot = _Snapshot(collect)
        self._snapshots.append(snapshot)
        self.registry.register(snapshot)

    def snapshot(self) -> None:
        """Read what is not counted here but known to queues and pools; on the event loop."""
        for snapshot in self._snapshots:
            snapshot.read()


class _Snapshot(Collector):
    """Families that are read on the event loop, and exposed in the thread that renders them."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read
        self._families: list[Metric] = []

    def read(self) -> None:
        self._families = list(self._read())

    def collect(self) -> Iterable[Metric]:
        return self._families


def gauge_family(
    name: str, help: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    """Return a gauge `topfive_<name>` with a value for each tuple of label values."""
    family = GaugeMetricFamily(f"topfive_{name}", help, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def counter_family(
    name: str, help: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    """Return a counter `topfive_<name>_total` with a value for each tuple of label values."""
    family = CounterMetricFamily(f"topfive_{name}", help, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def families(registry: CollectorRegistry) -> Iterator[str]:
    """Yield the names of all families, as they are exposed."""
    for family in registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        yield family.name + suffix
