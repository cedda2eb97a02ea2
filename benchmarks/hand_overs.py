"""Shows one request's hand-overs: the microseconds from each step to the next, from send to answer.

    python -m benchmarks.hand_overs [--seconds 5] [OTHER]

One client sends one request at a time, and the card takes no time. The steps are stamped in the
service's processes (benchmarks/stamped.py), which costs about a microsecond for each. With OTHER, a
folder with the sources of another revision (benchmarks/pairs.py), its figures stand beside ours.
"""

import argparse
import itertools
import re
import socket
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import ours, stamped
from benchmarks.pairs import of_sources
from benchmarks.photos import described, photos
from benchmarks.server import ServerRecipe, running
from benchmarks.wrk import BenchError

WARMUP = 50
"""Number of requests before the first that counts."""
ROOT = Path(__file__).resolve().parent.parent
STEPS = ("the client sends", *stamped.STEPS, "the client has the answer")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


def main() -> None:
    """Measure, and print the median of each hand-over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, nargs="?", help="folder with the other sources")
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    bodies = photos()
    print(f"{described(bodies)}\nmedian microseconds from the step before", flush=True)
    folders = [ROOT, *([arguments.other.resolve()] if arguments.other else [])]
    columns = [medians(folder, bodies, arguments.seconds) for folder in folders]
    print(f"{'':34}{'this':>8}{'other':>8}" if arguments.other else "")
    for step, *figures in zip((*STEPS[1:], "from send to answer"), *columns, strict=True):
        print(f"{step:34}" + "".join(f"{figure:8.0f}" for figure in figures))


def medians(sources: Path, bodies: list[bytes], seconds: int) -> list[float]:
    """Return the median of each hand-over, and of the whole request."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(stamped.STAMP.size * len(stamped.STEPS))
        recipe = of_sources(_stamped(ours.on_cards(ours.NO_TIME), file.name), sources)
        stamps = stamped.Stamps(file.name)
        with running(recipe, bodies[0]) as server:
            requests = _requests(server.url, bodies, seconds, stamps)
    hand_overs = [
        [end - start for start, end in itertools.pairwise(request)] + [request[-1] - request[0]]
        for request in requests[WARMUP:]
    ]
    return [statistics.median(column) / 1e3 for column in zip(*hand_overs, strict=True)]


def _stamped(recipe: ServerRecipe, file: str) -> ServerRecipe:
    interpreter = Path(recipe.command[0]).with_name("python")
    command = [str(interpreter), "-P", stamped.__file__, *recipe.command[1:]]
    return replace(recipe, command=command, environment={**recipe.environment, stamped.FILE: file})


def _requests(
    url: str, bodies: list[bytes], seconds: int, stamps: stamped.Stamps
) -> list[list[int]]:
    """Return the nanoseconds of all steps of each request."""
    place = urlsplit(url)
    found: list[list[int]] = []
    until = time.monotonic() + seconds
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until:
            body = bodies[len(found) % len(bodies)]
            head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            head += b"Content-Length: %d\r\n\r\n"
            request = head % (place.path.encode(), len(body)) + body
            sent = time.perf_counter_ns()
            connection.sendall(request)
            _read_answer(connection)
            answered = time.perf_counter_ns()
            found.append([sent, *stamps.read(), answered])
    return found


def _read_answer(connection: socket.socket) -> None:
    received = b""
    while True:
        if not (part := connection.recv(1 << 16)):
            raise BenchError(f"the service closed the connection after {received[:200]!r}")
        received += part
        head, end, body = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length and len(body) >= int(length[1]):
            return


if __name__ == "__main__":
    main()
