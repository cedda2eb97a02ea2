"""A closed-loop load: clients that post one image after another over connections that stay open.

It is small, because it shares the cores with the service under load.
"""

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Outcome:
    """The result of the clients: answers by status, the seconds of each, broken connections."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    finished_at: list[float] = field(default_factory=list)
    predictions: dict[int, set[str]] = field(default_factory=dict)
    """The predictions of good answers, as JSON, by the place of the body."""
    versions: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    """The classes of good answers, as JSON, by the version that has answered and the place."""
    broken: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """What they broke by."""

    def note(self, place: int, answer: dict[str, Any]) -> None:
        """Keep what a good answer to the body at `place` says."""
        results = answer["results"]
        self.predictions.setdefault(place, set()).add(json.dumps(results))
        classes = [[each["class_id"] for each in result["predictions"]] for result in results]
        version = self.versions.setdefault(answer["model"]["version"], {})
        version.setdefault(place, set()).add(json.dumps(classes))

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    def percentile(self, share: float) -> float:
        """Return the seconds within which `share` of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def load(
    url: str,
    bodies: list[bytes],
    clients: int,
    seconds: float,
    path: str = "/classify",
    content_type: str = "application/octet-stream",
    stop: asyncio.Event | None = None,
) -> Outcome:
    """Post `bodies` in turn from `clients` clients for `seconds`, or until `stop` is set."""
    outcome = Outcome()
    until = time.monotonic() + seconds
    requests = _requests(url, path, bodies, content_type)

    def goes_on() -> bool:
        return time.monotonic() < until and not (stop and stop.is_set())

    await asyncio.gather(
        *(_client(url, requests, number, goes_on, outcome) for number in range(clients))
    )
    return outcome


async def load_until_refused(
    url: str,
    bodies: list[bytes],
    clients: int,
    keep_alive: bool,
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    """Post `bodies` from `clients` clients, each until no server accepts its connection.

    A client connects again when an answer demands it; without `keep_alive` for each request.
    """
    outcome = Outcome()
    await asyncio.gather(
        *(_persistent(url, bodies, number, keep_alive, outcome, tls) for number in range(clients))
    )
    return outcome


async def _persistent(
    url: str,
    bodies: list[bytes],
    number: int,
    keep_alive: bool,
    outcome: Outcome,
    tls: ssl.SSLContext | None,
) -> None:
    where = urlsplit(url)
    requests = _requests(url, "/classify", bodies, "application/octet-stream")
    turn = number
    while True:
        try:
            reader, writer = await asyncio.open_connection(where.hostname, where.port, ssl=tls)
        except ConnectionRefusedError:
            return
        close = False
        while not close:
            turn += 1
            try:
                writer.write(requests[turn % len(requests)])
                status, close, _ = await _answer(reader)
                outcome.statuses[status] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                outcome.broken += 1
                outcome.errors[type(error).__name__] += 1
                close = True
            close = close or not keep_alive
        writer.close()


def _requests(url: str, path: str, bodies: list[bytes], content_type: str) -> list[bytes]:
    return [
        (
            f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
        for body in bodies
    ]


async def _client(
    url: str, requests: list[bytes], number: int, goes_on: Callable[[], bool], outcome: Outcome
) -> None:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    turn = number
    while goes_on():
        turn += 1
        started = time.monotonic()
        try:
            writer.write(requests[turn % len(requests)])
            status, close, answer = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            outcome.broken += 1
            status, close, answer = 0, True, b""
        if status == 200:
            outcome.note(turn % len(requests), json.loads(answer))
        elif status:
            outcome.errors[json.loads(answer)["detail"]] += 1
        if status:
            outcome.statuses[status] += 1
            outcome.seconds.append(time.monotonic() - started)
            outcome.finished_at.append(time.monotonic())
        if close:
            writer.close()
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.close()
    await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    body = await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), b"connection: close" in head, body
