"""A server that replaces topfive's, and sends the answers of a test."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from service.artifact import Label

CLASSES = tuple(Label(f"n{number:08d}", f"class {number}") for number in range(10))
Reply = tuple[int, dict[str, Any], dict[str, str]]
MODEL = {"name": "stub", "version": "1"}


def ranking(version: str = "1", count: int = 5) -> Reply:
    predictions = [
        {"class_id": at, "wnid": label.wnid, "label": label.names, "score": 0.1}
        for at, label in enumerate(CLASSES[:count])
    ]
    model = MODEL | {"version": version}
    return 200, {"model": model, "results": [{"predictions": predictions}]}, {}


BUSY: Reply = (503, {"code": "overloaded", "detail": "full"}, {"retry-after": "1"})
REFUSED: Reply = (503, {"code": "device_failed", "detail": "twice"}, {"retry-after": "1"})


class Stub(http.server.ThreadingHTTPServer):
    """A server that answers images with these answers in order, and then repeats the last one."""

    daemon_threads = True

    def __init__(self, *replies: Reply | None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.starting: list[Reply] = []
        self.replies = list(replies)
        self.asked: list[float] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


def stubs() -> Iterator[Callable[..., Stub]]:
    """Yield a function that starts a Stub with these replies, and stop all of them at the end."""
    started = []

    def start(*replies: Reply | None, port: int = 0) -> Stub:
        server = Stub(*replies, port=port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._send((200, {"model": {"output": {"classes": 10}, "preprocessing": {}}}, {}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if "top_k=10" in self.path:
            self._send(self.server.starting.pop() if self.server.starting else ranking(count=10))
            return
        self.server.asked.append(time.monotonic())
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply is not None:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        status, fields, headers = reply
        body = json.dumps(fields).encode()
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
