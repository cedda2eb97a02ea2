"""`topfive reload`: have a running service load the models that have changed, and wait for it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from service.errors import SettingsError, Unreachable
from service.tools.client import START_IT, check_key, json_object, server

POLL_S = 0.2
"""Seconds between two looks whether the service has finished."""


def reload(url: str, pid: int | None, wait_s: float) -> dict[str, Any]:
    """Send SIGHUP to the service, and return what GET /model says when it has reloaded.

    Without `url` it is the server of this machine's settings.
    Without `pid` the only `topfive serve` of this user on this machine is meant. Raise
    SettingsError if there is none or there are several, Unreachable if the service at `url` does
    not answer, or has not finished within `wait_s` seconds.
    """
    pid = _service() if pid is None else pid
    # One connection stays with one worker, whose reloads are counted.
    url, options = server(url)
    with httpx.Client(base_url=url, timeout=10, **options) as http:
        # One that runs already may have looked before the change: it does not count.
        before = _reloads(http)["asked"]
        _hang_up(pid)
        give_up_at = time.monotonic() + wait_s
        while time.monotonic() < give_up_at:
            if (reloads := _reloads(http))["done"] > before:
                return reloads
            time.sleep(POLL_S)
    raise Unreachable(
        f"The service has not reloaded within {wait_s:g} s.",
        "See its log for the events model_loading and model_refused, or give more --wait-s.",
    )


def _reloads(http: httpx.Client) -> dict[str, Any]:
    try:
        reply = http.get("/model")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{http.base_url} does not answer: {error}", START_IT) from error
    check_key(reply, str(http.base_url))
    state = json_object(reply)
    if "reloads" not in state:
        raise Unreachable(f"{http.base_url} is not a service of this version.", START_IT)
    reloads: dict[str, Any] = state["reloads"] | {"models": state["models"]}
    return reloads


def _hang_up(pid: int) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        if ignored & 1 << (signal.SIGHUP - 1):
            raise SettingsError(
                f"Process {pid} ignores SIGHUP: it was started under nohup.",
                "Serve with --poll-models-s, or start the service without nohup.",
            )
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise SettingsError(
            f"Process {pid} cannot be sent a signal: {error.strerror}",
            "Name the process of topfive serve with --pid, as its user or root.",
        ) from error


def _service() -> int:
    found = list(_services())
    if len(found) == 1:
        return found[0]
    if not found:
        raise SettingsError("No topfive serve runs here as this user.", "Name it with --pid.")
    raise SettingsError(
        f"Several services run here: {', '.join(map(str, found))}.", "Name one with --pid."
    )


def _services() -> Iterator[int]:
    """Yield the processes of this user that are `topfive serve`, from proc(5)."""
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdecimal() or folder.stat().st_uid != os.geteuid():
                continue
            words = folder.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        # As the script itself, or as an argument of its interpreter.
        names = [word.rpartition(b"/")[2] for word in words[:2]]
        if b"topfive" in names and words[names.index(b"topfive") + 1] == b"serve":
            yield int(folder.name)
