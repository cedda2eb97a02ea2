"""Aggregate the metrics of all workers when one of them is scraped.

Each worker answers its metrics on a Unix socket in a private folder (`Peers.answering`). The worker
that is scraped asks all others at the same time, for at most ANSWER_WITHIN_S, and merges the
answers (`Peers.merged`). The counts are also in files of that folder (`Peers.metrics`), which
remain when a worker is killed: its next process continues from them, and if a worker does not
answer they are in the sum. So no sum ever decreases.

The multiprocess mode of prometheus_client does not suit: it has no exemplars and no collectors of
its own, and is chosen for the whole process by an environment variable. Its files and their reader
are used.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric, Sample
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import parser
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MutexValue

from service.telemetry.metrics import Metrics

ANSWER_WITHIN_S = 1.0
"""Seconds for the other workers to answer."""
KEPT = ("counter", "histogram")
"""The types of metrics that are in files."""
OWN = ("process_", "python_gc_")
"""Prefixes of families that describe a process: they get the label `worker` and are not added."""
GREATEST = {
    *("topfive_ready", "topfive_draining", "topfive_model_load_duration_seconds"),
    "topfive_tls_certificate_expiry_timestamp_seconds",
}
"""Gauges whose sum has no meaning: the largest value is taken."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Peers:
    """The workers of one service: this is `worker`, of 0 to `workers` - 1."""

    folder: Path
    worker: int
    workers: int

    def metrics(self) -> Metrics:
        """Return this worker's metrics, whose counts continue those of its former processes."""
        files = {kind: MmapedDict(str(_file(self.folder, kind, self.worker))) for kind in KEPT}
        return Metrics(*_kept_types(files))

    @contextlib.asynccontextmanager
    async def answering(self, metrics: Metrics) -> AsyncIterator[None]:
        """Answer the other workers until the end of the block."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                metrics.snapshot()
                writer.write(await asyncio.to_thread(generate_latest, metrics.registry))

        async with await asyncio.start_unix_server(answer, self._socket(self.worker)):
            yield

    async def merged(self, registry: CollectorRegistry) -> Collector:
        """Return the families of all workers; `registry` has those of this one."""
        others = [number for number in range(self.workers) if number != self.worker]
        texts = await asyncio.gather(*(_ask(self._socket(number)) for number in others))
        return _Merged(self, registry, dict(zip(others, texts, strict=True)))

    def kept(self, worker: int) -> Iterable[Metric]:
        """Return the counters and histograms in the files of `worker`."""
        files = [file for kind in KEPT if (file := _file(self.folder, kind, worker)).exists()]
        found: Iterable[Metric] = MultiProcessCollector.merge([str(file) for file in files])
        return found

    def _socket(self, worker: int) -> str:
        return str(self.folder / f"{worker}.socket")


async def _ask(socket: str) -> str | None:
    """Return the answer of the worker at `socket`; None if there is none in time."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            with contextlib.closing(writer):
                text = (await reader.read()).decode()
    except (OSError, TimeoutError):
        return None
    return text if text.endswith("# EOF\n") else None


class _Merged(Collector):
    """The sum of all workers.

    It is computed in the thread that renders it, because parsing takes milliseconds for a worker.
    """

    def __init__(
        self, peers: Peers, registry: CollectorRegistry, texts: dict[int, str | None]
    ) -> None:
        self._peers = peers
        self._registry = registry
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        samples: dict[str, dict[_Key, Sample]] = {}
        for worker in range(self._peers.workers):
            for name, (family, found) in self._of(worker).items():
                merged.setdefault(name, Metric(name, family.documentation, family.type))
                _add(name, samples.setdefault(name, {}), found)
        for name, family in merged.items():
            family.samples = list(samples[name].values())
            yield family

    def _of(self, worker: int) -> dict[str, tuple[Metric, dict[_Key, Sample]]]:
        """Return a worker's samples by family, from its answer or else from its files."""
        found: dict[str, tuple[Metric, dict[_Key, Sample]]] = {}
        for family in (*self._answer(worker), *self._peers.kept(worker)):
            _, known = found.setdefault(family.name, (family, {}))
            for sample in family.samples:
                if family.name.startswith(OWN):
                    sample = sample._replace(labels={**sample.labels, "worker": str(worker)})
                known.setdefault((sample.name, tuple(sorted(sample.labels.items()))), sample)
        return found

    def _answer(self, worker: int) -> Iterable[Metric]:
        if worker == self._peers.worker:
            return self._registry.collect()
        text = self._texts[worker]
        if text is not None:
            families: Iterable[Metric] = parser.text_string_to_metric_families(text)
            return families
        silent = GaugeMetricFamily("topfive_workers", "", labels=("state",))
        silent.add_metric(("silent",), 1)
        return [silent]


def _add(name: str, sums: dict[_Key, Sample], found: dict[_Key, Sample]) -> None:
    greatest = name in GREATEST or name.endswith("_info")
    for key, sample in found.items():
        before = sums.get(key)
        if before is None:
            sums[key] = sample
            continue
        value = (max if greatest else _sum)(before.value, sample.value)
        sums[key] = before._replace(value=value, exemplar=_newer(before.exemplar, sample.exemplar))


def _sum(one: float, other: float) -> float:
    return one + other


def _newer(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda exemplar: float(exemplar.timestamp or 0))


def _kept_types(files: dict[str, MmapedDict]) -> tuple[type[Counter], type[Histogram]]:
    """Return a counter and a histogram whose values are also in `files`, and start from there."""
    adding = threading.Lock()

    class Kept(MutexValue):
        def __init__(self, kind: str, *about: Any) -> None:
            super().__init__(kind, *about)  # type: ignore[no-untyped-call]
            self._file = files[kind]
            with adding:
                self._key = mmap_key(*about)
                self._value, _ = self._file.read_value(self._key)

        def inc(self, amount: float) -> None:
            with self._lock:
                self._value += amount
                self._file.write_value(self._key, self._value, 0.0)

    # `_metric_init` makes the values of a metric, or of one set of its labels.
    class KeptCounter(Counter):
        def _metric_init(self) -> None:
            super()._metric_init()
            about = (self._labelnames, self._labelvalues, self._documentation)
            self._value = Kept("counter", self._name, f"{self._name}_total", *about)

    class KeptHistogram(Histogram):
        def _metric_init(self) -> None:
            super()._metric_init()
            names, labels, help = self._labelnames, self._labelvalues, self._documentation
            self._sum = Kept("histogram", self._name, f"{self._name}_sum", names, labels, help)
            self._buckets = [
                Kept(
                    *("histogram", self._name, f"{self._name}_bucket", (*names, "le")),
                    *((*labels, floatToGoString(bound)), help),
                )
                for bound in self._upper_bounds
            ]

    return KeptCounter, KeptHistogram


def _file(folder: Path, kind: str, worker: int) -> Path:
    # prometheus_client reads the type of the metrics from the start of the name.
    return folder / f"{kind}_{worker}.db"
