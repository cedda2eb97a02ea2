"""`--workers 2`: what a worker, card or parent costs when it is gone, and what /metrics adds up."""

import asyncio
import collections
import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.server.connections import IDLE_S
from service.server.supervisor import MAX_PENDING
from service.system.cgroup import available_cores
from tests.support import pictures
from tests.support.load import Outcome, load, load_until_refused
from tests.support.magicmind import SimulatedSdk
from tests.support.serving import (
    COMMAND,
    LIVE,
    Service,
    children,
    one_answer,
    plain_environment,
)
from tests.support.small import write_small_network
from tests.support.tiny import write_tiny_artifact

CLIENTS = 64
BODIES = [pictures.encoded(seed=seed) for seed in range(8)]
TWO_CPUS = ("--workers", "2", "--devices", "0,1", "--restart-delay-s", "0.1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def started(artifact: Path, *flags: str, **environment: str) -> Service:
    """A service of two workers, each with a device that is ready."""
    service = Service(artifact, *flags, environment=environment)
    for _ in range(2):
        service.await_ready()
    return service


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    running = started(artifact, *TWO_CPUS)
    yield running
    running.stop()


def answers(service: Service) -> float:
    """The good answers of /classify, as a scrape over a connection of its own counts them."""
    service.http.close()
    service.http = httpx.Client(base_url=service.url, trust_env=False)
    return service.metric("topfive_http_requests_total", route="classify", code="200")


def test_a_scrape_of_any_worker_has_the_sum(service: Service) -> None:
    """As many as the clients counted, whoever is asked; devices and processes told apart."""
    before = answers(service)
    outcome = asyncio.run(load(service.url, BODIES, clients=16, seconds=0.5))
    assert outcome.statuses[200] > 0
    assert [answers(service) - before for _ in range(8)] == [outcome.statuses[200]] * 8
    for device in ("cpu0", "cpu1"):
        assert service.metric("topfive_batches_total", device=device, outcome="ok") > 0
        assert service.metric("topfive_device_state", device=device) == 1
    for worker in ("0", "1"):
        assert service.metric("process_resident_memory_bytes", worker=worker) > 1e6
    assert service.metric("topfive_build_info") == service.metric("topfive_ready") == 1
    assert service.metric("topfive_workers", state="answering") == 2
    assert service.metric("topfive_rows") == 512


def test_ready_is_logged_once_for_all(service: Service) -> None:
    """By the parent, with the devices of all workers."""
    while not (lines := [line for line in service.log if line["event"] == "ready"]):
        assert service.process.poll() is None
    assert service.metric("topfive_workers", state="answering") == 2
    [line] = lines
    facts = {"url": service.url, "model": "tiny", "devices": 2, "logger": "topfive.listener"}
    assert facts.items() <= line.items()
    assert "worker" not in line


def test_exemplars_come_through(service: Service) -> None:
    """Of every worker, in what OpenMetrics' own parser takes."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    accept = {"accept": "application/openmetrics-text;version=1.0.0"}
    service.http.post("/classify", content=BODIES[0], headers=headers)
    for _ in range(4):
        text = httpx.get(f"{service.url}/metrics", headers=accept, trust_env=False).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = families["topfive_http_request_duration_seconds"].samples
        assert trace in {s.exemplar.labels["trace_id"] for s in samples if s.exemplar}


def test_a_killed_worker_costs_its_own_requests(
    service: Service, figure: Callable[[str], None]
) -> None:
    """kill -9 under load: only what it was answering breaks; it comes back with its counts."""
    before, restarts = answers(service), service.metric("topfive_worker_restarts_total")
    outcome, open_requests = asyncio.run(_kill_under_load(service))
    good = outcome.statuses[200]

    assert set(outcome.statuses) == {200}
    assert 0 < outcome.broken <= open_requests
    counted = answers(service) - before
    figure(
        f"worker killed: {good} answers and {counted:.0f} counted, "
        f"{outcome.broken} broken of {open_requests} open"
    )
    # What it had answered and not yet counted, or counted and not yet handed over.
    assert abs(counted - good) <= outcome.broken
    assert service.metric("topfive_workers", state="answering") == 2
    assert service.metric("topfive_worker_restarts_total") == restarts + 1
    more = asyncio.run(load(service.url, BODIES, clients=16, seconds=0.5))
    assert answers(service) - before == counted + more.statuses[200]


async def _kill_under_load(service: Service) -> tuple[Outcome, int]:
    """What the clients saw, and how many of them the worker had."""
    loading = asyncio.create_task(load(service.url, BODIES, CLIENTS, seconds=2.5))
    await asyncio.sleep(0.5)  # the load's own time, not an event's
    worker = children(service.process.pid)[0]
    port = httpx.URL(service.url).port
    connections = _connections(worker, port)
    os.kill(worker, signal.SIGKILL)
    await asyncio.to_thread(service.await_event, "worker_ended", code=-signal.SIGKILL)
    await asyncio.to_thread(service.await_ready)
    return await loading, connections


def _connections(pid: int, port: int | None) -> int:
    """The established connections to `port` that the process holds, from proc(5)."""
    sockets = {
        str(entry.readlink()).removeprefix("socket:[").removesuffix("]")
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if entry.is_symlink()
    }
    rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return sum(
        row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] in sockets for row in rows
    )


def test_signals_to_all_are_the_parents_business(service: Service) -> None:
    """A terminal or a supervisor sends them to the whole group: workers wait for their parent."""
    workers = children(service.process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    assert httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
    assert children(service.process.pid) == workers


@pytest.mark.large
def test_a_drain_of_all_workers_costs_nothing(
    artifact: Path, figure: Callable[[str], None]
) -> None:
    """SIGTERM under load, ten times: every request is 200, none breaks, and all have ended."""
    for _ in range(10):
        service = started(artifact, *TWO_CPUS)
        ends = [os.pidfd_open(worker) for worker in children(service.process.pid)]
        outcome = asyncio.run(_stop_under_load(service))
        assert service.await_end() == 0
        assert len(select.select(ends, [], [], 0)[0]) == len(ends) == 2
        figure(f"two workers drained: {outcome.statuses[200]} answers")
        assert not outcome.broken, outcome.errors
        assert set(outcome.statuses) == {200}, outcome.statuses


async def _stop_under_load(service: Service) -> Outcome:
    kinds = [load_until_refused(service.url, BODIES, CLIENTS // 2, kept) for kept in (True, False)]
    loading = asyncio.gather(*kinds)
    await asyncio.sleep(0.7)  # the load's own time, not an event's
    service.process.send_signal(signal.SIGTERM)
    kept, new = await loading
    return Outcome(
        kept.statuses + new.statuses,
        broken=kept.broken + new.broken,
        errors=kept.errors + new.errors,
    )


def test_workers_end_with_their_parent(service: Service) -> None:
    """kill -9 of the parent: workers, hosts and decode processes are gone within 2 s."""
    workers = children(service.process.pid)
    below = [child for worker in workers for child in children(worker)]
    decoding = [process for child in below for process in children(child)]
    ends = [os.pidfd_open(pid) for pid in (*workers, *below, *decoding)]
    assert (len(below), len(decoding)) == (4, max(2, available_cores()))
    service.process.kill()
    until = time.monotonic() + 2
    while ends:
        ended, _, _ = select.select(ends, [], [], until - time.monotonic())
        assert ended, "somebody is alive still"
        ends = [end for end in ends if end not in ended]


def test_more_workers_than_devices(artifact: Path) -> None:
    """Ends with 1 before anything starts, and says what to do."""
    command = [*COMMAND, "serve", "--artifact", str(artifact), "--workers", "3", "--devices", "0,1"]
    done = subprocess.run(command, env=plain_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "There are 3 workers and only 2 devices" in done.stderr
    assert "--devices 0,1" in done.stderr


def test_all_workers_give_up(artifact: Path) -> None:
    """No device ever gets ready: each ends when its time is over, and then the parent, with 1."""
    flags = ("--device-python", "/nonexistent", "--start-timeout-s", "0.5")
    flags += ("--restart-delay-s", "30")
    service = Service(artifact, *TWO_CPUS, *flags)
    assert service.await_event("fatal", worker=0)
    assert service.await_end() == 1


@pytest.fixture(scope="module")
def card_artifact(magicmind_module: SimulatedSdk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    options = write_small_network(folder)
    magicmind_module.build("caffe", *options, "--output", folder / "artifact")
    return folder / "artifact"


def test_a_card_dies_and_its_connections_move(
    card_artifact: Path, magicmind: SimulatedSdk, figure: Callable[[str], None]
) -> None:
    """What waits for it is tried again; an open connection is refused once and goes elsewhere."""
    flags = ("--workers", "2", "--device-python", magicmind.python, "--start-timeout-s", "8")
    flags += ("--restart-delay-s", "0.2")
    cards = {"MAGICMIND_SIM_CARDS": "2", "MAGICMIND_SIM_LATENCY": "1:2,8:4,16:6"}
    service = started(card_artifact, *flags, **magicmind.environment(**cards))
    idle = connection_to(service, "0")
    try:
        before = answers(service)
        outcome, refusal = asyncio.run(_pull_a_card(service, magicmind, idle))
        figure(f"card died: {dict(outcome.statuses)}, {outcome.broken} broken")
        assert (refusal.status_code, refusal.headers["connection"]) == (503, "close")
        assert refusal.json()["code"] == "not_ready"
        moved = idle.post("/classify", content=BODIES[0])
        assert moved.status_code == 200
        assert outcome.broken == 0
        assert set(outcome.statuses) <= {200, 503}
        assert outcome.statuses[503] <= CLIENTS
        assert service.metric("topfive_images_total", outcome="failed") == 0
        assert answers(service) - before == outcome.statuses[200] + 1
    finally:
        idle.close()
        service.stop()


async def _pull_a_card(
    service: Service, sdk: SimulatedSdk, idle: httpx.Client
) -> tuple[Outcome, httpx.Response]:
    """What the clients saw, and what is answered meanwhile on a connection to its worker."""
    loading = asyncio.create_task(load(service.url, BODIES, CLIENTS, seconds=2))
    await asyncio.sleep(0.5)  # the load's own time, not an event's
    sdk.faults({0: {"sync": "bad_status"}})
    await asyncio.to_thread(service.await_event, "device_state", device="0", to="failed")
    await asyncio.to_thread(service.await_event, "accept_paused", worker=0)
    refusal = await asyncio.to_thread(idle.post, "/classify", content=BODIES[0])
    assert await asyncio.to_thread(_devices_asked, service) == {"1"}
    sdk.faults({})
    await asyncio.to_thread(service.await_event, "accepts", worker=0)
    return await loading, refusal


def _devices_asked(service: Service) -> set[str]:
    """The devices of those who accept new connections."""
    devices = set()
    for _ in range(8):
        with contextlib.closing(client_of(service)) as client:
            devices.add(device_of(client))
    return devices


def connection_to(service: Service, device: str) -> httpx.Client:
    """A kept connection to the worker that has `device`."""
    others = []
    while True:
        client = client_of(service)
        if device_of(client) == device:
            for other in others:
                other.close()
            return client
        others.append(client)


def test_a_worker_does_not_serve_another_artifact(tmp_path: Path) -> None:
    """The artifact was replaced: a worker that starts again says so, the other one serves on."""
    served = write_tiny_artifact(tmp_path / "served")
    service = started(served, *TWO_CPUS)
    try:
        served.rename(tmp_path / "first")
        write_tiny_artifact(served, seed=1)
        os.kill(children(service.process.pid)[0], signal.SIGKILL)
        line = service.await_event("fatal")
        assert "artifact of tiny now has version " in line["detail"]
        assert "was replaced" in line["detail"]
        assert line["remedy"].startswith("Run topfive reload, or send SIGHUP")
        with httpx.Client(base_url=service.url, trust_env=False) as http:
            assert http.post("/classify", content=BODIES[0]).status_code == 200
    finally:
        assert service.stop() == 0


def test_a_full_worker_ends_none_for_another(artifact: Path) -> None:
    """While the other one has room, which here does not receive, no idle connection is ended.

    When both are full, the oldest idle one is ended for the next.
    """
    room = 2 * MAX_PENDING
    service = started(artifact, *TWO_CPUS, "--max-connections", str(room))
    # Both have gone on since they logged that they are ready, so both accept.
    service.await_metric(2, "topfive_workers", state="answering")
    service.http.close()
    slow = children(service.process.pid)[-1]
    os.kill(slow, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            connections = [
                stack.enter_context(service.connect()) for _ in range(room + MAX_PENDING + 1)
            ]
            ended, _, _ = select.select(connections, [], [], IDLE_S + 0.5)
            last = connections[-1]
            last.sendall(LIVE)
            assert not ended
            assert not select.select([last], [], [], 0.5)[0]
            os.kill(slow, signal.SIGCONT)
            assert one_answer(last).startswith(b"HTTP/1.1 200")
            assert not select.select(connections, [], [], 0)[0]
            assert [line for line in service.log if line["event"] == "connections_full"]
            more = 2 * room - len(connections) + 1
            connections += [stack.enter_context(service.connect()) for _ in range(more)]
            connections[-1].sendall(LIVE)
            assert one_answer(connections[-1]).startswith(b"HTTP/1.1 200")
            assert len(select.select(connections, [], [], 0)[0]) == 1
    finally:
        os.kill(slow, signal.SIGCONT)
        service.stop()


def test_a_new_connection_goes_to_the_worker_with_the_fewest(artifact: Path) -> None:
    """Sixteen are eight for each; eight that come when those of one are closed are that one's."""
    service = started(artifact, *TWO_CPUS)
    try:
        service.await_metric(2, "topfive_workers", state="answering")
        service.http.close()
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(contextlib.closing(client_of(service))) for _ in range(16)
            ]
            assert collections.Counter(map(device_of, clients)) == {"cpu0": 8, "cpu1": 8}
            for client in clients:
                if device_of(client) == "cpu0":
                    client.close()
            port = httpx.URL(service.url).port
            first = children(service.process.pid)[0]
            give_up_at = time.monotonic() + 30
            while _connections(first, port):
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            more = [stack.enter_context(contextlib.closing(client_of(service))) for _ in range(8)]
            assert {device_of(client) for client in more} == {"cpu0"}
    finally:
        service.stop()


def client_of(service: Service) -> httpx.Client:
    """A client that has, and keeps, one connection."""
    client = httpx.Client(base_url=service.url, timeout=30, trust_env=False)
    client.get("/livez")
    return client


def device_of(client: httpx.Client) -> str:
    """The device of the worker that the client is connected to."""
    device: str = client.get("/model").json()["statistics"]["devices"][0]["device"]
    return device
