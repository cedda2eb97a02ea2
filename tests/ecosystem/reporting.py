"""What the scripts of the clients share. They run in the environment of the clients.

A script gets the address of a service and its cases as JSON in its argument, and prints as its last
line an object with an entry for each row: `{"value": ...}` of a call that was answered, or
`{"refused": status, "text": message}`. A method that a client does not have is no entry.
"""

import asyncio
import base64
import inspect
import json
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

POLL_S = 0.005
"""Seconds between two looks at the state of the service."""
PATIENCE_S = 30
"""Maximum seconds to wait for the service, and for an answer that a callback gets."""
SHORT_S = 1.0
"""Seconds of a deadline that passes while the device is stopped."""
IN_FLIGHT = re.compile(
    r'^topfive_(?:grpc_requests_in_flight|http_requests_in_flight\{route="v2"\}) (\S+)$', re.M
)

Refusal = Callable[[Exception], tuple[str, str]]
"""Returns the status and the text of an error; raises an error that is no answer."""


class Cases:
    """What a script is to send, and where to."""

    def __init__(self) -> None:
        given = json.loads(sys.argv[1])
        self.client: str = given["client"]
        self.http: str = given["http"]
        self.grpc: str = given["grpc"]
        self.model: str = given["model"]
        self.version: str = given["version"]
        self.phase: str = given["phase"]
        self.photos = [Path(path).read_bytes() for path in given["photos"]]
        self.methods: list[str] = given["methods"]
        """Names of methods, of which the client may have some."""
        self.pixels: str = given["pixels"]
        """A file of numpy with the prepared pixels of the first photo."""

    @property
    def photo(self) -> bytes:
        return self.photos[0]

    @property
    def broken(self) -> bytes:
        """A photo without its end."""
        return self.photo[: len(self.photo) // 2]

    def images(self) -> int:
        """Return the number of images that the service has."""
        with urllib.request.urlopen(f"http://{self.http}/model", timeout=30) as answer:
            rows = json.load(answer)["statistics"]["rows"]
        return int(rows["filling"] + rows["waiting"] + rows["running"])

    def in_flight(self) -> int:
        """Return the number of requests of the V2 protocol that are not answered."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(int(float(value)) for value in IN_FLIGHT.findall(text))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, which asks the service."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up_at, "the service did not change its state in time"
        await asyncio.sleep(POLL_S)


def data_url(file: bytes) -> str:
    """Return an image file as text, which a JSON string can have."""
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


def present(cases: Cases, client: object) -> dict[str, Callable[[], bool]]:
    """Return a row for each method: whether the client has it."""
    return {name: partial(hasattr, client, name) for name in cases.methods}


async def report(rows: Mapping[str, Callable[[], Any]], refusal: Refusal) -> None:
    """Run each row, and print its outcome. A row returns its value, or awaits it."""
    found = {name: await _outcome(row, refusal) for name, row in rows.items()}
    print(json.dumps(found))


async def _outcome(row: Callable[[], Any], refusal: Refusal) -> dict[str, Any]:
    try:
        return {"value": await finished(row())}
    except Exception as error:  # noqa: BLE001 - `refusal` raises what is no answer
        status, text = refusal(error)
        return {"refused": status, "text": text}


async def finished(value: Any) -> Any:
    """Return `value`, which is awaited if a client's method is a coroutine."""
    return await value if inspect.isawaitable(value) else value


async def cancelled(cases: Cases, call: Awaitable[Any]) -> str:
    """Cancel `call` when the service has its image; return what it ends with."""
    before = cases.images()
    task = asyncio.ensure_future(call)
    await until(lambda: cases.images() > before)
    task.cancel()
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    return type(outcome).__name__


def ended(cases: Cases, rows: Mapping[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Return rows that end when the service has ended the request, too."""

    def ending(row: Callable[[], Any]) -> Callable[[], Any]:
        async def ended() -> Any:
            try:
                return await finished(row())
            finally:
                await until(lambda: cases.in_flight() == 0)

        return ended

    return {name: ending(row) for name, row in rows.items()}
