"""Pages of other origins in Chromium: an allowed one reads the answer, another one does not."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from service.tools import key_file
from service.tools.key_file import NewKey
from tests.support import pictures, tiny
from tests.support.browser import browsing, opened
from tests.support.serving import serving

# With a key and a type that a form cannot send: the browser asks with a preflight first.
CLASSIFY = """async ([url, key, bytes]) => {
    const headers = { "Content-Type": "image/png", "Authorization": `Bearer ${key}` };
    try {
        const answer = await fetch(url + "/classify", {
            method: "POST", headers, body: new Uint8Array(bytes),
        });
        const fields = await answer.json();
        return {
            status: answer.status,
            labels: fields.results?.[0].predictions.length,
            code: fields.code,
            timing: answer.headers.get("server-timing"),
            id: answer.headers.get("x-request-id"),
        };
    } catch (error) {
        return { error: String(error) };
    }
}"""


class _Nothing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another origin</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from browsing()


@pytest.fixture
def origins() -> Iterator[tuple[str, str]]:
    """Yield the origins of two pages that are not the service's."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nothing) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    first, second = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield first, second
    for server in servers:
        server.shutdown()
        server.server_close()


def test_another_origin(browser: Browser, origins: tuple[str, str], tmp_path: Path) -> None:
    """The allowed page reads answers, errors and headers; the other one reads nothing."""
    artifact, file = tiny.write_tiny_artifact(tmp_path / "tiny"), tmp_path / "keys"
    key = key_file.add(file, NewKey("infer", "", "", "", ""))
    allowed, other = origins
    flags = ("--cors-origins", allowed, "--keys-file", str(file), "--access-log")
    with serving(artifact, *flags) as service:

        def ask(origin: str, sent: str) -> Any:
            with opened(browser, origin) as found:
                image = list(pictures.encoded(seed=1))
                return found.page.evaluate(CLASSIFY, [service.url, sent, image])

        answered = ask(allowed, key)
        assert (answered["status"], answered["labels"]) == (200, 5)
        assert "compute;dur=" in answered["timing"] and answered["id"]
        refused = ask(allowed, "wrong")
        assert (refused["status"], refused["code"]) == (401, "unauthenticated")
        assert "Failed to fetch" in ask(other, key)["error"]
    # The other page's request was never sent: its preflight was refused.
    sent = [line["status"] for line in service.log if line.get("method") == "POST"]
    assert sent == [200, 401]
