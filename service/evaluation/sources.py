"""Who answers: a server over HTTP, or an artifact's device in this process.

Both give a source that knows its model and its classes and answers one image at a time; as many may
be under way as the caller likes. An answer is one of three: the five most likely classes, a failure
of this image, or "later", with the seconds to wait.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from service import client
from service.artifact import Label
from service.core.request import Prediction
from service.errors import EvaluationError, RequestError, Unreachable

TOP = 5
RETRY_S = 1.0
"""Where the answer says nothing of when to try again."""
_AGAIN = {429, 502, 503, 504}
# A picture of one pixel, to be told all classes.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class Top5:
    """The most likely classes, best first."""

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
    detail: str


Answer = Top5 | Failed | Later


@dataclass(frozen=True)
class ModelName:
    name: str
    version: str


class Source(Protocol):
    """One model; `where` is its URL or its folder."""

    where: str
    model: ModelName
    classes: tuple[Label, ...]

    async def ask(self, image: bytes) -> Answer:
        """What the model makes of the file `image`."""


class _OverHttp:
    def __init__(
        self, http: httpx.AsyncClient, where: str, model: ModelName, classes: tuple[Label, ...]
    ) -> None:
        self.where, self.model, self.classes = where, model, classes
        self._http = http

    async def ask(self, image: bytes) -> Answer:
        try:
            reply = await _post(self._http, image, TOP)
        except httpx.TransportError as error:
            return Later(RETRY_S, f"{type(error).__name__}: {error}")
        said = client.said(reply)
        if reply.status_code in _AGAIN:
            return Later(_retry_after_s(reply), str(said.get("detail", reply.status_code)))
        if reply.status_code != 200:
            return Failed(
                str(said.get("code", reply.status_code)), str(said.get("detail", reply.text[:200]))
            )
        if ModelName(**said["model"]) != self.model:
            raise EvaluationError(
                f"{self.where} serves {said['model']} now; this run began with {self.model}",
                "let one model serve for the whole run; --force begins anew",
            )
        return Top5(tuple(one["class_id"] for one in said["results"][0]["predictions"]))


@asynccontextmanager
async def over_http(url: str, timeout_s: float, connections: int) -> AsyncIterator[Source]:
    """The server at `url`; Unreachable if it does not answer, or is none of ours."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        async with httpx.AsyncClient(
            base_url=url, timeout=timeout_s, limits=limits, trust_env=False
        ) as http:
            model, classes = await _described(http)
            yield _OverHttp(http, url, model, classes)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} does not answer: {error}", client.START_IT) from error


async def _described(http: httpx.AsyncClient) -> tuple[ModelName, tuple[Label, ...]]:
    """The model's name, and all its classes: one picture's ranking has them all."""
    about = client.said(await http.get("/model"))
    try:
        count = about["model"]["output"]["classes"]
        reply = await _post(http, _PIXEL, count)
        if reply.status_code in _AGAIN:
            detail = client.said(reply).get("detail", reply.status_code)
            raise Unreachable(
                f"{http.base_url}: {detail}", "wait until it is ready: topfive health --wait-s 60"
            )
        said = client.said(reply)
        ranked = sorted(said["results"][0]["predictions"], key=lambda one: one["class_id"])
        model = ModelName(**said["model"])
    except (KeyError, TypeError) as error:
        detail = f"{http.base_url} does not answer as topfive does"
        raise Unreachable(detail, client.START_IT) from error
    return model, tuple(Label(one["wnid"], one["label"]) for one in ranked)


async def _post(http: httpx.AsyncClient, image: bytes, top_k: int) -> httpx.Response:
    return await http.post(
        "/classify",
        params={"top_k": top_k},
        content=image,
        headers={"content-type": "application/octet-stream"},
    )


def _retry_after_s(reply: httpx.Response) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() else RETRY_S


class _OnArtifact:
    def __init__(self, opened: client.OpenedModel, where: str, timeout_s: float) -> None:
        artifact = opened.model.artifact
        self.where, self.classes = where, artifact.labels
        self.model = ModelName(artifact.manifest.name, artifact.manifest.version)
        self._opened, self._timeout_s = opened, timeout_s

    async def ask(self, image: bytes) -> Answer:
        try:
            outcome: Any = await self._opened.classify(image, TOP, self._timeout_s)
        except RequestError as error:
            outcome = error
        if isinstance(outcome, Prediction):
            return Top5(tuple(outcome.class_ids))
        if outcome.status in _AGAIN:
            return Later(float(outcome.members.get("retry_after_s", RETRY_S)), outcome.detail)
        return Failed(outcome.code, outcome.detail)


@asynccontextmanager
async def on_artifact(path: Path, timeout_s: float) -> AsyncIterator[Source]:
    """The artifact in the folder `path`, on the devices of this machine, without HTTP."""
    async with client.opened_model(path) as opened:
        yield _OnArtifact(opened, str(path), timeout_s)
