"""Asked for three and ten times what there is: `make overload`, on a simulated card.

The card is four times as slow as an MLU370-S4: about 122 images/s. `topfive bench load` posts
500x375 JPEGs from the same processors. Beside it `/livez` is asked ten times a second over a
connection of its own, and the memory of all processes (PSS) is looked at twice a second.
"""

import http.client
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.ours import S4_SLOWER, on_cards
from benchmarks.photos import photos
from benchmarks.server import BenchServer, running
from tests.support.serving import COMMAND, plain_environment

DEADLINE_MS = 10_000
"""The service's own, where a request names none."""
GROWTH_BYTES = 4 << 20
"""What the last quarter of the time may hold more than the third. It wavers by a MiB; at
ten times the capacity, in 60 s, 230 bytes of each request come to that, or one body in 400."""


@dataclass(frozen=True)
class Seen:
    """What one load came to: its own account, and what was seen meanwhile."""

    load: dict[str, Any]
    livez_ms: list[float]
    memory: list[int]

    @property
    def growth(self) -> float:
        """Bytes: the mean of the last quarter over that of the third."""
        quarter = len(self.memory) // 4
        return mean(self.memory[-quarter:]) - mean(self.memory[-2 * quarter : -quarter])


@pytest.fixture(scope="module")
def server() -> Iterator[BenchServer]:
    with running(on_cards(S4_SLOWER), photos()[0]) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(photos()):
        folder.joinpath(f"{number:03d}.jpg").write_bytes(photo)
    return folder


@pytest.fixture(scope="module")
def capacity(server: BenchServer, folder: Path, figure: Callable[[str], None]) -> float:
    """Good answers a second of 32 clients that take turns."""
    load = seen(server, folder, "--clients", 32, "--duration-s", 15).load
    rate, p99 = load["per_second"]["good"], p99_ms(load, "good")
    figure(f"32 clients in a closed loop: {rate:.1f} good/s, p99 {p99:.0f} ms; shares are of that")
    figure(
        "  asked  deadline   good/s  share  p99 ms   refused/s  p99 ms   /livez ms   PSS MiB  grown"
    )
    return float(rate)


def seen(server: BenchServer, folder: Path, *options: object) -> Seen:
    command = [*COMMAND, "bench", "load", str(folder), "--url", server.url, "--json"]
    command += map(str, options)
    with alive(server) as livez_ms, server.memory_watched() as memory:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=plain_environment())
    [load] = json.loads(done.stdout)["results"]
    return Seen(load, livez_ms, memory)


def p99_ms(load: dict[str, Any], kind: str) -> float:
    """Infinite where no such answer came."""
    return float((load["latency_ms"][kind] or {"p99": math.inf})["p99"])


@contextmanager
def alive(server: BenchServer) -> Iterator[list[float]]:
    """The list gets how many milliseconds each answer of `/livez` took."""
    took: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        while not ended.wait(0.1):
            begun = time.perf_counter()
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            took.append((time.perf_counter() - begun) * 1e3 if answer.status == 200 else 1e9)
        connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield took
    finally:
        ended.set()
        asking.join()


@pytest.mark.large
@pytest.mark.parametrize(("deadline_ms", "seconds"), [(0, 60), (500, 20)])
@pytest.mark.parametrize("times", [3, 10])
def test_more_than_there_is(
    times: int,
    deadline_ms: int,
    seconds: int,
    capacity: float,
    server: BenchServer,
    folder: Path,
    figure: Callable[[str], None],
) -> None:
    """As many good answers as before, in time; the rest is refused at once, with Retry-After."""
    asked, limit_ms = round(times * capacity), deadline_ms or DEADLINE_MS
    options = ("--rate", asked, "--duration-s", seconds, "--deadline-ms", deadline_ms)
    found = seen(server, folder, *options)
    rates, slowest = found.load["per_second"], max(found.livez_ms)
    share = rates["good"] / capacity
    good_ms, refused_ms = p99_ms(found.load, "good"), p99_ms(found.load, "refused")
    figure(
        f"{asked:5}/s  {limit_ms / 1e3:6.1f} s  {rates['good']:7.1f}  {share:5.3f}  {good_ms:6.0f}"
        f"  {rates['refused']:10.1f}  {refused_ms:6.1f}  {slowest:10.1f}"
        f"  {max(found.memory) / 2**20:8.0f}  {found.growth / 2**20:+5.1f}"
    )
    assert rates["sent"] == pytest.approx(asked, rel=0.03)
    assert share >= 0.9
    assert good_ms < limit_ms
    assert set(found.load["statuses"]) == {"200", "503"}
    ends = ("broken", "unanswered", "refused_without_retry_after")
    assert [found.load[end] for end in ends] == [{}, 0, 0]
    assert refused_ms <= 50
    assert slowest <= 100 and len(found.livez_ms) >= 9 * seconds
    assert found.growth < GROWTH_BYTES
