"""GET /metrics: the families of the conventions, what moves them, naming, size, and the docs."""

import re
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.errors import RequestError
from tests.support import pictures, tiny
from tests.support.paths import ROOT
from tests.support.serving import Service, serving

# The project's table of metrics (conventions 3.6), copied by hand.
TABLE = {
    "http_requests_total": ("counter", "route code"),
    "http_requests_in_flight": ("gauge", "route"),
    "http_request_duration_seconds": ("histogram", "route outcome"),
    "http_request_body_bytes": ("histogram", "route"),
    "request_stage_duration_seconds": ("histogram", "route stage"),
    "refusals_total": ("counter", "route reason"),
    "images_total": ("counter", "model outcome"),
    "image_stage_duration_seconds": ("histogram", "model stage"),
    "image_pixels": ("histogram", "model"),
    "rows": ("gauge", "model state"),
    "row_seconds_total": ("counter", "model"),
    "batches_total": ("counter", "model device outcome"),
    "batch_images": ("histogram", "model device"),
    "batch_padding_rows_total": ("counter", "model device"),
    "batch_stage_duration_seconds": ("histogram", "model device stage"),
    "image_retries_total": ("counter", "model"),
    "batch_behind_duration_seconds": ("histogram", "model device"),
    "device_idle_seconds_total": ("counter", "model device"),
    "late_replies_total": ("counter", "model device"),
    "device_batches_in_flight": ("gauge", "model device"),
    "device_state": ("gauge", "model device state"),
    "device_restarts_total": ("counter", "model device reason"),
    "device_info": ("gauge", "model device kind mlu uuid sn card engine"),
    "golden_probes_total": ("counter", "model device result"),
    "golden_probe_deviation": ("gauge", "model device"),
    "golden_probe_success_timestamp_seconds": ("gauge", "model device"),
    "host_cpu_seconds_total": ("counter", "model device"),
    "host_resident_memory_bytes": ("gauge", "model device"),
    "model_info": ("gauge", "model version target precision batch input"),
    "model_load_duration_seconds": ("gauge", "model"),
    "ready": ("gauge", ""),
    "draining": ("gauge", ""),
    "event_loop_lag_seconds": ("histogram", ""),
    "decode_processes_busy": ("gauge", ""),
    "decode_restarts_total": ("counter", ""),
    "build_info": ("gauge", "version revision python"),
}
# Beyond the table: the design asks for a count of answers that may have been wrong, a scrape has to
# tell whose values are in it, and decoding is most of what an image costs.
BEYOND = {
    "doubtful_images_total": ("counter", "model device"),
    "device_precision_fallback": ("gauge", "model device"),
    "workers": ("gauge", "state"),
    "worker_restarts_total": ("counter", ""),
    "decode_cpu_seconds_total": ("counter", ""),
    "decode_resident_memory_bytes": ("gauge", ""),
    "log_lines_lost_total": ("counter", ""),
    "tls_certificate_expiry_timestamp_seconds": ("gauge", ""),
    "tls_handshake_failures_total": ("counter", "reason"),
    "url_fetches_total": ("counter", "outcome"),
    "grpc_requests_total": ("counter", "method code"),
    "grpc_requests_in_flight": ("gauge", ""),
    "grpc_request_duration_seconds": ("histogram", "outcome"),
    "key_checks_total": ("counter", "outcome"),
}
ROUTES = {"classify", "v1", "v2", "admin", "other", "grpc"}
VALUES = {
    ("http_requests_total", "route"): ROUTES - {"grpc"},
    ("http_request_duration_seconds", "route"): {"classify", "v1", "v2"},
    ("http_request_duration_seconds", "outcome"): {"ok", "error"},
    ("request_stage_duration_seconds", "stage"): {"receive", "encode"},
    ("images_total", "outcome"): {"ok", "failed", "expired", "abandoned"},
    ("url_fetches_total", "outcome"): {"ok", "refused", "failed", "timeout", "too_large"},
    ("image_stage_duration_seconds", "stage"): {"decode", "queue"},
    ("rows", "state"): {"free", "filling", "waiting", "running", "lost"},
    ("batches_total", "outcome"): {"ok", "failed", "timed_out"},
    ("batch_stage_duration_seconds", "stage"): {"copy_in", "compute", "copy_out"},
    ("device_state", "state"): {
        "starting", "proving", "ready", "failed", "waiting", "quarantined", "stopped",
    },
    ("device_restarts_total", "reason"): {"crashed", "hung", "wrong_answer", "driver", "artifact"},
    ("golden_probes_total", "result"): {"pass", "fail", "timed_out", "skipped"},
    ("device_info", "kind"): {"cpu"},
    ("workers", "state"): {"answering", "silent"},
    ("tls_handshake_failures_total", "reason"): {
        "plain", "closed", "timeout", "version", "no_certificate", "untrusted", "other",
    },
}  # fmt: skip
BUCKETS = {
    "http_request_duration_seconds": ".001 .0025 .005 .0075 .01 .015 .02 .03 .05 .075 .1 .15 .2 "
    ".3 .5 .75 1 2.5 5 10",
    "request_stage_duration_seconds": ".0001 .00025 .0005 .001 .002 .003 .005 .0075 .01 .02 .03 "
    ".05 .1 .25 1 5",
    "http_request_body_bytes": "4096 65536 131072 262144 524288 1048576 2097152 4194304 8388608 "
    "16777216 33554432",
    "batch_images": "1 2 4 8 12 16 24 32 48 64",
    "image_pixels": "50176 .25e6 1e6 4e6 12e6 25e6 50e6",
    "event_loop_lag_seconds": ".001 .0025 .005 .01 .025 .05 .1 .25 .5 1",
}
# What one classified image and one refusal move.
MOVED = [
    ("http_requests_total", {"route": "classify", "code": "200"}),
    ("http_requests_total", {"route": "classify", "code": "415"}),
    ("http_request_duration_seconds_count", {"route": "classify", "outcome": "ok"}),
    ("http_request_duration_seconds_sum", {"route": "classify", "outcome": "error"}),
    ("http_request_body_bytes_sum", {"route": "classify"}),
    ("request_stage_duration_seconds_sum", {"stage": "receive"}),
    ("request_stage_duration_seconds_sum", {"stage": "encode"}),
    ("refusals_total", {"route": "classify", "reason": "unsupported_media"}),
    ("images_total", {"outcome": "ok"}),
    ("images_total", {"outcome": "failed"}),
    ("image_stage_duration_seconds_sum", {"stage": "decode"}),
    ("image_stage_duration_seconds_count", {"stage": "queue"}),
    ("image_pixels_sum", {"model": "tiny"}),
    ("row_seconds_total", {"model": "tiny"}),
    ("batches_total", {"device": "cpu0", "outcome": "ok"}),
    ("batch_images_sum", {"model": "tiny", "device": "cpu0"}),
    ("batch_stage_duration_seconds_sum", {"stage": "copy_in"}),
    ("batch_stage_duration_seconds_sum", {"stage": "compute"}),
    ("batch_stage_duration_seconds_sum", {"stage": "copy_out"}),
    ("golden_probes_total", {"result": "pass"}),
    ("golden_probe_success_timestamp_seconds", {"device": "cpu0"}),
    ("host_cpu_seconds_total", {"device": "cpu0"}),
    ("host_resident_memory_bytes", {"device": "cpu0"}),
    ("decode_cpu_seconds_total", {}),
    ("decode_resident_memory_bytes", {}),
    ("device_state", {"state": "ready"}),
    ("device_info", {"device": "cpu0", "kind": "cpu"}),
    ("model_info", {"model": "tiny", "batch": "1-64", "input": "16x16"}),
    ("model_load_duration_seconds", {"model": "tiny"}),
    ("build_info", {}),
    ("ready", {}),
    ("event_loop_lag_seconds_count", {}),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    with serving(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def text(service: Service) -> str:
    """A scrape after an image and a refusal; the event loop has ticked."""
    assert service.http.post("/classify", content=pictures.encoded()).status_code == 200
    assert service.http.post("/classify", content=b"no image").status_code == 415
    while service.metric("topfive_event_loop_lag_seconds_count") == 0:
        assert service.process.poll() is None
    return service.http.get("/metrics").text


@pytest.fixture(scope="module")
def families(text: str) -> dict[str, Metric]:
    """The families of ours by their names, as they are exposed, without `topfive_`."""
    parsed = list(text_string_to_metric_families(text))
    assert len({family.name for family in parsed}) == len(parsed)
    return {
        exposed(family).removeprefix("topfive_"): family
        for family in parsed
        if family.name.startswith("topfive_")
    }


def exposed(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def shape(family: Metric) -> tuple[str, set[str]]:
    """Its type and its labels."""
    return family.type, {name for sample in family.samples for name in sample.labels} - {"le"}


def value(families: dict[str, Metric], sample_name: str, labels: dict[str, str]) -> float:
    samples = (sample for family in families.values() for sample in family.samples)
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"topfive_{sample_name}" and labels.items() <= sample.labels.items()
    )


def test_families_are_those_of_the_table(families: dict[str, Metric]) -> None:
    """Every one exists, under that name, with that type and those labels; and no other."""
    expected = {
        name: (kind, set(labels.split())) for name, (kind, labels) in (TABLE | BEYOND).items()
    }
    assert {name: shape(family) for name, family in families.items()} == expected


def test_label_values_are_those_of_the_table(families: dict[str, Metric]) -> None:
    """And all there from the start: a counter that appears with 1 has lost its first step."""
    for (name, label), expected in VALUES.items():
        found = {sample.labels[label] for sample in families[name].samples}
        assert found == expected, name


def test_every_reason_is_counted_from_the_start(families: dict[str, Metric]) -> None:
    """Each code of the errors, at each route."""
    found = {(s.labels["route"], s.labels["reason"]) for s in families["refusals_total"].samples}
    codes = {error.code for error in RequestError.__subclasses__()}
    assert found == {(route, code) for route in ROUTES for code in codes}


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets(families: dict[str, Metric], name: str) -> None:
    """Bounds are those of the table, in every replica, or sums over them mean nothing."""
    bounds = {
        float(sample.labels["le"]) for sample in families[name].samples if "le" in sample.labels
    }
    assert bounds == {*map(float, BUCKETS[name].split()), float("inf")}


@pytest.mark.parametrize(("name", "labels"), MOVED)
def test_requests_move_them(families: dict[str, Metric], name: str, labels: dict[str, str]) -> None:
    """One image and one refusal leave their trace everywhere."""
    assert value(families, name, labels) > 0


def test_counts_are_exact(families: dict[str, Metric]) -> None:
    """One answer, one refusal, two bodies of known size."""
    assert value(families, "http_requests_total", {"route": "classify"}) == 2
    assert value(families, "images_total", {}) == 2
    assert value(families, "batch_images_sum", {}) == 1
    assert value(families, "image_pixels_sum", {}) == tiny.SIDE**2
    sizes = len(pictures.encoded()) + len(b"no image")
    assert value(families, "http_request_body_bytes_sum", {}) == sizes
    assert value(families, "rows", {}) == 256
    assert value(families, "device_state", {}) == 1


# What promtool's linter calls a problem, and what no label may be called.
NO_PART = (
    "counter gauge summary histogram untyped milliseconds minutes hours bits kilobytes percent "
    "s ms us ns sec b kb mb gb tb pb m h d"
)
NO_LABEL = "job instance namespace pod container service endpoint node le quantile"


def test_names_are_what_prometheus_recommends(families: dict[str, Metric]) -> None:
    """promtool's rules, in words: help, snake case, _total on counters alone, base units."""
    for name, family in families.items():
        full_name = exposed(family)
        assert family.documentation, full_name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", full_name)
        assert (family.type == "counter") == full_name.endswith("_total")
        assert not re.search(r"_(bucket|count|sum)$", full_name)
        assert not {*NO_PART.split()} & {*name.split("_")}, full_name
        _, labels = shape(family)
        assert not {*NO_LABEL.split()} & labels
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in labels)


def test_series_are_few(families: dict[str, Metric], text: str) -> None:
    """At most 2000 in a process, and 24 values of a label."""
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len({line.rsplit(" ", 1)[0] for line in series})
    print(f"\n{len(series)} series")
    assert len(series) <= 2000
    for family in families.values():
        for label in shape(family)[1]:
            assert len({sample.labels[label] for sample in family.samples}) <= 24


def test_process_and_python_are_there(text: str) -> None:
    """Of the service's own process; and no _created series, which would double the counters."""
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes",
                 "process_open_fds", "process_start_time_seconds", "python_info",
                 "python_gc_collections_total"):  # fmt: skip
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name
    assert "_created" not in text


def test_openmetrics_on_request(service: Service) -> None:
    """To those who accept it, whole; others get the text format."""
    accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    reply = service.http.get("/metrics", headers=accept)
    assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.text.endswith("# EOF\n")
    names = {family.name for family in openmetrics.text_string_to_metric_families(reply.text)}
    assert "topfive_http_requests" in names
    plain = service.http.get("/metrics", headers={"accept": "*/*"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_health_is_no_refusal(service: Service) -> None:
    """A wrong method on a health path is counted as an answer, not as a refusal."""
    before = service.metric("topfive_refusals_total", route="admin")
    assert service.http.post("/livez").status_code == 405
    assert service.metric("topfive_refusals_total", route="admin") == before
    assert service.metric("topfive_http_requests_total", route="admin", code="405") == 1
    assert service.http.post("/model").status_code == 405
    assert service.metric("topfive_refusals_total", route="admin") == before + 1


def test_strange_paths_make_no_labels(service: Service) -> None:
    """Whatever is asked for is `other`: nobody can make series."""
    for path in ("/a", "/b", '/c"}', "/classify/x", "/v3", "/v2x/models/infer", "/v1x:predict"):
        assert service.http.get(path).status_code == 404
    assert 'route="other"' in (text := service.http.get("/metrics").text)
    assert set(re.findall(r'route="([^"]*)"', text)) == ROUTES


def documented() -> dict[str, tuple[str, set[str]]]:
    """Name, type and labels of every row of docs/metrics.md."""
    page = ROOT / "docs/metrics.md"
    rows = re.findall(r"^\| `(topfive_\w+)` \| (\w+) \| ([^|]*)\|", page.read_text(), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_docs_name_every_metric(families: dict[str, Metric]) -> None:
    """Neither more nor less, with the same types and labels."""
    assert documented() == {f"topfive_{name}": shape(family) for name, family in families.items()}
