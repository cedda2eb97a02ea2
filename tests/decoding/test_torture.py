"""Hostile files through POST /classify of a real server: each answered or refused, nothing hurt."""

import csv
import mmap
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.decoding import images
from service.settings import Settings
from tests.support import bombs, pictures, tiny
from tests.support.serving import Service, serving

CALLERS = 4
PROCESSES = 2
MAX_PIXELS = Settings().max_pixels
# One big picture and one that just isn't, 16 bytes a pixel; and the bodies of all callers.
MEMORY_BYTES = 16 * (MAX_PIXELS + (PROCESSES - 1) * images.BIG_PIXELS) + CALLERS * (16 << 20)
SECONDS = images.cpu_seconds(MAX_PIXELS) + 1
REFUSALS = {
    (413, "too_many_pixels"),
    (415, "unsupported_media"),
    (422, "undecodable"),
}
INTERNALS = re.compile(r"Traceback|PIL|\.py|Error|object at|numpy|unpack_from|/home|/tmp|NoneType")


@dataclass
class Answer:
    """What a file was answered; `seconds` is what the service used of processors."""

    file: str
    reply: httpx.Response
    seconds: float


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    # The deadline is no part of these tests, and the processors may be shared.
    flags = ("--decode-processes", str(PROCESSES), "--default-deadline-ms", "60000")
    with serving(artifact, *flags) as running:
        yield running


@pytest.fixture
def unhurt(service: Service) -> Iterator[None]:
    """The service is as well after the test as it was before, by every sign that it gives."""
    before = good_answer(service)
    processes = service.hosts(), service.decoding()
    yield
    assert good_answer(service) == before
    assert (service.hosts(), service.decoding()) == processes
    assert service.process.poll() is None
    assert service.http.get("/readyz").status_code == 200
    service.await_metric(Settings().rows, "topfive_rows", state="free")
    decoder = service.http.get("/model").json()["statistics"]["decoder"]
    assert (decoder["busy"], decoder["waiting"]) == (0, 0)
    assert [
        line for line in service.log if line.get("level", "text") not in ("info", "debug")
    ] == []


def good_answer(service: Service) -> list[Any]:
    return service.http.post("/classify?top_k=10", content=pictures.encoded()).json()["results"]


def post(service: Service, file: str, data: bytes, form: bool = False) -> Answer:
    """Send it as the body, or as a form's only part."""
    body = {"files": {"image": (file, data)}} if form else {"content": data}
    before = service.cpu_seconds()
    reply = service.http.post("/classify", **body)
    return Answer(file, reply, service.cpu_seconds() - before)


@contextmanager
def growth(service: Service) -> Iterator[list[int]]:
    """The most bytes that the service's processes had at one time, above those at the start."""
    pids = (service.process.pid, *service.hosts(), *service.decoding())
    before = most = memory_bytes(pids)
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, memory_bytes(pids))

    watching = threading.Thread(target=watch)
    watching.start()
    grown: list[int] = []
    try:
        yield grown
    finally:
        over.set()
        watching.join()
        grown.append(most - before)


def memory_bytes(pids: Sequence[int]) -> int:
    """What they have of their own, and what they share as the first one has it; proc(5)."""
    statm = [Path(f"/proc/{pid}/statm").read_text().split() for pid in pids]
    own = sum(int(resident) - int(shared) for _, resident, shared, *_ in statm)
    return (own + int(statm[0][2])) * mmap.PAGESIZE


def assert_clean(answer: Answer) -> None:
    """Predictions, or a problem document that helps and tells nothing of the inside."""
    reply = answer.reply
    if reply.status_code == 200:
        assert reply.json()["results"][0]["predictions"], answer
        return
    said = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    refusal = (said["status"], said["code"])
    assert refusal in REFUSALS or refusal == (400, "malformed"), (answer, said)
    assert said["detail"], answer
    assert said["remedy"], answer
    assert not INTERNALS.search(said["detail"] + said["remedy"]), said


@pytest.fixture(scope="module")
def torture(data_folder: Path) -> dict[str, tuple[bytes, str]]:
    """The files of the torture folder: name to (bytes, what is expected)."""
    folder = data_folder / "torture"
    with (folder / "manifest.csv").open() as manifest:
        return {
            entry["file"]: ((folder / entry["file"]).read_bytes(), entry["expect"])
            for entry in csv.DictReader(manifest)
        }


@pytest.mark.usefixtures("unhurt")
def test_every_file_is_answered_or_refused(
    service: Service, torture: dict[str, tuple[bytes, str]], figure: Callable[[str], None]
) -> None:
    """All of them, four callers at a time: what must be answered is, what must be refused is."""
    with growth(service) as grown, ThreadPoolExecutor(CALLERS) as callers:
        answers = list(
            callers.map(lambda file: post(service, file, torture[file][0]), sorted(torture))
        )
    for answer in answers:
        assert_clean(answer)
        data, expect = torture[answer.file]
        status = answer.reply.status_code
        assert status != 400 or not data, "only an empty body is malformed"
        assert expect != "answer" or status == 200, answer
        assert expect != "error" or status != 200, answer
    statuses = Counter(answer.reply.status_code for answer in answers)
    figure(f"torture: {len(answers)} files, by status {dict(sorted(statuses.items()))}")
    figure(f"torture: peak memory {grown[0] / 2**20:.0f} MiB above idle")
    assert grown[0] < MEMORY_BYTES


@pytest.mark.usefixtures("unhurt")
@pytest.mark.slow
def test_no_file_takes_long(
    service: Service, torture: dict[str, tuple[bytes, str]], figure: Callable[[str], None]
) -> None:
    """One at a time, every fifth as a form's part; the slowest one's name is printed."""
    answers = [
        post(service, file, data, form=number % 5 == 0)
        for number, (file, (data, _)) in enumerate(torture.items())
    ]
    for answer in answers:
        assert_clean(answer)
    slowest = max(answers, key=lambda answer: answer.seconds)
    figure(f"torture: slowest {slowest.file}, {slowest.seconds:.2f} s")
    assert slowest.seconds < SECONDS


@pytest.mark.slow
@pytest.mark.usefixtures("unhurt")
def test_bombs_are_bounded_in_time_and_memory(
    service: Service, figure: Callable[[str], None]
) -> None:
    """What is made to cost the most: the honest are answered, the others refused in time."""
    with growth(service) as grown:
        for name, (make, status) in bombs.BOMBS.items():
            answer = post(service, name, make())
            assert_clean(answer)
            assert answer.reply.status_code == status, answer
            figure(f"bomb: {answer.seconds:5.2f} s  {answer.reply.status_code}  {name}")
            assert answer.seconds < SECONDS, name
    figure(f"bombs: peak memory {grown[0] / 2**20:.0f} MiB above idle")
    assert grown[0] < MEMORY_BYTES


@pytest.mark.slow
def test_bombs_together_fit_in_memory(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Four of the largest pictures at once: they are decoded one after another.

    Each has given back its memory before the next, also the one that ends in the middle.
    """
    turned, profiles = (
        bombs.BOMBS[name][0]()
        for name in ("webp: 50 megapixels, turned", "png: 64 bits, interlaced")
    )
    artifact = tiny.write_tiny_artifact(tmp_path / "tiny")
    # The last waits for three others, on processors that may be shared: it is about memory.
    flags = ("--decode-processes", str(PROCESSES), "--default-deadline-ms", "60000")
    with serving(artifact, *flags) as service:
        service.http.timeout = 90  # the deadline ends a request, not its client
        for kind in ("PNG", "WEBP"):  # A format's first picture loads its decoder, which stays.
            assert post(service, "small", pictures.encoded(kind)).reply.status_code == 200
        with growth(service) as grown, ThreadPoolExecutor(CALLERS) as callers:
            answers = list(
                callers.map(
                    lambda data: post(service, "big", data),
                    [profiles[:-100], turned, profiles, turned],
                )
            )
        assert [answer.reply.status_code for answer in answers] == [422, 200, 200, 200]
    figure(f"bombs: {CALLERS} at once, peak memory {grown[0] / 2**20:.0f} MiB more")
    assert grown[0] < MEMORY_BYTES
