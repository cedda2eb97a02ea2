"""A thousand callers leave: nothing of theirs is kept, and no device works for them."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.load import load
from tests.support.magicmind import SimulatedSdk
from tests.support.pictures import encoded
from tests.support.serving import Service, serving
from tests.support.small import write_small_network

CALLERS = 1000
OTHERS = 4
# A card so slow that nearly all are still queued when they leave, which the service notices after a
# second or so: it answers no batch until then.
CARD = {"MAGICMIND_SIM_LATENCY": "1:2000,8:2000"}
PATIENT = ("--rows", "2048", "--default-deadline-ms", "3600000")


@pytest.fixture
def service(magicmind: SimulatedSdk, tmp_path: Path) -> Iterator[Service]:
    """On a slow card, with rows for all who come."""
    folder = tmp_path / "net"
    magicmind.build("caffe", *write_small_network(tmp_path), "--no-shape-mutable",
                    "--batch-size", 8, "--output", folder)  # fmt: skip
    flags = ("--device-python", magicmind.python, *PATIENT)
    with serving(folder, *flags, environment=magicmind.environment(**CARD)) as running:
        yield running


def come(service: Service, part: float) -> list[socket.socket]:
    """CALLERS connections, each of which has sent this part of a request with its body."""
    body = encoded()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sent = head + body[: int(part * len(body))]
    where = urlsplit(service.url)
    callers = []
    for _ in range(CALLERS):
        caller = socket.create_connection((where.hostname, where.port), timeout=30)
        caller.sendall(sent)
        callers.append(caller)
    return callers


@pytest.mark.large
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_thousand_leave(part: float, service: Service, figure: Callable[[str], None]) -> None:
    """With half a body sent, or while queued; others are served all the time."""

    async def serve_others_while_they_leave() -> int:
        others = asyncio.create_task(load(service.url, [encoded()], OTHERS, 5))
        callers = await asyncio.to_thread(come, service, part)
        for caller in callers:
            caller.close()
        outcome = await others
        assert set(outcome.statuses) == {200} and outcome.broken == 0
        return outcome.answered

    answered = asyncio.run(serve_others_while_they_leave())
    service.await_metric(2048, "topfive_rows", state="free")
    bodies = service.http.get("/model").json()["statistics"]["bodies"]
    assert (bodies["receiving"], bodies["reserved_bytes"]) == (0, 0)
    left, served, computed, abandoned = (
        service.metric(f"topfive_{name}", **labels)
        for name, labels in (
            ("http_requests_total", {"route": "classify", "code": "499"}),
            ("http_requests_total", {"route": "classify", "code": "200"}),
            ("batch_images_sum", {}),
            ("images_total", {"outcome": "abandoned"}),
        )
    )
    figure(f"of {CALLERS} {left:.0f} left, {answered} others answered, {computed:.0f} computed")
    assert left + served == CALLERS + answered
    assert left > 0.9 * CALLERS
    assert abandoned == (left if part == 1 else 0)
    # What was on the card when its caller left is computed: at most three batches.
    assert computed <= served + 24
