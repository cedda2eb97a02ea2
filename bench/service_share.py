"""32 clients for a minute, as a share of the bare engine's throughput of the same run.

    python -m bench.service_share [--artifact DIR] [--seconds 60] [--clients 32]

Starts `topfive serve` on a free port of 127.0.0.1, loads it with the shipped photos (JPEGs of about
500x375, as cameras send them), and measures the bare engine before and after. Fails (exit 3) on any
error, or when memory at the end is not within 10 % of that after 10 s.
"""

import argparse
import asyncio
import io
import statistics
import sys
import time
from pathlib import Path

from PIL import Image

from bench.bare_engine import BareEngine
from tests.support.load import Outcome, load
from tests.support.serving import Service, serving

ROOT = Path(__file__).resolve().parent.parent
SETTLED_S = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=ROOT / "artifacts/efficientnet-lite0")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()

    bare = BareEngine(arguments.artifact)
    ceilings = [bare.images_per_second(bare.largest, seconds=3) for _ in range(3)]
    with serving(arguments.artifact) as service:
        bodies = photos()
        outcome, memory = asyncio.run(
            load_and_watch(service, bodies, arguments.clients, arguments.seconds)
        )
    ceilings += [bare.images_per_second(bare.largest, seconds=3) for _ in range(3)]
    return report(outcome, memory, ceilings, arguments.seconds)


def photos() -> list[bytes]:
    """The shipped photos as JPEGs whose longer side is 500."""
    bodies = []
    for path in sorted((ROOT / "model_build/photos").iterdir()):
        image = Image.open(path).convert("RGB")
        image.thumbnail((500, 500))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        bodies.append(buffer.getvalue())
    return bodies


async def load_and_watch(
    service: Service, bodies: list[bytes], clients: int, seconds: float
) -> tuple[Outcome, tuple[int, int]]:
    """The load's outcome, and resident bytes of all processes after SETTLED_S and at the end."""
    loading = asyncio.create_task(load(service.url, bodies, clients, seconds))
    await asyncio.sleep(min(SETTLED_S, seconds / 2))
    settled = resident_bytes(service)
    await asyncio.sleep(max(0.0, seconds - SETTLED_S - 0.5))
    at_end = resident_bytes(service)
    return await loading, (settled, at_end)


def resident_bytes(service: Service) -> int:
    """Of the service and its device hosts."""
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        for pid in [service.process.pid, *service.hosts()]
    )


def report(outcome: Outcome, memory: tuple[int, int], ceilings: list[float], seconds: float) -> int:
    rate, ceiling = outcome.statuses[200] / seconds, statistics.median(ceilings)
    errors = outcome.answered - outcome.statuses[200] + outcome.broken
    growth = memory[1] / memory[0] - 1
    print(f"answers        {dict(outcome.statuses)}, connections broken {outcome.broken}")
    print(f"images/s       {rate:.1f}")
    print(f"bare engine    {ceiling:.1f} ({min(ceilings):.1f} - {max(ceilings):.1f})")
    print(f"share          {rate / ceiling:.2f}")
    print(
        f"latency        p50 {outcome.percentile(0.5) * 1e3:.0f} ms, "
        f"p99 {outcome.percentile(0.99) * 1e3:.0f} ms"
    )
    print(
        f"memory         {memory[0] >> 20} MiB after {SETTLED_S} s, "
        f"{memory[1] >> 20} MiB at the end"
    )
    print(f"               {growth:+.1%}")
    return 3 if errors or abs(growth) > 0.1 else 0


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"took {time.perf_counter() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
