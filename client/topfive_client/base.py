"""What `Client` and `AsyncClient` share: their arguments, and the signature of `classify`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, overload

import httpx

from topfive_client.calls import ClassifyOptions, ServerCalls
from topfive_client.images import ImageInput, is_image

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Several = TypeVar("Several")
One = TypeVar("One")
Many = TypeVar("Many")


class ClientBase(ABC, Generic[Http, Several, One, Many]):
    """A client of one server; the subclass sends and waits."""

    _http_class: ClassVar[Any]

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
        concurrency: int = 4,
    ) -> None:
        """Make a client of the server at `url`; nothing is sent yet.

        `api_key` is sent as a bearer token. An attempt without an answer ends after `timeout_s`.
        Temporary errors are retried until they have lasted for `retry_for_s`, so that a restart of
        the server is not noticed. `concurrency` is the maximum number of requests in flight for one
        iterable. Raise ValueError for arguments that cannot be used.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; pass 1 or more")
        self._calls = ServerCalls(url, api_key, timeout_s, retry_for_s)
        self._concurrency = concurrency
        # Iterables have a bound of their own, and threads that share a client need none.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http: Http = self._http_class(limits=limits)

    @overload
    def classify(
        self,
        images: ImageInput,
        *,
        top_k: int = ...,
        deadline_s: float | None = ...,
        model: str | None = ...,
    ) -> One: ...
    @overload
    def classify(
        self,
        images: Several,
        *,
        top_k: int = ...,
        deadline_s: float | None = ...,
        model: str | None = ...,
    ) -> Many: ...
    def classify(
        self,
        images: Any,
        *,
        top_k: int = 5,
        deadline_s: float | None = None,
        model: str | None = None,
    ) -> Any:
        """Return the result of an image, or an iterator of the results of an iterable, in order.

        The most likely `top_k` classes of `model` are returned; without a name, of the model that
        the server serves by default. `deadline_s` is the time until the answer, with all attempts;
        for an iterable, from the first attempt of an image.

        The error of a single image is raised. An iterable is consumed as its images are sent. An
        image that cannot be classified has its error in its place. Unavailable and RequestRejected
        end the iteration.
        """
        options = ClassifyOptions(top_k, deadline_s, model)
        return self._one(images, options) if is_image(images) else self._many(images, options)

    @abstractmethod
    def _one(self, image: ImageInput, options: ClassifyOptions) -> One:
        """Return the result of one image."""

    @abstractmethod
    def _many(self, images: Several, options: ClassifyOptions) -> Many:
        """Return an iterator of the results of several images."""
