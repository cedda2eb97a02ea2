"""`make bench`: what is divided by what, whose CPU is counted, and what is pinned."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import contenders, photos, precisions, report, wrk
from benchmarks.figures import Figures, figure
from benchmarks.server import BenchServer, ServerRecipe
from benchmarks.verdicts import verdicts
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


def row(number: int, server: str, rate: float, bare: float, **others: float) -> dict[str, object]:
    return {
        **{"round": number, "suite": "no-time", "server": server, "variant": "", "clients": 32},
        **{"decode_ratio": rate / bare, "decode_share": 0.9, "cpu_over_decode": 1.1, **others},
    }


def test_servers_are_compared_round_by_round() -> None:
    """A machine that halves its speed between rounds and servers changes no verdict."""
    rounds = [(1000, 500), (400, 900), (700, 700)]
    rows = [row(number, "topfive", ours * 0.8, ours) for number, (ours, _) in enumerate(rounds)]
    rows += [
        row(number, "triton", theirs * 0.5, theirs) for number, (_, theirs) in enumerate(rounds)
    ]
    found = {one.what: one for one in verdicts(Figures(rows))}
    against = found["no-time, 32 clients: by triton's rate"]
    assert (against.figure.least, against.figure.most) == pytest.approx((1.6, 1.6))
    assert against.holds


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


def test_what_falls_short_is_said() -> None:
    """Too low a share and too high a cost, each against its bar."""
    rows = [row(0, "topfive", 80, 100, decode_share=0.84, cpu_over_decode=1.16)]
    assert [one.holds for one in verdicts(Figures(rows))] == [False, False]


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


@pytest.mark.parametrize("command", ["benchmarks", "benchmarks.pairs", "benchmarks.hot_path"])
def test_the_command_is_there(command: str) -> None:
    """`python -m benchmarks --help` and its relatives answer."""
    help = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(help, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--seconds" in done.stdout


def test_a_run_replaces_the_sections_that_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of other suites stay as another run, of another day, wrote them."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PLOTTED", ())

    def measured(date: str, suite: str, rate: float) -> str:
        one = {
            **{"round": 0, "suite": suite, "server": "topfive", "variant": "", "clients": 32},
            **{"per_second": rate, "decode_per_second": 100.0, "engine_per_second": 50.0},
            **{"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 3.0, "cpu_over_decode": 1.0},
            **{"memory_mib": 1.0, "refused": 0, "broken": 0, "decode_share": 0.9},
            **{"cores_share": rate / 33, "device_share": 0.9},
        }
        report.write(
            {
                **{"date": date, "revision": "r", "machine": "m", "versions": ["v"]},
                **{"photos": "p", "rounds": 1, "seconds": 3, "measured": [one]},
                **{"problems": [f"{suite} mosec: ended", "other mosec: ended"]},
            }
        )
        return report.RESULTS.read_text()

    measured("Monday", "lite0", 31)
    both = measured("Tuesday", "no-time", 70)
    assert both.index("## An engine that takes no time") < both.index("## EfficientNet-Lite0")
    assert both.count("Monday") == both.count("Tuesday") == 1
    assert both.count("- lite0 mosec: ended") == both.count("- no-time mosec: ended") == 1
    again = measured("Wednesday", "lite0", 20)
    assert "Monday" not in again
    assert "| lite0, 32 clients: share of the cores | ≥ 0.95 | 0.61 (0.61–0.61) | **falls" in again
    assert measured("Wednesday", "lite0", 20) == again
