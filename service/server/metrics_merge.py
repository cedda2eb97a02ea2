"""One scrape for all workers: whoever is asked asks the others, and adds up.

Each worker answers its metrics on a Unix socket of a private folder (`Peers.answering`); whoever is
scraped asks all others at the same time, for at most ANSWER_WITHIN_S, and merges what came
(`Peers.merged`). Counters and histograms also stand in files of that folder (`keep_counts`), which
outlive a worker that is killed: its successor goes on counting there, and of a worker that does not
answer the file counts. So no sum ever drops.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, values
from prometheus_client.core import GaugeMetricFamily, Metric, Sample
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import parser
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from service.telemetry.metrics import Metrics

ANSWER_WITHIN_S = 1.0
KEPT = ("counter", "histogram")
# Of a process, not of the service: each worker's own, told apart by the label `worker`.
OWN = ("process_", "python_gc_")
# Gauges of which the sum would be nonsense.
GREATEST = {"topfive_ready", "topfive_draining", "topfive_model_load_duration_seconds"}

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Peers:
    """The workers of one service, seen by one of them: `worker` of `workers`, counted from 0."""

    folder: Path
    worker: int
    workers: int

    @contextlib.asynccontextmanager
    async def answering(self, metrics: Metrics) -> AsyncIterator[None]:
        """Answer this worker's metrics to the others meanwhile."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                metrics.snapshot()
                writer.write(await asyncio.to_thread(generate_latest, metrics.registry))

        async with await asyncio.start_unix_server(answer, self._socket(self.worker)):
            yield

    async def merged(self, registry: CollectorRegistry) -> Collector:
        """The families of all workers; `registry` has this one's, as they are now."""
        others = [number for number in range(self.workers) if number != self.worker]
        texts = await asyncio.gather(*(_ask(self._socket(number)) for number in others))
        return _Merged(self, registry, dict(zip(others, texts, strict=True)))

    def kept(self, worker: int) -> Iterable[Metric]:
        """The counters and histograms that `worker` has ever counted."""
        files = [file for kind in KEPT if (file := _file(self.folder, kind, worker)).exists()]
        found: Iterable[Metric] = MultiProcessCollector.merge([str(file) for file in files])
        return found

    def _socket(self, worker: int) -> str:
        return str(self.folder / f"{worker}.socket")


async def _ask(socket: str) -> str | None:
    """What the worker at `socket` answers; None if it is not there, or not in time."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            with contextlib.closing(writer):
                text = (await reader.read()).decode()
    except (OSError, TimeoutError):
        return None
    return text if text.endswith("# EOF\n") else None


class _Merged(Collector):
    """The sum, made where it is rendered: parsing takes milliseconds for each worker."""

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
        """A worker's samples by family: what it answers, and what it counted in former lives."""
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


def keep_counts(folder: Path, worker: int) -> list[MmapedDict]:
    """Have all counters and histograms that are made from now on start from, and stand in, the
    files of `worker` in `folder`, which are returned.

    As the multiprocess mode of prometheus_client does, but beside the registry, which keeps its
    exemplars and its own collectors.
    """
    files = {kind: MmapedDict(str(_file(folder, kind, worker))) for kind in KEPT}
    adding = threading.Lock()

    class Kept(values.MutexValue):
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

    def value(kind: str, *about: Any, **others: Any) -> values.MutexValue:
        if kind in files:
            return Kept(kind, *about)
        return values.MutexValue(kind, *about, **others)

    values.ValueClass = value
    return list(files.values())


def _file(folder: Path, kind: str, worker: int) -> Path:
    # The kind in front is how the library tells what is in it.
    return folder / f"{kind}_{worker}.db"
