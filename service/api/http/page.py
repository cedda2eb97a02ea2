"""The page at `/` for people, and its files below /page/.

The files are read into memory at the start. Nothing of the page comes from another host, and its
policy allows nothing that is not a file of its own: no inline script, no inline style.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.api.http.answering import as_json
from service.api.http.negotiation import names
from service.api.http.openapi import get
from service.api.http.problem import no_route
from service.api.http.schema_protocols import Alive

FOLDER = Path(__file__).with_name("page_files")
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=(), camera=(self)",
    # A browser asks each time whether the file has changed, so an update is seen at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, with the headers of its answer."""

    content: bytes
    headers: dict[str, str]

    def answer(self, http: Request) -> Response:
        """Return the file, or 304 if the client has it."""
        known = http.headers.get("if-none-match", "")
        if self.headers["etag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            headers = {name: text for name, text in self.headers.items() if name != "content-type"}
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=self.headers)


def router() -> APIRouter:
    """Return the routes of the page, of its files, and of the liveness of V1 at the same path."""
    files = {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}
    index = files.pop(INDEX)
    routes = APIRouter()

    @get(
        routes,
        "/",
        "The page for people if Accept names text/html; else the liveness of the V1 protocol",
        Alive,
        ({"status": "alive"}, None),
        "v1",
    )
    async def page(http: Request) -> Response:
        wants_page = names(http.headers.get("accept", ""), "text/html")
        answer = index.answer(http) if wants_page else as_json({"status": "alive"})
        answer.headers["vary"] = "Accept"
        return answer

    @routes.get("/page/{name}", include_in_schema=False)
    async def file(http: Request, name: str) -> Response:
        if name not in files:
            raise no_route(http.url.path)
        return files[name].answer(http)

    return routes


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return PageFile(content, {**HEADERS, "content-type": MEDIA_TYPES[path.suffix], "etag": etag})
