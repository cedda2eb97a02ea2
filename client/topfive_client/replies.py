"""Answers of the server, read without trust: a proxy or another program may have sent them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import httpx

from topfive_client import retries
from topfive_client.errors import ImageRejected, RequestRejected
from topfive_client.results import ModelVersion, Result, model_of, rejected, results_of

_NOT_TOPFIVE = (KeyError, TypeError, AttributeError)
"""What reading raises if the JSON is not that of topfive."""


def fields(reply: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in the body of the reply; an empty one if the body is no object."""
    try:
        found = reply.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def facts(reply: httpx.Response) -> tuple[str, str, str, int, str | None]:
    """Return the arguments of an error, from a problem document or from any other answer."""
    problem, status = fields(reply), reply.status_code
    detail = str(problem.get("detail", f"The answer has status {status} and no problem document."))
    code = str(problem.get("code", "unexpected_answer"))
    return detail, str(problem.get("remedy", "")), code, status, _request_id(reply)


def asked_s(reply: httpx.Response) -> float | None:
    """Return the seconds that the server asks to wait; None if it does not ask.

    Of an answer in which some images have temporary errors, these may ask.
    """
    retry_after = reply.headers.get("retry-after")
    now = datetime.now(timezone.utc)
    asked = [fields(reply)]
    if reply.status_code == 200:
        asked = [result.get("error", {}) for result in asked[0]["results"]]
    each = (retries.asked_s(one, retry_after, now, random.random()) for one in asked)  # noqa: S311
    return max((seconds for seconds in each if seconds is not None), default=None)


def results(reply: httpx.Response, images: int) -> list[Result]:
    """Return the results of `images` images; raise RequestRejected if the answer has others."""
    try:
        found = results_of(fields(reply))
    except _NOT_TOPFIVE as error:
        raise unexpected(reply) from error
    if len(found) != images:
        raise unexpected(reply)
    return found


def rejections(reply: httpx.Response, images: int) -> list[Result]:
    """Return the errors of `images` images that were all rejected; empty if not each is known."""
    request_id, errors = _request_id(reply), fields(reply).get("errors")
    if images == 1:
        return [Result((), ImageRejected(*facts(reply)), None, request_id)]
    try:
        found: Sequence[Any] = errors if isinstance(errors, list) else ()
        each = [Result((), rejected(one, request_id), None, request_id) for one in found]
    except _NOT_TOPFIVE:
        return []
    return each if len(each) == images else []


def model(reply: httpx.Response) -> ModelVersion:
    """Return the model in an answer of GET /model; raise RequestRejected if there is none.

    A server of several models may have no default, and then names them all.
    """
    if reply.status_code != 200:
        raise request_rejected(reply)
    about = fields(reply)
    try:
        if about["model"] is None:
            names = ", ".join(str(one["name"]) for one in about["models"])
            raise RequestRejected(
                f"{reply.url} has no default model. Its models: {names or 'none'}.",
                "Pass one of the names as the option model of classify.",
                "not_found",
                reply.status_code,
                _request_id(reply),
            )
        return model_of(about)
    except _NOT_TOPFIVE as error:
        raise unexpected(reply) from error


def request_rejected(reply: httpx.Response) -> RequestRejected:
    """Return the error of a reply that rejects every such request."""
    return RequestRejected(*facts(reply)) if "code" in fields(reply) else unexpected(reply)


def unexpected(reply: httpx.Response) -> RequestRejected:
    """Return the error of a reply that is not topfive's."""
    return RequestRejected(
        f"{reply.url} has answered with status {reply.status_code}, but not like topfive.",
        "Check that the URL is that of a topfive server.",
        "unexpected_answer",
        reply.status_code,
        _request_id(reply),
    )


def _request_id(reply: httpx.Response) -> str | None:
    found: str | None = reply.headers.get("x-request-id")
    return found
