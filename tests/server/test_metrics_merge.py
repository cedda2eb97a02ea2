"""The sum of several workers' metrics: what is added, what is not, and what outlives a worker."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition, parser

from service.server.metrics_merge import Peers
from service.telemetry.metrics import Metrics

OK = ("classify", "200")


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Callable[[int], Metrics]]:
    """Call it with a worker's number: the metrics of its next life."""
    with ExitStack() as files:

        def begin(worker: int) -> Metrics:
            metrics = Peers(tmp_path, worker, 3).metrics()
            metrics.add(lambda: [])
            for value in (metrics.decode_restarts._value, metrics.event_loop_lag._sum):
                files.callback(value._file.close)  # type: ignore[attr-defined]
            return metrics

        yield begin


def test_the_library_is_as_it_was(life: Callable[[int], Metrics]) -> None:
    """Other metrics of the process are in no file, and have the library's own values."""
    before = values.ValueClass
    life(0)
    assert values.ValueClass is before
    assert type(Metrics().http_requests.labels(*OK)._value) is before


def merged(folder: Path, asked: Metrics, *answering: Metrics) -> dict[str, Metric]:
    """What worker 0, of which `asked` are the metrics, tells of three: 1 and on are `answering`."""

    async def scrape() -> list[Metric]:
        async with AsyncExitStack() as doors:
            for worker, metrics in enumerate(answering, 1):
                await doors.enter_async_context(Peers(folder, worker, 3).answering(metrics))
            collector = await Peers(folder, 0, 3).merged(asked.registry)
            text = exposition.generate_latest(collector).decode()
            return list(parser.text_string_to_metric_families(text))

    return {family.name: family for family in asyncio.run(scrape())}


def value(families: dict[str, Metric], family: str, sample: str = "", **labels: str) -> float:
    """The sum of the samples of a family that have this ending and these labels."""
    found = families[f"topfive_{family}"]
    return sum(
        s.value
        for s in found.samples
        if s.name == found.name + sample and labels.items() <= s.labels.items()
    )


def test_what_is_added_and_what_is_not(tmp_path: Path, life: Callable[[int], Metrics]) -> None:
    """Counters, buckets and gauges are; facts are not; what is of a process is told apart."""
    workers = []
    for number in range(1, 4):
        workers.append(metrics := life(number - 1))
        metrics.http_requests.labels(*OK).inc(number)
        metrics.http_requests_in_flight.labels("classify").set(number)
        metrics.http_request_duration.labels("classify", "ok").observe(0.1 * number)
        metrics.model_load_duration.labels("tiny").set(number)
        metrics.describe_build("1", "")
    families = merged(tmp_path, *workers)
    assert value(families, "http_requests", "_total", route="classify", code="200") == 6
    assert value(families, "http_requests_in_flight", route="classify") == 6
    duration = "http_request_duration_seconds"
    assert value(families, duration, "_count", outcome="ok") == 3
    assert value(families, duration, "_sum", outcome="ok") == pytest.approx(0.6)
    assert value(families, duration, "_bucket", outcome="ok", le="0.2") == 2
    assert value(families, "model_load_duration_seconds") == 3
    assert value(families, "build_info") == 1
    own = {sample.labels["worker"] for sample in families["process_open_fds"].samples}
    assert own == {"0", "1", "2"}
    assert value(families, "workers", state="answering") == 3


def test_what_a_worker_counted_outlives_it(tmp_path: Path, life: Callable[[int], Metrics]) -> None:
    """While it is gone, and in its next life, where it goes on; its gauges went with it."""
    workers = []
    for number in range(3):
        workers.append(metrics := life(number))
        metrics.http_requests.labels(*OK).inc(5)
        metrics.http_request_duration.labels("classify", "ok").observe(0.1)
        metrics.http_requests_in_flight.labels("classify").inc()
    asked, other, _ = workers
    families = merged(tmp_path, asked, other)
    assert value(families, "http_requests", "_total", route="classify", code="200") == 15
    assert value(families, "http_request_duration_seconds", "_count", outcome="ok") == 3
    assert value(families, "http_requests_in_flight", route="classify") == 2
    assert value(families, "workers", state="silent") == 1
    reborn = life(2)
    assert value(merged(tmp_path, asked, other, reborn), "http_requests", "_total") == 15
    reborn.http_requests.labels(*OK).inc()
    assert value(merged(tmp_path, asked, other, reborn), "http_requests", "_total") == 16


def test_the_newest_exemplar_of_a_bucket_is_kept(
    tmp_path: Path, life: Callable[[int], Metrics]
) -> None:
    """Of those that the workers have."""
    workers = {}
    for number in (0, 2, 1):
        workers[number] = life(number)
        seconds = workers[number].http_request_duration.labels("classify", "ok")
        seconds.observe(0.1, {"trace_id": str(number)})
    families = merged(tmp_path, *(workers[number] for number in range(3)))
    samples = families["topfive_http_request_duration_seconds"].samples
    assert [s.exemplar.labels["trace_id"] for s in samples if s.exemplar] == ["1"]


def test_one_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, life: Callable[[int], Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens and says nothing: after the time that it has, its counts are those of the file."""
    monkeypatch.setattr("service.server.metrics_merge.ANSWER_WITHIN_S", 0.1)
    asked, stuck = life(0), life(1)
    stuck.http_requests.labels(*OK).inc(7)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "1.socket"))
        silent.listen()
        collector = asyncio.run(Peers(tmp_path, 0, 2).merged(asked.registry))
    families = {family.name: family for family in collector.collect()}
    assert value(families, "http_requests", "_total") == 7
    assert value(families, "workers", state="silent") == 1
