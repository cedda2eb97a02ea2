"""The recipes of topfive itself: on the CPU, and on simulated cards."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.artifacts import SDK_PYTHON, built
from benchmarks.server import ServerRecipe, plain_environment
from benchmarks.wrk import BenchError

TOPFIVE = str(Path(sys.executable).with_name("topfive"))
RESIZE = 256
DEADLINE_MS = "60000"
"""Deadline of a request; wrk waits for the same time."""


@dataclass(frozen=True)
class Cards:
    """Simulated cards: milliseconds by batch size, and copy times; see the simulator's README."""

    latency: str
    copies: tuple[str, str] | None = None
    artifact: str = "card"
    count: int = 1
    largest: int = 8
    jumps: str = ""
    """Factor and share of the batches that take longer, as 3@0.2."""

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that configure the simulator for these cards."""
        switches = {
            "MAGICMIND_SIM_COMPUTE": "0",
            "MAGICMIND_SIM_CARDS": str(self.count),
            "MAGICMIND_SIM_LATENCY": self.latency,
            "MAGICMIND_SIM_JUMPS": self.jumps,
        }
        if self.copies:
            names = "MAGICMIND_SIM_COPY_IN", "MAGICMIND_SIM_COPY_OUT"
            switches |= dict(zip(names, self.copies, strict=True))
        return switches


NO_TIME = Cards("1:0")
# ResNeXt-50 on an MLU370-S4, as published in Cambricon's magicmind_cloud v1.2.
S4_FLOAT32 = Cards("1:9.1,4:10.1,8:16.4")
S4_SLOWER = Cards("1:36.4,4:40.4,8:65.6")
S4_HALF = Cards("1:18.2,4:20.2,8:32.8")
S4_INT8 = Cards("1:1.95,4:2.08,8:3.14", ("0.19@8", "0.02@8"), "card_int8")


def on_cpu(artifact: str, *flags: str) -> ServerRecipe:
    """Return the recipe of `topfive serve` on the CPU with its defaults, except the deadline.

    The other servers have no deadline, and 128 clients of ResNeXt-50 wait 9 of the default's 10 s.
    The CPU engine's default batch size is already 8.
    """
    return ServerRecipe("topfive", _command(artifact, "--default-deadline-ms", DEADLINE_MS, *flags))


def on_cards(cards: Cards, *flags: str) -> ServerRecipe:
    """Return the recipe of `topfive serve` on simulated cards."""
    own = ("--device-python", str(SDK_PYTHON), "--max-batch", str(cards.largest))
    return ServerRecipe(
        "topfive", _command(cards.artifact, *own, *flags), environment=cards.environment
    )


def _command(artifact: str, *flags: str) -> list[str]:
    return [TOPFIVE, "serve", "--artifact", str(built(artifact)), "--port", "{port}", *flags]


def device_per_second(cards: Cards, seconds: float) -> float:
    """Return the throughput of all cards: that of `topfive bench device` times their number."""
    command = [TOPFIVE, "bench", "device", "--artifact", str(built(cards.artifact)), "--json"]
    command += ["--duration-s", str(seconds), "--device-python", str(SDK_PYTHON)]
    command += ["--batch-sizes", str(cards.largest)]
    environment = plain_environment() | cards.environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise BenchError(f"topfive bench device: {done.stderr.strip()}")
    [result] = json.loads(done.stdout)["results"]
    return float(result["images_per_second"]) * cards.count
