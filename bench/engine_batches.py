"""Images a second of the bare CPU engine by batch size: what its largest batch should be.

    python -m bench.engine_batches ARTIFACT [ROUNDS]

The engine is the device host's own, with rows in ordinary memory; sizes are measured in turn, round
after round, and the medians printed: the machine's speed drifts.
"""

import statistics
import sys
from pathlib import Path

from bench.bare_engine import BareEngine

SIZES = (1, 2, 4, 8, 16, 32, 64)


def main(artifact: str, rounds: str = "5") -> None:
    engine = BareEngine(Path(artifact), largest=max(SIZES))
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(int(rounds)):
        for size in SIZES:
            rates[size].append(engine.images_per_second(size, seconds=1.5))
    print("batch  images/s (median, least - most)")
    for size, seen in rates.items():
        print(f"{size:5}  {statistics.median(seen):8.1f} ({min(seen):.1f} - {max(seen):.1f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
