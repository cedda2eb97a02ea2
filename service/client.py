"""The command line's own calls: classify over HTTP or straight on an artifact, ask for health."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from service.errors import DeviceError, RequestError, TopfiveError


@dataclass(frozen=True)
class Answer:
    """What was said of one file: predictions (class_id, wnid, label, score), or an error."""

    file: Path
    predictions: list[dict[str, Any]]
    error: str = ""


def classify_over_http(
    url: str, files: list[Path], top_k: int, timeout_s: float
) -> Iterator[Answer]:
    """One request a file, in order; TopfiveError if the server cannot be reached."""
    with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as http:
        for file in files:
            data = _read(file)
            try:
                reply = http.post(
                    "/classify",
                    params={"top_k": top_k},
                    content=data,
                    headers={"content-type": "application/octet-stream"},
                )
            except httpx.HTTPError as error:
                raise TopfiveError(
                    f"{url} does not answer: {error}", "start it with topfive serve"
                ) from error
            yield _answer(file, reply)


def classify_on_artifact(
    artifact: Path, files: list[Path], top_k: int, timeout_s: float
) -> Iterator[Answer]:
    """All files through the artifact's device, without HTTP; the way that the service takes."""
    answers = asyncio.run(_classify_on_artifact(artifact, files, top_k, timeout_s))
    yield from answers


async def _classify_on_artifact(
    path: Path, files: list[Path], top_k: int, timeout_s: float
) -> list[Answer]:
    from service import artifact as artifacts
    from service.core.model import Model
    from service.metrics import Metrics
    from service.settings import Settings

    given_up: asyncio.Future[DeviceError] = asyncio.get_running_loop().create_future()
    artifact = artifacts.read(path)
    model = Model(artifact, Settings(), Metrics(), given_up.set_result)
    model.start()
    try:
        ready = asyncio.ensure_future(model.pool.first_ready.wait())
        await asyncio.wait((ready, given_up), return_when=asyncio.FIRST_COMPLETED)
        if given_up.done():
            raise given_up.result()
        answers = []
        for file in files:
            deadline = asyncio.get_running_loop().time() + timeout_s
            request = model.submit([_read(file)], min(top_k, len(artifact.labels)), deadline)
            await request.answered
            outcome = request.outcomes[0]
            if isinstance(outcome, RequestError):
                answers.append(Answer(file, [], outcome.detail))
                continue
            assert outcome is not None
            predictions = [
                {
                    "class_id": class_id,
                    "wnid": artifact.labels[class_id].wnid,
                    "label": artifact.labels[class_id].names,
                    "score": score,
                }
                for class_id, score in zip(outcome.class_ids, outcome.scores, strict=True)
            ]
            answers.append(Answer(file, predictions))
        return answers
    finally:
        await model.stop()


def show(answers: Iterator[Answer], as_json: bool) -> int:
    """Print the answers, as a table or as one JSON document; how many of them are errors."""
    known = list(answers)
    if as_json:
        document = [
            {"file": str(answer.file)}
            | ({"error": answer.error} if answer.error else {"predictions": answer.predictions})
            for answer in known
        ]
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        _print_table(known)
    return sum(bool(answer.error) for answer in known)


def ask_ready(url: str, wait_s: float) -> tuple[bool, str]:
    """Whether the server says that it is ready, and its words; asks again for `wait_s` seconds."""
    give_up_at = time.monotonic() + wait_s
    while True:
        ready, said = _ask_once(url)
        if ready or time.monotonic() >= give_up_at:
            return ready, said
        time.sleep(0.2)


def own_url() -> str:
    """Where `topfive serve` would listen, by the environment and the settings file."""
    from service import settings

    effective, _ = settings.load({})
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(effective.host, effective.host)  # noqa: S104
    return f"http://{host}:{effective.port}"


def _ask_once(url: str) -> tuple[bool, str]:
    try:
        reply = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
    except httpx.HTTPError as error:
        return False, f"{url} does not answer: {error}"
    return reply.status_code == 200, reply.text


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TopfiveError(f"{file}: {error.strerror}", "name readable image files") from error


def _answer(file: Path, reply: httpx.Response) -> Answer:
    try:
        body = reply.json()
    except ValueError:
        body = {"error": f"status {reply.status_code}, and no JSON: {reply.text[:100]!r}"}
    if reply.status_code != 200:
        return Answer(file, [], str(body.get("error", body)))
    return Answer(file, body["results"][0]["predictions"])


def _print_table(answers: list[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "#", "score", "label", "wnid")
    for answer in answers:
        name = answer.file.name
        if answer.error:
            table.add_row(name, "", "", f"error: {answer.error}", "", end_section=True)
        for place, prediction in enumerate(answer.predictions, 1):
            table.add_row(
                name if place == 1 else "",
                str(place),
                f"{prediction['score']:.4f}",
                prediction["label"],
                prediction["wnid"],
                end_section=place == len(answer.predictions),
            )
    Console().print(table)
