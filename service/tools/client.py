"""The client calls of the command line: classify over HTTP or on an artifact, check readiness."""

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from service.errors import RequestError, Unreachable
from service.system import disk
from service.tools import trust

if TYPE_CHECKING:
    from service.artifact import Label
    from service.core.classification import TopClasses
    from service.core.local_model import LocalModel

STDIN = Path("-")
START_IT = "Start the server with topfive serve, or correct the URL."
NOT_SERVING = ("not_ready", "draining")


@dataclass(frozen=True)
class FileAnswer:
    """The answer for one file: its predictions (class_id, label, score, any wnid), or an error."""

    file: Path
    predictions: list[dict[str, Any]]
    error: str = ""


def classify_over_http(
    url: str, files: list[Path], top_k: int, timeout_s: float
) -> list[FileAnswer]:
    """Send one request for each file, in order, and return the answers.

    Raise Unreachable if the server does not answer or is not ready.
    """
    try:
        base, model = server_and_model(url)
        options = http_options(base)
        with httpx.Client(base_url=base, params=model, timeout=timeout_s, **options) as http:
            return [_classify_file(http, file, top_k) for file in files]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} does not answer: {error}", START_IT) from error


def classify_on_artifact(
    artifact: Path, files: list[Path], top_k: int, timeout_s: float
) -> list[FileAnswer]:
    """Classify all files on the artifact's device, without HTTP, through the service's own path."""
    return asyncio.run(_classify_on_artifact(artifact, files, top_k, timeout_s))


def print_json(answers: Iterable[FileAnswer]) -> None:
    """Print one JSON document: an array with an object for each file."""
    document = [
        {"file": disk.in_utf_8(answer.file)}
        | ({"error": answer.error} if answer.error else {"predictions": answer.predictions})
        for answer in answers
    ]
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), flush=True)


def print_table(answers: Iterable[FileAnswer]) -> None:
    """Print a table with a line for each prediction."""
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "#", "score", "label", "wnid")
    for answer in answers:
        name = disk.in_utf_8(answer.file.name)
        if answer.error:
            table.add_row(name, "", "", f"error: {answer.error}", "", end_section=True)
        for place, prediction in enumerate(answer.predictions, 1):
            table.add_row(
                name if place == 1 else "",
                str(place),
                f"{prediction['score']:.4f}",
                prediction["label"],
                prediction.get("wnid", ""),
                end_section=place == len(answer.predictions),
            )
    Console(markup=False, emoji=False).print(table)


def wait_until_ready(url: str, wait_s: float) -> str:
    """Wait until the server is ready, and return its answer to GET /readyz.

    Without `url` the server is that of this machine's settings. Raise Unreachable if the server is
    not ready within `wait_s` seconds.
    """
    url, options = server(url)
    give_up_at = time.monotonic() + wait_s
    try:
        with httpx.Client(base_url=url, timeout=2.0, **options) as http:
            while True:
                try:
                    return _check_ready(http, url)
                except Unreachable:
                    if time.monotonic() >= give_up_at:
                        raise
                time.sleep(0.2)
    except httpx.InvalidURL as error:
        raise Unreachable(f"{url} does not answer: {error}", START_IT) from error


def http_options(url: str, exactly: Path | None = None) -> dict[str, Any]:
    """Return the options of httpx for requests to `url`.

    `exactly` is the file of the server's own certificate, if it is known. Raise SettingsError if a
    certificate or the key cannot be used.
    """
    headers = trust.key_headers()
    return {"verify": trust.context(url, exactly), "headers": headers, "trust_env": False}


def server(url: str) -> tuple[str, dict[str, Any]]:
    """Return the URL of a server and the options of httpx for it.

    Without `url` it is the server that `topfive serve` would be, by environment and settings file,
    over the Unix socket of its administration if it has one.
    """
    if url:
        return url, http_options(url)
    from service import settings

    effective, _ = settings.load({})
    if effective.admin_socket:
        transport = httpx.HTTPTransport(uds=str(effective.admin_socket))
        return "http://topfive", {"transport": transport, "trust_env": False}
    own = settings.local_url(effective, effective.host, effective.port)
    return own, http_options(own, effective.tls_certificate)


def _check_ready(http: httpx.Client, url: str) -> str:
    try:
        reply = http.get("/readyz")
    except httpx.HTTPError as error:
        raise Unreachable(f"{url} does not answer: {error}", START_IT) from error
    if reply.status_code != 200:
        raise Unreachable(
            f"{url} is not ready: {reply.text[:500]}", "Wait for the server with --wait-s."
        )
    return reply.text


def _classify_file(http: httpx.Client, file: Path, top_k: int) -> FileAnswer:
    try:
        data = _read(file)
    except OSError as error:
        return _unreadable(file, error)
    reply = http.post(
        "/classify",
        params={"top_k": top_k},
        content=data,
        headers={"content-type": "application/octet-stream"},
    )
    fields = json_object(reply)
    check_key(reply, str(http.base_url))
    if reply.status_code == 200 and "results" in fields:
        return FileAnswer(file, fields["results"][0]["predictions"])
    if fields.get("code") in NOT_SERVING:
        raise Unreachable(
            f"{http.base_url}: {fields['detail']}",
            "Run topfive health --wait-s 60 to wait for the server.",
        )
    return FileAnswer(
        file,
        [],
        str(
            fields.get(
                "error",
                f"The answer has status {reply.status_code} and is not an answer of topfive.",
            )
        ),
    )


def server_and_model(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL of the server, and the query of `url`: `model` for one of several models.

    Raise httpx.InvalidURL.
    """
    parsed = httpx.URL(url)
    return str(parsed.copy_with(query=None)), dict(parsed.params)


def check_key(reply: httpx.Response, url: str) -> None:
    """Raise Unreachable if the server at `url` refuses the API key, or wants one."""
    if reply.status_code in (401, 403):
        detail = json_object(reply).get("detail", f"The answer has status {reply.status_code}.")
        raise Unreachable(f"{url}: {detail}", f"Set {trust.KEY} to a key of the server.")


def json_object(reply: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in the body of the reply; an empty one if the body is no object."""
    try:
        fields = reply.json()
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def predictions_of(top: "TopClasses", labels: "Sequence[Label]") -> list[dict[str, Any]]:
    """Return the predictions of an answer of the service: class_id, wnid if any, label, score."""
    return [
        {"class_id": class_id, **labels[class_id].members(), "score": score}
        for class_id, score in zip(top.class_ids, top.scores, strict=True)
    ]


async def _classify_on_artifact(
    path: Path, files: list[Path], top_k: int, timeout_s: float
) -> list[FileAnswer]:
    from service.core import local_model

    async with local_model.opened(path) as model:
        return [await _submit(model, file, top_k, timeout_s) for file in files]


async def _submit(model: "LocalModel", file: Path, top_k: int, timeout_s: float) -> FileAnswer:
    labels = model.artifact.labels
    try:
        prediction = await model.classify(_read(file), min(top_k, len(labels)), timeout_s)
    except OSError as error:
        return _unreadable(file, error)
    except RequestError as error:
        return FileAnswer(file, [], error.detail)
    return FileAnswer(file, predictions_of(prediction, labels))


def _unreadable(file: Path, error: OSError) -> FileAnswer:
    return FileAnswer(file, [], f"The file cannot be read: {disk.unreadable_in_words(file, error)}")


def _read(file: Path) -> bytes:
    return sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
