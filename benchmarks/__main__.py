"""`make bench`: measure topfive, the other servers and the ceilings, and write RESULTS.md.

    python -m benchmarks [--all] [--rounds 5] [--suites no-time,lite0] [--clients 32]

Each round measures all cases once, so that the rounds of a figure are far apart in time. A run that
was cut off continues with the measurements that it lacks (record.py).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks import contenders, machine, report, suites
from benchmarks.measurement import Measurement, measure
from benchmarks.record import Record
from benchmarks.server import running
from benchmarks.suites import Case
from benchmarks.wrk import BenchError, program

ROUNDS = 5


def main() -> None:
    arguments = _arguments()
    program()
    peers = contenders.PEERS + (contenders.MORE_PEERS if arguments.all else ())
    if arguments.peers is not None:
        peers = tuple(name for name in arguments.peers.split(",") if name)
    clients = arguments.clients or suites.CLIENTS + (suites.MORE_CLIENTS if arguments.all else ())
    names = arguments.suites or suites.SUITES + (suites.MORE_SUITES if arguments.all else ())
    plan = list(suites.cases(names, peers, clients))
    if arguments.seconds:
        plan = [replace(case, seconds=arguments.seconds) for case in plan]
    record = Record({**machine.facts(peers), "plan": [case.description for case in plan]})
    turns = [(number, case) for number in range(arguments.rounds) for case in plan]
    lacking = [(number, case) for number, case in turns if not record.has(number, case)]
    print(
        f"{len(turns) - len(lacking)} of {len(turns)} cases are in {record.path}; "
        f"the others take about {expected_minutes(lacking):.0f} minutes."
    )
    print(
        "Ctrl-C stops the run, and the same command continues it. Without the file it starts again."
    )
    run(lacking, record, measured)
    report.write(record.content)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--all", action="store_true", help="all suites, all peers, and 128 clients, too: 2.5 hours"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, help="of each measurement, instead of the suite's")
    parser.add_argument("--suites", type=_names, help="these alone: no-time,cards")
    parser.add_argument("--peers", help="these alone; may be empty")
    parser.add_argument("--clients", type=_numbers, help="these numbers of them alone: 32,128")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def expected_minutes(turns: Sequence[tuple[int, Case]]) -> float:
    return sum(case.expected_seconds for _, case in turns) / 60


def run(
    turns: Sequence[tuple[int, Case]],
    record: Record,
    measured: Callable[[Case], Sequence[Measurement]],
) -> None:
    """Measure the turns, and add the results or the error of each to the record at once."""
    for place, (number, case) in enumerate(turns):
        started = time.monotonic()
        try:
            seen = measured(case)
        except BenchError as error:
            record.add_problem(case, error)
            result = str(error)
        else:
            record.add(number, case, seen)
            result = ", ".join(f"{one.load.clients}: {one.load.per_second:.0f}/s" for one in seen)
        took, left = time.monotonic() - started, expected_minutes(turns[place + 1 :])
        print(
            f"round {number + 1} {case.name}: {result} ({took:.0f} s; {left:.0f} minutes left)",
            file=sys.stderr,
            flush=True,
        )


def measured(case: Case) -> list[Measurement]:
    """Start the server of the case, and measure it with each number of clients."""
    with running(case.recipe(), case.bodies[0]) as server:
        return measure(server, case.bodies, case.clients, case.seconds, case.ceiling)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
