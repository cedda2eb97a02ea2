"""`topfive bench load` against a server that counts requests itself, and against topfive."""

import asyncio
import contextlib
import itertools
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from PIL import Image

from service.cli import main
from service.tools.bench import bodies
from service.tools.bench.arrivals import offsets
from service.tools.bench.connection import target
from service.tools.bench.load import Load, Run
from service.tools.bench.outcome import LoadResult, Tally
from service.tools.bench.sweep import PRECISION, holds, search
from tests.support import pictures
from tests.support.paths import ROOT
from tests.support.serving import COMMAND, plain_environment, serving
from tests.support.tiny import write_tiny_artifact

OBEDIENT = ROOT / "tests" / "support" / "obedient.py"
WORDS = ("good", "chunked", "once", "busy", "bare", "limited", "late", "reset", "gone", "junk")
STATUSES = {200: ("good", "chunked", "once"), 503: ("busy", "bare"), 429: ("limited",)}


class Obedient:
    """The process of support/obedient.py."""

    def __init__(self, *stall: str) -> None:
        command = [sys.executable, str(OBEDIENT), *stall]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self._line()}"

    def _line(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def stood_still(self) -> tuple[float, float]:
        begun, ended = self._line()
        return begun, ended

    def account(self) -> dict[str, Any]:
        """End the server, and return its counts."""
        assert self.process.stdin
        self.process.stdin.close()
        account: dict[str, Any] = self._line()
        return account

    def end(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server() -> Iterator[Obedient]:
    running = Obedient()
    yield running
    running.end()


@pytest.fixture
def stalling() -> Iterator[Obedient]:
    """Start a server that stands still for half a second, at a time after its first request."""
    running = Obedient("0.3", "0.5")
    yield running
    running.end()


def measure(server: Obedient, load: Load, *words: str) -> tuple[LoadResult, Tally]:
    async def run() -> tuple[LoadResult, Tally]:
        one = Run(target(server.url, [word.encode() for word in words or ("good",)]), load)
        return await one.measured(), one.tally

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def files(folder: Path, *words: str) -> Path:
    for number, word in enumerate(words):
        folder.joinpath(f"{number}.jpg").write_text(word)
    return folder


def bench(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "bench", "load", *map(str, options)],
        capture_output=True,
        text=True,
        env=plain_environment() | environment,
    )


SHORT = ("--duration-s", "0.2", "--warmup-s", "0")


# How requests end


@pytest.mark.parametrize("load", [Load(clients=4), Load(rate=300)], ids=["closed", "open"])
def test_every_end_is_counted_as_the_server_does(server: Obedient, load: Load) -> None:
    """Both count the same statuses, refusals without Retry-After, and broken connections."""
    found, _ = measure(server, replace(load, duration_s=0.4, warmup_s=0), *WORDS)
    words = server.account()["words"]
    assert set(words) == set(WORDS)
    expected = {status: sum(words[word] for word in of) for status, of in STATUSES.items()}
    assert found.statuses == {**expected, 504: words["late"]}
    assert found.refused_without_retry_after == words["bare"]
    reasons = {"reset": "reset", "closed": "gone", "unreadable": "junk"}
    assert found.broken == {reason: words[word] for reason, word in reasons.items()}
    assert (found.requests, found.unanswered) == (sum(words.values()), 0)
    assert found.failed == found.requests - expected[200]


def test_requests_without_an_answer(server: Obedient) -> None:
    """The wait for them is bounded, and those that never had a connection are counted."""
    load = Load(rate=100, poisson=False, duration_s=0.3, warmup_s=0, connections=4, grace_s=0.1)
    found, _ = measure(server, load, "silent")
    assert (found.requests, found.unanswered, found.unsent) == (30, 30, 26)
    assert server.account()["words"] == {"silent": 4}
    assert found.limit_reached


def test_clients_keep_their_connections(server: Obedient) -> None:
    """Each client has one, and opens a new one if an answer closes it."""
    kept, _ = measure(server, Load(clients=3, duration_s=0.2, warmup_s=0))
    assert (kept.connections_opened, kept.connections_most) == (3, 3)
    once, _ = measure(server, Load(clients=3, duration_s=0.2, warmup_s=0), "once")
    assert once.connections_opened == once.requests == once.statuses[200]
    assert not (kept.limit_reached or once.limit_reached or once.broken)


def test_connections_that_end_while_idle(server: Obedient) -> None:
    """A server may close a connection after its answer: no request is lost then."""
    load = Load(rate=40, poisson=False, duration_s=0.3, warmup_s=0)
    found, _ = measure(server, load, "hangup")
    assert (found.statuses, found.broken) == ({200: 12}, {})
    assert found.connections_opened == 12


def test_connections_that_cannot_be_made() -> None:
    """Each attempt is a broken request; the client sends its next one a tenth of a second later."""
    server = Obedient()
    server.end()
    found, _ = measure(server, Load(clients=2, duration_s=0.25, warmup_s=0))
    assert found.broken == {"not connected": found.requests}
    assert 4 <= found.requests <= 6


def test_at_most_so_many_requests(server: Obedient) -> None:
    """The load ends after this number, long before its time."""
    found, _ = measure(server, Load(clients=4, warmup_s=0, duration_s=60, requests=50))
    assert found.requests == found.statuses[200] == server.account()["words"]["good"] == 50
    assert found.seconds < 10


def test_what_is_sent(server: Obedient, tmp_path: Path) -> None:
    """All images are sent in turn, by default to /classify, with the deadline if there is one."""
    folder = files(tmp_path, "good", "slow", "busy")
    for url, options in (("", ()), ("/other?a=1", ("--deadline-ms", "250"))):
        once = ("--clients", "1", "--requests", "6", "--warmup-s", "0")
        assert not bench(folder, "--url", server.url + url, *once, *options).returncode
    account = server.account()
    assert account["words"] == {"good": 4, "slow": 4, "busy": 4}
    host = server.url.removeprefix("http://")
    common = f" HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
    assert account["heads"] == [
        f"POST /classify{common}Content-Length: 4",
        f"POST /other?a=1{common}X-Request-Timeout-Ms: 250\r\nContent-Length: 4",
    ]


# The times at which requests are due, and the latency from these times


def test_a_server_that_stands_still_cannot_hide_it(
    stalling: Obedient, figure: Callable[[str], None]
) -> None:
    """1000 requests/s continue during the stall, and all that were due have waited for its end."""
    load = Load(rate=1000, poisson=False, duration_s=1.2, warmup_s=0)
    found, tally = measure(stalling, load)
    begun, ended = stalling.stood_still()
    late = [
        (due, seconds)
        for due, seconds in zip(tally.intended, tally.seconds, strict=True)
        if begun < due < ended
    ]
    assert len(late) == pytest.approx((ended - begun) * 1000, abs=2)
    assert all(due + seconds >= ended for due, seconds in late)
    good = found.latency_ms["good"]
    assert good and good["max"] >= 0.99 * (ended - begun) * 1e3
    assert found.statuses == {200: 1200}
    assert found.per_second["sent"] < 1010  # how near it comes is the machine's
    figure(f"bench load: 1000/s asked, {found.per_second['sent']:.1f}/s sent over a server's stall")


def test_waiting_for_a_connection_counts(server: Obedient) -> None:
    """Two connections of 50 ms a request get twice their capacity, so the wait grows."""
    load = Load(rate=80, poisson=False, duration_s=0.3, warmup_s=0, connections=2)
    begun = time.perf_counter()
    found, tally = measure(server, load, "slow")
    took_s = time.perf_counter() - begun
    assert found.limit_reached
    assert server.account()["connections"]["most"] == found.connections_most == 2
    assert found.statuses == {200: 24}
    # The last is due after 0.2875 s, and 11 pairs are answered before it, from 0 on. A busy machine
    # makes that longer, but not longer than the whole measurement.
    assert 12 * 0.05 - 0.2875 - 0.01 < tally.seconds[-1] < took_s - 0.2875
    assert found.per_second["good"] < 45


def test_constant_arrivals() -> None:
    """Requests are due at equal intervals."""
    assert list(itertools.islice(offsets(4, poisson=False), 5)) == [0, 0.25, 0.5, 0.75, 1]


def test_poisson_arrivals() -> None:
    """The mean of the gaps is their deviation, and the gaps are the same in each run."""
    times = list(itertools.islice(offsets(200, poisson=True), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert times == list(itertools.islice(offsets(200, poisson=True), 20_000))


def test_the_warm_up_does_not_count(server: Obedient) -> None:
    """Only requests and answers of the window count; the server received the warm-up too."""
    load = Load(rate=200, poisson=False, warmup_s=0.2, duration_s=0.3)
    found, _ = measure(server, load)
    assert (found.requests, found.statuses) == (60, {200: 60})
    assert server.account()["words"]["good"] == 100


def test_what_it_costs(server: Obedient, figure: Callable[[str], None]) -> None:
    """32 clients with 100 KB cost less than 60 us of CPU a request, at the best of several runs."""
    load, body = Load(clients=32, duration_s=0.7, warmup_s=0.1), "good " + "x" * 99_995
    tries = [measure(server, load, body)[0]]
    while tries[-1].cpu_us_per_request >= 60 and len(tries) < 15:
        tries.append(measure(server, load, body)[0])
    found = min(tries, key=lambda one: one.cpu_us_per_request)
    figure(f"bench load: {found.cpu_us_per_request:.1f} us of CPU for a request of 100 KB")
    assert found.requests > 1000
    assert found.cpu_us_per_request < 60


# The search


def imagined(rate: float, p99: float, good: int = 1000) -> LoadResult:
    """Return the result of a server that gives `good` good answers to 1000 requests."""
    latency = {"good": {"p50": p99 / 2, "p90": p99, "p99": p99, "max": p99}}
    return LoadResult(
        rate, None, 1, 1000, {}, {200: good, 503: 1000 - good}, 0, {}, 0, 0, latency, None,
        1, 1, False, 0, False,
    )  # fmt: skip


def found_by(plan: Generator[Load, LoadResult, None], capacity: float) -> list[LoadResult]:
    """Run the search against a server that slows down or refuses beyond its `capacity`."""
    asked = []
    with contextlib.suppress(StopIteration):
        load = next(plan)
        while True:
            over = load.rate > capacity
            slow = len(asked) % 2
            asked.append(
                imagined(load.rate, 60 if over and slow else 40, 990 if over and not slow else 1000)
            )
            load = plan.send(asked[-1])
    return asked


@pytest.mark.parametrize("capacity", [0.3, 7, 100, 333, 20_000])
def test_the_highest_rate(capacity: float) -> None:
    """It is found within the precision, from far below or above, in a few loads."""
    asked = found_by(search(Load(rate=100), 50), capacity)
    best = max(one.rate or 0 for one in asked if holds(one, 50))
    assert best <= capacity < best * PRECISION * 1.01
    assert len(asked) < 16


def test_no_rate_holds() -> None:
    """The search ends."""
    asked = found_by(search(Load(rate=10), 50), 0)
    assert not any(holds(one, 50) for one in asked)
    assert len(asked) < 10


def test_what_holds() -> None:
    """The p99 is in time, and at most one request in a thousand has no good answer."""
    assert holds(imagined(1, 50), 50)
    assert holds(imagined(1, 50, good=999), 50)
    assert not holds(imagined(1, 50, good=998), 50)
    assert not holds(imagined(1, 50.1), 50)
    assert not holds(replace(imagined(1, 50), interrupted=True), 50)


def test_a_search_as_users_see_it(server: Obedient, tmp_path: Path) -> None:
    """Eight connections of 50 ms a request give 160/s; 0.4 s at 190/s cause a wait of 75 ms."""
    folder = files(tmp_path, "slow")
    options = ["--rate", "100", "--p99-ms", "110", "--connections", "8", "--constant"]
    options += ["--duration-s", "0.4", "--warmup-s", "0", "--grace-s", "0.2"]
    done = bench(folder, "--url", server.url, "--json", *options)
    document = json.loads(done.stdout)
    assert 130 <= document["highest_rate"] <= 190
    assert document["p99_limit_ms"] == 110


# The output


def test_json_keys_are_stable(server: Obedient, tmp_path: Path) -> None:
    """Programs read the keys: first the facts, then an object for each load."""
    done = bench(files(tmp_path, "good"), "--url", server.url, "--json", "--rate", "50,100", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    about = ["url", "images", "images_found", "image_bytes", "loop", "duration_s", "warmup_s"]
    about += ["deadline_ms", "connections_limit", "p99_limit_ms", "highest_rate", "results"]
    assert list(document) == about
    assert [one["rate"] for one in document["results"]] == [50, 100]
    one = document["results"][0]
    counts = ["rate", "clients", "seconds", "interrupted", "requests", "per_second", "statuses"]
    counts += ["refused_without_retry_after", "broken", "unanswered", "unsent", "latency_ms"]
    assert list(one) == [*counts, "send_lag_ms", "connections", "generator_cpu"]
    assert list(one["per_second"]) == ["sent", "good", "refused", "other"]
    assert list(one["latency_ms"]) == ["good", "refused", "other"]
    assert list(one["latency_ms"]["good"]) == ["p50", "p90", "p99", "max"]
    assert list(one["connections"]) == ["opened", "most", "limit_reached"]
    assert list(one["generator_cpu"]) == ["seconds", "us_per_request"]


def test_tables(server: Obedient, tmp_path: Path) -> None:
    """They have rates, latencies by kind and a line of text, and none is wider than a terminal."""
    folder = files(tmp_path, "good", "busy", "bare", "reset")
    done = bench(folder, "--url", server.url, "--clients", "1,2", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    rates, latencies = re.split(r"\n *load ", done.stdout)[1:]
    assert "refused/s" in rates and "p99" in latencies
    assert len(re.findall(r"^ +2 clients ", done.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"refusals WITHOUT Retry-After; \d+ reset; ", latencies)) == 2
    assert "CPU time of this command" in latencies
    tables = [line for line in done.stdout.splitlines() if not line.startswith(("http", "1", "2"))]
    assert max(map(len, tables)) <= 80


def test_a_picture(server: Obedient, tmp_path: Path) -> None:
    """The plot is a PNG that Pillow reads, with more than one colour."""
    picture = tmp_path / "latency.png"
    folder = files(tmp_path, "good", "busy")
    done = bench(folder, "--url", server.url, "--rate", "50,100", "--plot", picture, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width >= 800
        assert len(set(image.convert("L").resize((100, 100)).get_flattened_data())) > 20


def test_a_picture_without_matplotlib(tmp_path: Path) -> None:
    """The error has a remedy, and comes before the first request."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    place = str(tmp_path / "latency.png")
    done = bench(files(tmp_path, "good"), "--plot", place, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{sys.executable} -m pip install matplotlib" in done.stderr


@pytest.mark.parametrize("rates", ["100", "100,200"])
def test_ctrl_c(server: Obedient, tmp_path: Path, rates: str) -> None:
    """The results so far are printed, and the exit code is 130; a terminal shows the progress."""
    command = [*COMMAND, "bench", "load", str(files(tmp_path, "good")), "--url", server.url]
    command += ["--json", "--rate", rates, "--duration-s", "600", "--warmup-s", "0.1"]
    terminal, stderr = pty.openpty()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=stderr, env=plain_environment()) as process:
        assert process.stdout
        assert b"100/s  0/600 s  " in os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        document = json.loads(process.stdout.read())
    assert process.returncode == 130
    assert os.read(terminal, 1000).endswith(b"\r" + b" " * 78 + b"\r")
    os.close(terminal)
    os.close(stderr)
    [one] = document["results"]
    assert one["interrupted"] and 0.2 < one["seconds"] < 10
    assert one["statuses"] == {"200": one["requests"]}


# Errors at the start


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "10,x"), "--rate: '10,x' is not a list of numbers like 1,8,32"),
        (("--clients", "0"), "--clients: 0 is not from 1 to 60000"),
        (("--clients", "1", "--rate", "2"), "--clients: cannot be used together with --rate"),
        (("--rate", "1,2", "--p99-ms", "9"), "--rate: a search begins with exactly one rate"),
        (("--url", "ftp://x"), "--url: 'ftp://x' is not a URL like http://127.0.0.1:8080"),
        (("--plot", "/none/x.png"), "--plot: the folder /none does not exist"),
        (("/none.jpg",), "IMAGE...: /none.jpg cannot be read: No such file or directory\n"),
    ],
)
def test_wrong_options(
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are a usage error that names the option."""
    monkeypatch.setattr(
        "sys.argv", ["topfive", "bench", "load", str(files(tmp_path, "good")), *options]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"Invalid value for {said}" in capsys.readouterr().err


def test_images_that_are_none(tmp_path: Path) -> None:
    """The error names a folder without images, with the known suffixes, and an empty file."""
    (tmp_path / "labels.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"^{tmp_path} contains no image \(.bmp, .gif, "):
        bodies.read([tmp_path])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/0.jpg is empty$"):
        bodies.read([files(tmp_path, "")])


def test_nobody_listens(tmp_path: Path) -> None:
    """The exit code is 4, with the address that TOPFIVE_URL names."""
    done = bench(files(tmp_path, "good"), TOPFIVE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (4, "")
    assert "error: http://127.0.0.1:9/classify does not answer: Connection refused" in done.stderr


# Against topfive


def test_topfive_counts_the_same(tmp_path: Path) -> None:
    """The good answers are the images that topfive counts."""
    artifact = write_tiny_artifact(tmp_path / "tiny")
    (tmp_path / "one.png").write_bytes(pictures.encoded())
    with serving(artifact) as service:
        done = bench(tmp_path / "one.png", "--url", service.url, "--json", "--clients", "8", *SHORT)
        [one] = json.loads(done.stdout)["results"]
        assert one["statuses"] == {"200": one["requests"]}
        assert service.metric("topfive_images_total", outcome="ok") == one["requests"]
