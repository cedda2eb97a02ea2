"""Measures topfive with a card that takes no time, and the bare decode directly before and after.

    python -m benchmarks.hot_path [--clients 32] [--seconds 5] [--rounds 3] [-- FLAGS]

This is a quick measurement for work on the hot path. `make bench` measures the same, and the other
servers.
"""

import argparse
import statistics

from benchmarks import ours
from benchmarks.bare import decode
from benchmarks.measurement import CEILING_S, Ceiling, Measurement, measure
from benchmarks.photos import described, photos
from benchmarks.server import running
from service.system.cgroup import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="flags of topfive serve, behind --")
    arguments = parser.parse_args()
    bodies, seconds = photos(), arguments.seconds
    print(described(bodies))
    print("clients  req/s   bare/s  share*  p50 ms  p99 ms  ms over  CPU/bare  MiB  failed")
    seen = []
    with running(ours.on_cards(ours.NO_TIME, *arguments.flags), bodies[0]) as server:
        for _ in range(arguments.rounds):
            [one] = measure(
                server,
                bodies,
                [arguments.clients],
                seconds,
                lambda: Ceiling(decode(bodies, CEILING_S, ours.RESIZE)),
            )
            seen.append(one)
            print(line(one), flush=True)
    shares = statistics.median(decode_share(one) for one in seen)
    costs = statistics.median(one.cpu_over_decode for one in seen)
    print(f"median share {shares:.3f}, CPU {costs:.3f} times the bare decode's")
    print("* of the bare decode, after taking off the load generator's CPU")


def decode_share(one: Measurement) -> float:
    """Return the share of the bare decode's throughput on the cores without the generator."""
    load = one.load
    left = 1 - load.generator_cpu_seconds / (available_cores() * load.seconds)
    return one.share / left


def line(one: Measurement) -> str:
    """Return the figures of one measurement as a line under the heading."""
    load, bare = one.load, one.ceiling.decode
    return (
        f"{load.clients:7} {load.per_second:6.0f} {bare.per_second:8.0f} "
        f"{decode_share(one):7.3f} {load.p50_ms:7.2f} {load.p99_ms:7.2f} "
        f"{load.p50_ms - bare.milliseconds:8.2f} "
        f"{one.cpu_over_decode:9.3f} {one.memory_bytes >> 20:4} {load.refused + load.broken:7}"
    )


if __name__ == "__main__":
    main()
