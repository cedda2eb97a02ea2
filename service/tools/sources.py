"""The sources of answers: a server over HTTP, or an artifact's devices in this process.

A source has the name of its model and its classes, and classifies one image for each call. Any
number of calls may be in flight. An answer is one of three: the most likely classes, a failure of
this image, or Later with the seconds to wait.
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
from service.core.classification import TopClasses
from service.core.local_model import LocalModel
from service.errors import RequestError, RunError, Unreachable
from service.tools import client

TOP = 5
IN_FLIGHT = 16
"""Images in flight that keep a server of one device busy, and leave room for other clients."""
RETRY_S = 1.0
"""Seconds to the next attempt, if the answer has no Retry-After."""
LEAST_RETRY_S = 0.1
"""Minimum seconds to the next attempt: a server may ask for none."""
BATCHES_IN_FLIGHT = 4
"""Full batches for each device of an artifact: those on the device, and those being decoded."""
_TEMPORARY = {408, 429, 502, 503, 504}
"""Statuses after which an image is sent again. 408 is one of them: a slow network passes."""
_OF_THE_IMAGE = {"device_failed", "deadline", "body_timeout"}
"""Codes of temporary errors that the image itself may cause."""
_FAILURES = {400, 413, 415, 422, 500}
"""Statuses of an image that fails. After any other one, all images would fail."""
# An image of one pixel: its ranking lists all classes of the server.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class FailedImage:
    """An image that cannot be classified: a code for programs, and a sentence for users."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Later:
    """A temporary error: the image can be sent again after `seconds`."""

    seconds: float
    reason: str
    detail: str

    @property
    def may_be_the_image(self) -> bool:
        """Return whether the image itself may be the reason of the error."""
        return self.reason in _OF_THE_IMAGE


ImageAnswer = TopClasses | FailedImage | Later


@dataclass(frozen=True)
class ModelName:
    """The name and the version of a model."""

    name: str
    version: str


class ModelSource(Protocol):
    """A model that classifies images.

    `where` is the model's URL or folder, and `preprocessing` is the manifest's. `in_flight` is the
    number of images in flight that uses all devices.
    """

    where: str
    model: ModelName
    preprocessing: dict[str, Any]
    classes: tuple[Label, ...]
    in_flight: int

    async def classify(self, image: bytes) -> ImageAnswer:
        """Return the most likely classes of an image file, best first, or why there are none."""


class _OverHttp:
    in_flight = IN_FLIGHT

    def __init__(
        self, http: httpx.AsyncClient, where: str, described: "_Described", top_k: int
    ) -> None:
        self.where, self._http = where, http
        self.model, self.preprocessing, self.classes = described
        self._top_k = min(top_k, len(self.classes))

    async def classify(self, image: bytes) -> ImageAnswer:
        try:
            reply = await _post(self._http, image, self._top_k)
        except httpx.TransportError as error:
            return Later(RETRY_S, "connection", f"{type(error).__name__}: {error}")
        if reply.status_code in _TEMPORARY:
            return _later(reply)
        fields = client.json_object(reply)
        if reply.status_code != 200:
            return self._failed(reply, fields)
        try:
            model = _model(fields)
            predictions = fields["results"][0]["predictions"]
            top = TopClasses(
                [one["class_id"] for one in predictions], [one["score"] for one in predictions]
            )
        except (KeyError, IndexError, TypeError) as error:
            raise _not_topfive(self.where) from error
        if model != self.model:
            raise RunError(
                f"{self.where} now serves {model}; this run began with {self.model}.",
                "Serve one model during the whole run, or start over with --force.",
            )
        return top

    def _failed(self, reply: httpx.Response, fields: dict[str, Any]) -> FailedImage:
        """Return the failure of the image; raise Unreachable for one that is not the image's."""
        status = reply.status_code
        code, detail = fields.get("code", status), fields.get("detail", reply.text[:200])
        # 413 may also be of a proxy, which has no code.
        if status == 413 or (status in _FAILURES and "code" in fields):
            return FailedImage(str(code), str(detail))
        raise Unreachable(
            f"{self.where} answers an image with status {status}: {detail}",
            "The answers so far are kept. Check the server, then run the same command again.",
        )


@asynccontextmanager
async def over_http(
    url: str, timeout_s: float, connections: int, retry_for_s: float, top_k: int = TOP
) -> AsyncIterator[ModelSource]:
    """Open the server at `url` as a source; `?model=NAME` names one of several models.

    Wait for a server that is overloaded or not ready yet. Raise Unreachable if the server does not
    answer, or does not answer like topfive.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    try:
        base, model = client.server_and_model(url)
        async with httpx.AsyncClient(
            base_url=base,
            params=model,
            timeout=timeout_s,
            limits=limits,
            **client.http_options(base),
        ) as http:
            yield _OverHttp(http, url, await _described(http, url, retry_for_s), top_k)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} does not answer: {error}", client.START_IT) from error


_Described = tuple[ModelName, dict[str, Any], tuple[Label, ...]]


async def _described(http: httpx.AsyncClient, url: str, retry_for_s: float) -> _Described:
    """Return the model's name, its preprocessing and its classes.

    The classes come from the ranking of one image, which lists all of them.
    """
    reply = await http.get("/model")
    client.check_key(reply, url)
    about = client.json_object(reply)
    try:
        manifest = _manifest(about, http.params.get("model", ""), url)
        count, preprocessing = manifest["output"]["classes"], manifest["preprocessing"]
        fields = client.json_object(await _first_answer(http, count, url, retry_for_s))
        ranked = sorted(fields["results"][0]["predictions"], key=lambda one: one["class_id"])
        classes = tuple(Label(one.get("wnid"), one["label"]) for one in ranked)
        return _model(fields), preprocessing, classes
    except (KeyError, IndexError, TypeError) as error:
        raise _not_topfive(url) from error


def _manifest(about: dict[str, Any], name: str, url: str) -> dict[str, Any]:
    """Return the manifest of the model `name`, or of the default model; raise Unreachable."""
    manifests = {each["name"]: each.get("manifest") for each in about.get("models", [])}
    found: dict[str, Any] | None = manifests.get(name) if name else about["model"]
    if found is None:
        raise Unreachable(
            f"{url} serves no model {name!r}." if name else f"{url} serves several models.",
            f"Name one of them: '{url.partition('?')[0]}?model={next(iter(manifests), 'NAME')}'",
        )
    return found


async def _first_answer(
    http: httpx.AsyncClient, count: int, url: str, retry_for_s: float
) -> httpx.Response:
    """Send the first image until the server accepts it, and return the answer."""
    give_up_at = time.monotonic() + retry_for_s
    while (reply := await _post(http, _PIXEL, count)).status_code in _TEMPORARY:
        later = _later(reply)
        if time.monotonic() + later.seconds > give_up_at:
            raise Unreachable(
                f"{url}: {later.detail}", "Run topfive health --wait-s 60 to wait for the server."
            )
        print(f"waiting for {url}: {later.detail}", file=sys.stderr, flush=True)
        await asyncio.sleep(later.seconds)
    return reply


def _model(fields: dict[str, Any]) -> ModelName:
    return ModelName(fields["model"]["name"], fields["model"]["version"])


def _not_topfive(where: str) -> Unreachable:
    return Unreachable(f"{where} does not answer like topfive.", client.START_IT)


async def _post(http: httpx.AsyncClient, image: bytes, top_k: int) -> httpx.Response:
    return await http.post(
        "/classify",
        params={"top_k": top_k},
        content=image,
        headers={"content-type": "application/octet-stream"},
    )


def _later(reply: httpx.Response) -> Later:
    fields = client.json_object(reply)
    text = reply.headers.get("retry-after", "")
    return Later(
        max(LEAST_RETRY_S, float(text)) if text.isascii() and text.isdecimal() else RETRY_S,
        str(fields.get("code", reply.status_code)),
        str(fields.get("detail", f"status {reply.status_code}")),
    )


class _OnArtifact:
    def __init__(self, opened: LocalModel, where: str, timeout_s: float, top_k: int) -> None:
        artifact, model = opened.artifact, opened.service.find()
        self.where, self.classes = where, artifact.labels
        self.model = ModelName(artifact.manifest.name, artifact.manifest.version)
        self.preprocessing = artifact.manifest.preprocessing.model_dump(mode="json", by_alias=True)
        batches = BATCHES_IN_FLIGHT * len(model.devices.devices)
        wanted = max(IN_FLIGHT, batches * artifact.manifest.input.batch.max)
        self.in_flight = min(wanted, model.rows.capacity)
        self._opened, self._timeout_s = opened, timeout_s
        self._top_k = min(top_k, len(self.classes))

    async def classify(self, image: bytes) -> ImageAnswer:
        try:
            return await self._opened.classify(image, self._top_k, self._timeout_s)
        except RequestError as error:
            if error.status not in _TEMPORARY:
                return FailedImage(error.code, error.detail)
            wait_ms: Any = error.members.get("retry_after_ms", RETRY_S * 1000)
            return Later(float(wait_ms) / 1000, error.code, error.detail)


@asynccontextmanager
async def on_artifact(
    path: Path,
    timeout_s: float,
    devices: str | None = None,
    device_python: str | None = None,
    top_k: int = TOP,
) -> AsyncIterator[ModelSource]:
    """Open the artifact in the folder `path` as a source, on this machine's devices, without HTTP.

    `devices` and `device_python` replace the settings of these names.
    """
    async with local_model.opened(path, devices, device_python) as opened:
        yield _OnArtifact(opened, str(path), timeout_s, top_k)
