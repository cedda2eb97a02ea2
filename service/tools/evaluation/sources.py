"""Who answers: a server over HTTP, or an artifact's device in this process.

Both give a source that knows its model and its classes and answers one image at a time; as many may
be under way as the caller likes. An answer is one of three: the five most likely classes, a failure
of this image, or "later", with the seconds to wait.
"""

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from service.artifact import Label
from service.core import local_model
from service.core.local_model import LocalModel
from service.errors import EvaluationError, RequestError, Unreachable
from service.tools import client

TOP = 5
RETRY_S = 1.0
"""Where the answer says nothing of when to try again."""
_AGAIN = {429, 502, 503, 504}
_OF_THE_IMAGE = {"device_failed", "deadline"}
# A picture of one pixel, to be told all classes.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Top5:
    """The most likely classes, best first; all of them where the model has fewer than five."""

    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """This image cannot be classified: a machine's word, and a person's."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Later:
    """Nothing is known of the image yet: ask again after so many seconds."""

    seconds: float
    reason: str
    detail: str

    @property
    def may_be_the_image(self) -> bool:
        """The source answers, but this image may be what it cannot do, now or ever."""
        return self.reason in _OF_THE_IMAGE


Answer = Top5 | Failed | Later


@dataclass(frozen=True)
class ModelName:
    name: str
    version: str


class Source(Protocol):
    """One model; `where` is its URL or its folder, `preprocessing` as its manifest has it."""

    where: str
    model: ModelName
    preprocessing: dict[str, Any]
    classes: tuple[Label, ...]

    async def ask(self, image: bytes) -> Answer:
        """What the model makes of the file `image`."""


class _OverHttp:
    def __init__(self, http: httpx.AsyncClient, where: str, described: "_Described") -> None:
        self.where, self._http = where, http
        self.model, self.preprocessing, self.classes = described

    async def ask(self, image: bytes) -> Answer:
        try:
            reply = await _post(self._http, image, min(TOP, len(self.classes)))
        except httpx.TransportError as error:
            return Later(RETRY_S, "connection", f"{type(error).__name__}: {error}")
        if reply.status_code in _AGAIN:
            return _later(reply)
        said = client.said(reply)
        if reply.status_code != 200:
            return Failed(
                str(said.get("code", reply.status_code)), str(said.get("detail", reply.text[:200]))
            )
        try:
            model = _model(said)
            classes = tuple(one["class_id"] for one in said["results"][0]["predictions"])
        except (KeyError, IndexError, TypeError) as error:
            raise _stranger(self.where) from error
        if model != self.model:
            raise EvaluationError(
                f"{self.where} now serves {model}; this run began with {self.model}.",
                "Serve one model during the whole run, or start over with --force.",
            )
        return Top5(classes)


@asynccontextmanager
async def over_http(
    url: str, timeout_s: float, connections: int, retry_for_s: float
) -> AsyncIterator[Source]:
    """The server at `url`; Unreachable if it does not answer, or is none of ours.

    One that answers that it cannot now, full or starting, is waited for.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        async with httpx.AsyncClient(
            base_url=url, timeout=timeout_s, limits=limits, trust_env=False
        ) as http:
            yield _OverHttp(http, url, await _described(http, url, retry_for_s))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} does not answer: {error}", client.START_IT) from error


_Described = tuple[ModelName, dict[str, Any], tuple[Label, ...]]


async def _described(http: httpx.AsyncClient, url: str, retry_for_s: float) -> _Described:
    """The model's name, its preprocessing, all its classes: one picture's ranking has them all."""
    about = client.said(await http.get("/model"))
    try:
        count, preprocessing = about["model"]["output"]["classes"], about["model"]["preprocessing"]
        said = client.said(await _taken(http, count, url, retry_for_s))
        ranked = sorted(said["results"][0]["predictions"], key=lambda one: one["class_id"])
        classes = tuple(Label(one.get("wnid"), one["label"]) for one in ranked)
        return _model(said), preprocessing, classes
    except (KeyError, IndexError, TypeError) as error:
        raise _stranger(url) from error


async def _taken(
    http: httpx.AsyncClient, count: int, url: str, retry_for_s: float
) -> httpx.Response:
    """The answer to the first picture, when the server has room and a device for it."""
    give_up_at = time.monotonic() + retry_for_s
    while (reply := await _post(http, _PIXEL, count)).status_code in _AGAIN:
        later = _later(reply)
        if time.monotonic() + later.seconds > give_up_at:
            raise Unreachable(
                f"{url}: {later.detail}", "Run topfive health --wait-s 60 to wait for the server."
            )
        print(f"waiting for {url}: {later.detail}", file=sys.stderr, flush=True)
        await asyncio.sleep(later.seconds)
    return reply


def _model(said: dict[str, Any]) -> ModelName:
    return ModelName(said["model"]["name"], said["model"]["version"])


def _stranger(where: str) -> Unreachable:
    return Unreachable(f"{where} does not answer like topfive.", client.START_IT)


async def _post(http: httpx.AsyncClient, image: bytes, top_k: int) -> httpx.Response:
    return await http.post(
        "/classify",
        params={"top_k": top_k},
        content=image,
        headers={"content-type": "application/octet-stream"},
    )


def _later(reply: httpx.Response) -> Later:
    said = client.said(reply)
    text = reply.headers.get("retry-after", "")
    return Later(
        float(text) if text.isascii() and text.isdecimal() else RETRY_S,
        str(said.get("code", reply.status_code)),
        str(said.get("detail", f"status {reply.status_code}")),
    )


class _OnArtifact:
    def __init__(self, opened: LocalModel, where: str, timeout_s: float) -> None:
        artifact = opened.artifact
        self.where, self.classes = where, artifact.labels
        self.model = ModelName(artifact.manifest.name, artifact.manifest.version)
        self.preprocessing = artifact.manifest.preprocessing.model_dump(mode="json", by_alias=True)
        self._opened, self._timeout_s = opened, timeout_s

    async def ask(self, image: bytes) -> Answer:
        top = min(TOP, len(self.classes))
        try:
            prediction = await self._opened.classify(image, top, self._timeout_s)
        except RequestError as error:
            if error.status not in _AGAIN:
                return Failed(error.code, error.detail)
            wait_ms: Any = error.members.get("retry_after_ms", RETRY_S * 1000)
            return Later(float(wait_ms) / 1000, error.code, error.detail)
        return Top5(tuple(prediction.class_ids))


@asynccontextmanager
async def on_artifact(
    path: Path, timeout_s: float, devices: str | None = None, device_python: str | None = None
) -> AsyncIterator[Source]:
    """The artifact in the folder `path`, on the devices of this machine, without HTTP.

    `devices` and `device_python` take the place of the settings of these names.
    """
    async with local_model.opened(path, devices, device_python) as opened:
        yield _OnArtifact(opened, str(path), timeout_s)
