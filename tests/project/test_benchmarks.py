"""`make bench`: how long it takes, how it continues, what is divided by what, what is pinned."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks import contenders, measurement, photos, precisions, report, suites, wrk
from benchmarks.__main__ import ROUNDS, expected_minutes, run
from benchmarks.bare import BareDecode
from benchmarks.figures import Figures, figure
from benchmarks.measurement import Ceiling, Measurement
from benchmarks.peers.documented import DECODES, PAGES
from benchmarks.record import Record
from benchmarks.server import BenchServer, ServerRecipe
from benchmarks.suites import Case
from benchmarks.wrk import WrkLoad
from model_build.top1_loss import Top1Loss
from tests.support.paths import ROOT

# Answers every post; each is worth a process that burns CPU in a session of its own, and ends.
BURNING = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Burning(BaseHTTPRequestHandler):
    def do_POST(self):
        code = "import time\\nwhile time.process_time() < 0.5: pass"
        subprocess.run([sys.executable, "-c", code], start_new_session=True)
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Burning).serve_forever()
"""


Turns = list[tuple[int, Case]]


def plan() -> list[Case]:
    """The cases of one round of `make bench`."""
    return list(suites.cases(suites.SUITES, contenders.PEERS, suites.CLIENTS))


def ceiling(per_second: float) -> Ceiling:
    return Ceiling(BareDecode(per_second, 1 / per_second, 1.0))


def load(clients: int, per_second: float) -> WrkLoad:
    return WrkLoad(clients, int(per_second), 0, 0, 1.0, 2.0, 3.0, 0.0)


def measured(case: Case) -> list[Measurement]:
    """What a server gives that reaches half of its ceiling."""
    return [Measurement(load(one, 500), 1.0, 1 << 20, ceiling(1000)) for one in case.clients]


def row(number: int, server: str, share: float, **others: object) -> dict[str, object]:
    return {
        **{"round": number, "suite": "no-time", "server": server, "variant": "", "clients": 32},
        **{"share": share, **others},
    }


# How long it takes


def test_a_run_takes_at_most_25_minutes() -> None:
    """The whole of it: five rounds of all servers, at 1, 8 and 32 clients, with both engines."""
    cases = plan()
    assert expected_minutes([(number, case) for number in range(ROUNDS) for case in cases]) <= 25
    servers = ("topfive", *contenders.PEERS)
    plain = [(case.suite, case.server, *case.clients) for case in cases if not case.variant]
    assert plain == [(suite, one, 1, 8, 32) for suite in suites.SUITES for one in servers]
    documented = [(case.suite, case.server, *case.clients) for case in cases if case.variant]
    assert documented == [(suite, one, 32) for suite in suites.SUITES for one in PAGES]


def test_the_time_of_a_case_has_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and end, and of each number of clients a warm-up, the load, two waits, a ceiling."""
    for name, value in {"START_S": 100, "WARMUP_S": 1, "SETTLED_S": 0.5}.items():
        monkeypatch.setattr(suites, name, value)
    case = plan()[0]
    case = Case(**{**vars(case), "clients": (1, 8), "seconds": 10, "ceiling_s": 1000})
    assert case.expected_seconds == 100 + 3 * 1000 + 2 * (1 + 10 + 2 * 0.5)
    assert expected_minutes([(0, case), (1, case)]) == 2 * case.expected_seconds / 60


# How it continues


def cut_off(after: int, seen: list[str]) -> Callable[[Case], list[Measurement]]:
    """A measurement that notes the case, and after some cases ends as Ctrl-C does."""

    def measure(case: Case) -> list[Measurement]:
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(case.name)
        return measured(case)

    return measure


def lacking(record: Record, cases: list[Case]) -> Turns:
    turns = [(number, case) for number in range(2) for case in cases]
    return [(number, case) for number, case in turns if not record.has(number, case)]


def test_a_run_that_was_cut_off_continues(tmp_path: Path) -> None:
    """It measures what it lacks, once, and keeps the date of its first start."""
    about, cases = {"revision": "r"}, plan()[:3]
    first = Record(about, tmp_path)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(lacking(first, cases), first, cut_off(4, seen))
    again = Record(about, tmp_path)
    assert again.content["date"] == first.content["date"]
    left = lacking(again, cases)
    assert [(number, case.name) for number, case in left] == [(1, one.name) for one in cases[1:]]
    run(left, again, cut_off(6, seen))
    assert seen == [case.name for case in cases] * 2
    assert lacking(Record(about, tmp_path), cases) == []
    assert len(Record(about, tmp_path).content["measured"]) == 2 * 3 * 3


@pytest.mark.parametrize("name", ["revision", "machine", "plan"])
def test_another_run_starts_with_nothing(name: str, tmp_path: Path) -> None:
    """Another revision, machine or plan has no measurement yet, and leaves those of the first."""
    about, cases = {"revision": "r", "machine": "m", "plan": ["p"]}, plan()[:1]
    first = Record(about, tmp_path)
    run(lacking(first, cases), first, measured)
    assert lacking(Record({**about, name: "another"}, tmp_path), cases) != []
    assert lacking(Record(about, tmp_path), cases) == []


def test_a_case_that_failed_is_measured_again(tmp_path: Path) -> None:
    """The others are measured, and its error is in the record until it succeeds."""
    cases = plan()[:2]
    record = Record({}, tmp_path)

    def failing(case: Case) -> list[Measurement]:
        if case is cases[0]:
            raise wrk.BenchError("it ended")
        return measured(case)

    run(lacking(record, cases), record, failing)
    assert record.content["problems"] == ["no-time topfive: it ended"] * 2
    again = Record({}, tmp_path)
    assert lacking(again, cases) == [(0, cases[0]), (1, cases[0])]
    assert again.content["problems"] == []


# What is divided by what


def test_each_load_is_between_two_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share is of the mean of the one before and the one after."""
    events: list[str] = []
    rates = iter([100.0, 300.0, 500.0])

    def loaded(_url: str, _bodies: object, clients: int, seconds: int, _headers: object) -> WrkLoad:
        events.append("warm-up" if seconds == measurement.WARMUP_S else f"load of {clients}")
        return load(clients, 100)

    def ceiling_now() -> Ceiling:
        events.append("ceiling")
        return ceiling(next(rates))

    @contextlib.contextmanager
    def memory_watched() -> Iterator[list[int]]:
        yield [1]

    monkeypatch.setattr(wrk, "load", loaded)
    server = SimpleNamespace(
        recipe=ServerRecipe("idle", []),
        url="",
        cpu_seconds=lambda: 0.0,
        memory_watched=memory_watched,
    )
    seen = measurement.measure(cast(Any, server), [b"photo"], (1, 8), 9, ceiling_now)
    assert events == [
        *("ceiling", "warm-up", "load of 1"),
        *("ceiling", "warm-up", "load of 8", "ceiling"),
    ]
    assert [one.share for one in seen] == [100 / 200, 100 / 400]


def test_the_ceiling_of_decode_and_engine() -> None:
    """Alone, on the same cores, and on a card, which uses none."""
    decode = BareDecode(300, 0.1, 1.0)
    assert Ceiling(decode).per_second == 300
    assert Ceiling(decode, 150).per_second == pytest.approx(100)
    assert Ceiling(decode, 150, apart=True).per_second == 150


def test_servers_are_compared_round_by_round() -> None:
    """A machine that halves its speed between rounds changes no ratio."""
    ours, theirs = [0.8, 0.4, 0.6], [0.5, 0.25, 0.375]
    rows = [row(number, "topfive", share) for number, share in enumerate(ours)]
    rows += [row(number, "triton", share) for number, share in enumerate(theirs)]
    rows += [row(3, "triton", 0.1)]  # a round that topfive lacks
    figures = Figures(rows)
    ratio = figures.ours_by_theirs(("no-time", "triton", "", 32))
    assert ratio
    assert (ratio.least, ratio.most) == pytest.approx((1.6, 1.6))
    assert figures.ours_by_theirs(("no-time", "topfive", "", 32)) is None


@pytest.mark.parametrize(
    "ratios, standing",
    [((0.9, 1.2, 1.1), "level"), ((1.01, 1.2, 1.1), "ahead"), ((0.9, 0.8, 0.99), "behind")],
)
def test_level_means_that_the_range_contains_1(
    ratios: tuple[float, ...], standing: str, results: Callable[..., tuple[str, str]]
) -> None:
    """And nothing else: a median of 1.1 is level if one round was below 1."""
    rows = [full_row(row(number, "mosec", 0.5)) for number in range(3)]
    rows += [full_row(row(number, "topfive", 0.5 * ratio)) for number, ratio in enumerate(ratios)]
    [line] = [line for line in results(rows)[0].splitlines() if "mosec |" in line]
    assert line.endswith(f"| {standing} |")


# The report


def full_row(some: dict[str, object]) -> dict[str, object]:
    return {
        **{"per_second": 1.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 3.0, "cpu_over_decode": 1.0},
        **{"ceiling_per_second": 2.0, "memory_mib": 1.0, "refused": 0, "broken": 0},
        **some,
    }


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """A function that writes the report of rows, and returns both of its files."""
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "FULL", tmp_path / "RESULTS-full.md")
    monkeypatch.setattr(report, "PLOTTED", ())

    def written(rows: list[dict[str, object]], date: str = "Monday") -> tuple[str, str]:
        about = {"date": date, "revision": "r", "machine": "m", "versions": ["v"], "photos": "p"}
        problems = ["lite0 mosec: ended", "no-time mosec: ended"]
        report.write({**about, "measured": rows, "problems": problems})
        return report.RESULTS.read_text(), report.FULL.read_text()

    return written


def test_the_results_are_one_screen(
    results: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """At most 60 lines, with every server, whatever else was measured; the rest is beside it."""
    cases = list(
        suites.cases(
            (*suites.SUITES, "cards"),
            contenders.PEERS + contenders.MORE_PEERS,
            suites.CLIENTS + suites.MORE_CLIENTS,
        )
    )
    record = Record({}, tmp_path)
    run([(0, case) for case in cases], record, measured)
    screen, full = results(record.content["measured"])
    assert len(screen.splitlines()) <= 60
    table = [line.split(" | ")[:3] for line in screen.splitlines() if line.startswith("| no-")]
    assert table[:2] == [["| no-time", "1", "topfive"], ["| no-time", "1", "triton"]]
    assert len(table) == 5 * 3 + 3
    assert all(page in screen for page in PAGES.values())
    assert full.count("| ray_serve | 128 |") == 2
    assert "| topfive, S4 float32 | 128 |" in full


def test_a_run_replaces_the_sections_that_it_measured(
    results: Callable[..., tuple[str, str]],
) -> None:
    """Those of other suites stay as another run, of another day, wrote them."""
    results([full_row(row(0, "topfive", 0.5, suite="lite0"))], "Monday")
    _, both = results([full_row(row(0, "topfive", 0.7))], "Tuesday")
    assert both.index("## An engine that takes no time") < both.index("## EfficientNet-Lite0")
    assert both.count("Monday") == both.count("Tuesday") == 1
    assert both.count("- lite0 mosec: ended") == both.count("- no-time mosec: ended") == 1
    again = results([full_row(row(0, "topfive", 0.2, suite="lite0"))], "Wednesday")
    assert "Monday" not in again[1]
    assert results([full_row(row(0, "topfive", 0.2, suite="lite0"))], "Wednesday") == again


# The servers


@pytest.mark.parametrize("name", PAGES)
def test_the_decode_of_a_peers_documentation(name: str) -> None:
    """Makes a row that has the middle of the photo in its middle."""
    pixels = np.zeros((375, 500, 3), np.uint8)
    pixels[:, 150:350] = (200, 100, 50)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    made = DECODES[name](buffer.getvalue())
    assert (made.shape, made.dtype) == ((224, 224, 3), np.uint8)
    assert tuple(made[112, 112]) == (200, 100, 50)
    assert not made[:, [0, -1]].any()
    assert PAGES[name].startswith("https://")


def test_only_a_documented_peer_decodes_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its environment names the decode; without it, all peers decode as the service does."""
    monkeypatch.setattr(contenders, "ENVIRONMENTS", tmp_path)
    (tmp_path / "mosec/bin").mkdir(parents=True)
    (tmp_path / "mosec/bin/python").touch()
    assert contenders.peer("mosec", None, documented=True).environment["BENCH_DECODE"] == "mosec"
    assert "BENCH_DECODE" not in contenders.peer("mosec", None).environment


def test_a_precision_that_loses_is_not_the_best(tmp_path: Path) -> None:
    """The fastest of those whose interval includes 0 is served over HTTP."""
    losses = {"float32": (0, 0), "bfloat16": (3, 1), "int8": (40, 2)}
    rates = {"float32": 1.0, "bfloat16": 2.2, "int8": 3.5}
    found = [
        precisions.Precision(
            name, tmp_path, Top1Loss(363, 300, *losses[name]), figure([rates[name]])
        )
        for name in rates
    ]
    assert [one.name for one in found if one.loses] == ["int8"]
    assert precisions.fastest(found).name == "bfloat16"
    assert "rate 3.50" in str(found[2]) and str(found[2]).endswith("LOSES")


def test_all_processes_of_a_server_are_counted() -> None:
    """CPU of children that detached themselves and have ended is the server's."""
    recipe = ServerRecipe("burning", [sys.executable, "-c", BURNING, "{port}"])
    server = BenchServer(recipe, b"first")
    try:
        assert server.cpu_seconds() >= 0.5
    finally:
        server.end()
    assert server.processes() == []


def test_without_wrk_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command that installs it is in the error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(wrk.BenchError, match="apt-get install wrk"):
        wrk.program()


@pytest.mark.parametrize("name", contenders.PEERS + contenders.MORE_PEERS)
def test_every_peer_is_pinned_with_our_decode_and_engine(name: str) -> None:
    """The lock has hashes, and the very Pillow and OpenVINO that we serve with."""
    lock = (ROOT / "benchmarks/peers" / f"{contenders.environment(name)}.lock").read_text()
    ours = (ROOT / "requirements/cpu.lock").read_text().splitlines()
    same = [line.split()[0] for line in ours if line.startswith(("pillow==", "openvino=="))]
    assert len(same) == 2
    assert all(f"\n{pin} " in f"\n{lock}" for pin in same)
    assert "--hash=sha256:" in lock
    assert contenders.version(name)


def test_the_shipped_photos_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without TOPFIVE_DATA's photos, ours are JPEGs of the same size."""
    monkeypatch.setenv("TOPFIVE_DATA", str(tmp_path))
    bodies = photos.photos()
    assert len(bodies) == 3
    assert {Image.open(io.BytesIO(body)).size for body in bodies} == {(500, 375)}


@pytest.mark.parametrize(
    "command",
    [
        "benchmarks",
        "benchmarks.pairs",
        "benchmarks.hot_path",
        "benchmarks.hand_overs",
        "benchmarks.protocols",
        "benchmarks.offline",
    ],
)
def test_the_command_is_there(command: str) -> None:
    """`python -m benchmarks --help` and its relatives answer."""
    help = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(help, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("--pairs" if command == "benchmarks.offline" else "--seconds") in done.stdout
