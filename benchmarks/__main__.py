"""`make bench`: measure topfive, the other servers and the ceilings, and write RESULTS.md.

    python -m benchmarks [--rounds 5] [--seconds 3] [--all] [--suites no-time,cards] [--clients 32]

Each round measures all cases once, so that the rounds of a figure are far apart in time. Each
measurement is added to build/bench/measured.json at once. report.py writes the report after each
round, so that an interrupted run leaves a report of its finished rounds.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import contenders, machine, report
from benchmarks.measurement import Measurement, measure
from benchmarks.report import MEASURED
from benchmarks.server import running
from benchmarks.suites import SUITES, Case, cases
from benchmarks.wrk import BenchError, program


def main() -> None:
    arguments = _arguments()
    program()
    peers = contenders.PEERS + (contenders.MORE_PEERS if arguments.all else ())
    if arguments.peers is not None:
        peers = tuple(name for name in arguments.peers.split(",") if name)
    chosen = list(cases(arguments.suites.split(","), peers))
    record: dict[str, Any] = {
        **machine.facts(peers),
        "seconds": arguments.seconds,
        "measured": [],
        "problems": [],
    }
    for number in range(arguments.rounds):
        for case in chosen:
            _measure(case, number, arguments.seconds, arguments.clients, record)
            _keep(record)
        record["rounds"] = number + 1
        _keep(record)
        report.write(record)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement, or more")
    parser.add_argument("--all", action="store_true", help="BentoML and Ray Serve, too")
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--peers", help="these alone; may be empty")
    parser.add_argument(
        "--clients", type=_numbers, default=(), help="these numbers of them alone: 32,128"
    )
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _measure(
    case: Case, number: int, seconds: int, only: Sequence[int], record: dict[str, Any]
) -> None:
    """Measure the case, and add the results or the error to `record`."""
    clients = only or case.clients
    what = f"{case.suite} {case.server} {case.variant}".strip()
    started = time.monotonic()
    try:
        with running(case.recipe(), case.bodies[0]) as server:
            seen = measure(
                server,
                case.bodies,
                clients,
                seconds * case.longer,
                lambda: case.ceiling(seconds),
            )
    except BenchError as error:
        record["problems"].append(f"{what}: {error}")
        print(f"round {number + 1} {what}: {error}", file=sys.stderr, flush=True)
        return
    record["measured"] += [_row(case, number, one) for one in seen]
    rates = ", ".join(f"{one.load.clients}: {one.load.per_second:.0f}/s" for one in seen)
    took = time.monotonic() - started
    print(f"round {number + 1} {what}: {rates} ({took:.0f} s)", file=sys.stderr, flush=True)


def _row(case: Case, number: int, one: Measurement) -> dict[str, Any]:
    """Return a measurement and its derived figures as one flat object for the file."""
    load, ceiling = one.load, one.ceiling
    row: dict[str, Any] = {
        "round": number,
        "suite": case.suite,
        "server": case.server,
        "variant": case.variant,
        **dataclasses.asdict(load),
        "per_second": load.per_second,
        "cpu_ms": one.cpu_seconds_per_image * 1e3,
        "memory_mib": one.memory_bytes / 2**20,
        "added_ms": one.added_ms,
        "added_in_turn_ms": one.added_in_turn_ms,
        "cpu_over_decode": one.cpu_over_decode,
        "decode_share": one.decode_share,
        "decode_per_second": ceiling.decode.per_second,
        "decode_cpu_ms": ceiling.decode.cpu_seconds_per_image * 1e3,
        "decode_ms": ceiling.decode.milliseconds,
        "engine_per_second": ceiling.engine_per_second,
        "engine_ms": ceiling.engine_ms,
        "in_turn_ms": ceiling.in_turn_ms,
    }
    if ceiling.engine_per_second:
        row |= {"cores_share": one.cores_share, "device_share": one.device_share}
    return row


def _keep(record: dict[str, Any]) -> None:
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    aside = MEASURED.with_suffix(".new")
    aside.write_text(json.dumps(record, indent=1))
    aside.replace(MEASURED)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
