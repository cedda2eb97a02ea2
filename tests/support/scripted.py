"""A server of topfive's client that gives scripted answers over real sockets."""

import contextlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

HANG_UP = None
"""The reply that ends the connection without an answer."""
ScriptedReply = tuple[int, dict[str, Any] | bytes, dict[str, str]] | None
Script = Callable[["Received"], ScriptedReply]


@dataclass(frozen=True)
class Received:
    """A request as the server received it."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def images(self) -> list[bytes]:
        """Return the images, by splitting the form at its boundary."""
        found = re.fullmatch("multipart/form-data; boundary=(.+)", self.headers["content-type"])
        if not found:
            return [self.body]
        parts = self.body.split(b"--" + found[1].encode())
        assert (parts[0], parts[-1]) == (b"", b"--\r\n")
        return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:-1]]


def answer(received: Received) -> ScriptedReply:
    """Return the answer that has the bytes of each image as its only label."""
    return 200, fields([result(image) for image in received.images]), {}


def fields(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the members of an answer."""
    model = {"name": "scripted", "version": "1"}
    return {"model": model, "request_id": "one", "results": results}


def result(image: bytes) -> dict[str, Any]:
    """Return the result of one image."""
    return {"predictions": [{"class_id": 0, "label": image.decode(), "score": 1.0}]}


def problem(status: int, code: str, **members: Any) -> ScriptedReply:
    """Return a problem document."""
    body = {"status": status, "code": code, "detail": f"It is {code}.", "remedy": "Change it."}
    return status, body | members, {"x-request-id": "failed"}


class ScriptedServer(http.server.ThreadingHTTPServer):
    """A server that answers by the scripts in their order, and then by the last one."""

    daemon_threads = True

    def __init__(self, *scripts: Script | ScriptedReply, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _ScriptedHandler)
        self.received: list[Received] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._scripts = list(scripts)
        self._lock = threading.Lock()

    def reply(self, received: Received) -> ScriptedReply:
        """Return the reply to the next request."""
        with self._lock:
            self.received.append(received)
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return script(received) if callable(script) else script


class _ScriptedHandler(http.server.BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        reply = self.server.reply(Received(self.path, headers, body))
        if reply is HANG_UP:
            self.close_connection = True
            return
        status, content, more = reply
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (more | {"content-length": str(len(encoded))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def scripted(*scripts: Script | ScriptedReply, port: int = 0) -> Iterator[ScriptedServer]:
    """Start a server with these scripts, and stop it at the end."""
    server = ScriptedServer(*scripts, port=port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
