"""The calls of a client as steps, the same for `Client` and `AsyncClient`.

A call is a generator. It yields what is to be done next, which is a request to send or seconds to
wait, receives the answer, and returns the result of the call. So everything that decides is here,
and the two clients only send and wait.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Callable, TypeVar, Union

import httpx

from topfive_client import packing, replies, retries
from topfive_client.attempts import Attempts
from topfive_client.errors import DeadlinePassed, RequestRejected, Unavailable
from topfive_client.images import File
from topfive_client.results import ModelVersion, Result

Step = Union[httpx.Request, float]
Reply = Union[httpx.Response, httpx.RequestError, None]
Returned = TypeVar("Returned")
Steps = Generator[Step, Reply, Returned]

_NOT_SENT = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Errors of a request that no attempt can send."""
READY_TIMEOUT_S = 2.0
"""Seconds for the answer to GET /readyz."""
POLL_S = 0.2
"""Seconds between two requests for GET /readyz."""
ANSWER_GRACE_S = 0.25
"""Seconds after the deadline in which the server's own error may still arrive."""


@dataclass(frozen=True)
class ClassifyOptions:
    """The options of a call; raise ValueError if one of them cannot be sent."""

    top_k: int
    deadline_s: float | None
    model: str | None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; pass 1 or more")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; pass more than 0")

    @property
    def parameters(self) -> dict[str, str]:
        """Return the parameters of the query."""
        named = {} if self.model is None else {"model": self.model}
        return {"top_k": str(self.top_k), **named}


class ServerCalls:
    """The calls to one server. `limits` are those of its requests, as far as they are known.

    Raise ValueError for a URL or a key that cannot be sent.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retry_for_s: float) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"the URL is {url!r}; pass one such as http://127.0.0.1:8080")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError(
                "the API key has a character that no header can have, such as a newline"
            )
        if api_key is not None and api_key != (api_key.strip() or None):
            raise ValueError(
                "the API key is empty or begins or ends with a space; pass None for none"
            )
        self.limits = packing.Limits()
        self._url = url.rstrip("/")
        self._headers = {"accept": "application/json", "user-agent": "topfive-client"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s

    def packer(self) -> packing.Packer:
        """Return a packer that follows the limits as they become known."""
        return packing.Packer(lambda: self.limits)

    def classify_one(self, file: File, options: ClassifyOptions) -> Steps[Result]:
        """Classify one image; raise its error."""
        [result] = yield from self.classify([file], options)
        if result.error:
            raise result.error
        return result

    def classify(self, pack: Sequence[File], options: ClassifyOptions) -> Steps[list[Result]]:
        """Classify a pack and return a result for each file, in order.

        An error that is not about an image is raised: RequestRejected or Unavailable.
        """
        files = [file for file in pack if isinstance(file, bytes)]
        deadline_at = time.monotonic() + (options.deadline_s or math.inf)
        attempts = Attempts(self._retry_for_s, deadline_at)
        sent = (yield from self._classify(files, options, attempts)) if files else []
        answered = iter(sent)
        return [next(answered) if isinstance(file, bytes) else Result((), file) for file in pack]

    def ready(self) -> Steps[bool]:
        """Return whether the server accepts requests now."""
        reply = yield self._request("GET", "/readyz", min(self._timeout_s, READY_TIMEOUT_S))
        return isinstance(reply, httpx.Response) and reply.status_code == 200

    def wait_ready(self, timeout_s: float) -> Steps[None]:
        """Return when the server is ready; raise Unavailable after `timeout_s`."""
        give_up_at = time.monotonic() + timeout_s
        while not (yield from self.ready()):
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise Unavailable(
                    f"{self._url} was not ready within {timeout_s:g} s.",
                    "Start the server, or wait longer.",
                    "not_ready",
                )
            yield min(POLL_S, left_s)

    def model(self) -> Steps[ModelVersion]:
        """Return the model that the server serves."""
        reply = yield from self._answer(
            lambda _: self._request("GET", "/model", self._timeout_s),
            Attempts(self._retry_for_s),
            has_images=False,
        )
        return replies.model(reply)

    def _classify(
        self, files: Sequence[bytes], options: ClassifyOptions, attempts: Attempts
    ) -> Steps[list[Result]]:
        """Classify files in one request, or in several if the server rejects or fails that one.

        Files that the server fails are sent again after the others, so that one such file delays no
        other; those that were not sent since a request was divided are sent once even when there is
        no time for more attempts. Raise Unavailable if each of several files has ended with it.
        """
        found: dict[int, Result] = {}
        # The places of the files of each request, and whether the same ones were sent before.
        waiting = deque([(list(range(len(files))), False)])
        try:
            while waiting:
                places, _ = waiting[0]
                pack = [files[place] for place in places]
                request = partial(self._post, pack, options)
                reply = yield from self._answer(request, attempts, has_images=True)
                results = self._results(reply, pack)
                found.update(zip(places, results))
                failed = {
                    place: result.error
                    for place, result in zip(places, results)
                    if isinstance(result.error, Unavailable)
                }
                waiting.popleft()
                left = list(failed) if results else places
                if len(left) == len(places) > 1 and not (failed and attempts.given_up):
                    waiting.extend((half, False) for half in _halves(places, pack, self.limits))
                elif left:
                    waiting.append((left, True))
                if failed:
                    wait_s = attempts.wait_s(failed[left[0]], replies.asked_s(reply))
                    if attempts.given_up:
                        waiting = deque(each for each in waiting if not each[1])
                    if waiting:
                        yield wait_s
        except DeadlinePassed as error:
            found.update((place, Result((), error)) for places, _ in waiting for place in places)
        answers = [found[place] for place in range(len(files))]
        unavailable = [one.error for one in answers if isinstance(one.error, Unavailable)]
        if 1 < len(files) == len(unavailable):
            raise unavailable[0]
        return answers

    def _results(self, reply: httpx.Response, pack: Sequence[bytes]) -> list[Result]:
        """Return the results in an answer, which are errors if it is one.

        There are none if the request has to be sent in smaller parts, which may be accepted. Raise
        RequestRejected if the error is not about images.
        """
        if reply.status_code == 200:
            return replies.results(reply, len(pack))
        if reply.status_code in retries.TEMPORARY:
            return [Result((), Unavailable(*replies.facts(reply)))] * len(pack)
        if reply.status_code not in retries.IMAGE_STATUSES:
            raise replies.request_rejected(reply)
        problem = replies.fields(reply)
        if reply.status_code == 413 and not problem and len(pack) > 1:
            # A proxy does not name its limit.
            problem = {"limit_bytes": sum(map(len, pack)) // 2}
        self.limits = self.limits.lowered(problem)
        return replies.rejections(reply, len(pack))

    def _answer(
        self, request: Callable[[float], httpx.Request], attempts: Attempts, has_images: bool
    ) -> Steps[httpx.Response]:
        """Send a request until its answer is not temporary, and return the answer.

        `request` returns the request for the seconds that are left. A temporary error that its
        images may cause is returned, too, if it has images. Raise Unavailable or DeadlinePassed
        when there is no time for another attempt, and RequestRejected if it cannot be sent at all.
        """
        while True:
            reply = yield request(attempts.left_s())
            if isinstance(reply, httpx.Response) and reply.status_code not in retries.TEMPORARY:
                attempts.answered()
                return reply
            if isinstance(reply, _NOT_SENT):
                raise RequestRejected(
                    f"The request cannot be sent: {reply}.",
                    "Correct the URL or the API key.",
                    "connection",
                ) from reply
            error = self._unavailable(reply)
            asked_s = None
            if isinstance(reply, httpx.Response):
                if has_images and _may_be_an_image(error):
                    return reply
                asked_s = replies.asked_s(reply)
            wait_s = attempts.wait_s(error, asked_s)
            if attempts.given_up:
                raise error
            yield wait_s

    def _post(
        self, files: Sequence[bytes], options: ClassifyOptions, left_s: float
    ) -> httpx.Request:
        content, content_type = packing.body(files)
        headers = {"content-type": content_type}
        if left_s < math.inf:
            headers["x-request-timeout-ms"] = str(max(1, int(left_s * 1000)))
        timeout_s = min(self._timeout_s, max(0.0, left_s) + ANSWER_GRACE_S)
        url = f"/classify?{httpx.QueryParams(options.parameters)}"
        return self._request("POST", url, timeout_s, headers, content)

    def _request(
        self,
        method: str,
        path: str,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Request:
        return httpx.Request(
            method,
            f"{self._url}{path}",
            headers={**self._headers, **(headers or {})},
            content=content,
            extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
        )

    def _unavailable(self, reply: Reply) -> Unavailable:
        """Return the error of a temporary answer, or of none."""
        if isinstance(reply, httpx.Response):
            return Unavailable(*replies.facts(reply))
        reason = str(reply) or type(reply).__name__
        return Unavailable(
            f"{self._url} does not answer: {reason}.",
            "Start the server, or correct the URL.",
            "connection",
        )


def _may_be_an_image(error: Unavailable) -> bool:
    """Return whether the images of the request may be the reason of a temporary error."""
    return error.code in retries.OF_THE_IMAGE


def _halves(
    places: Sequence[int], pack: Sequence[bytes], limits: packing.Limits
) -> Iterator[list[int]]:
    """Yield the places of a pack that the server rejects, in two or more parts within `limits`."""
    rest = iter(places)
    for part in packing.split(pack, limits):
        yield list(islice(rest, len(part)))
