"""The page at `/` over HTTP: what is negotiated, its headers, its files, its size."""

import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api.http.page import FOLDER, MEDIA_TYPES
from service.artifact import read_manifest
from tests.support import pictures, tiny
from tests.support.paths import ROOT
from tests.support.serving import Service, serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
MAX_BYTES = 100_000
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
TEXTS = [path for path in FILES if path.suffix in (".html", ".css", ".js", ".svg")]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tiny.write_tiny_artifact(tmp_path_factory.mktemp("page") / "tiny")) as running:
        yield running


def get(service: Service, path: str, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.http.get(path, headers=names)


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "Text/HTML; q=0.1, application/json"])
def test_a_browser_gets_the_page(service: Service, accept: str) -> None:
    """For GET and HEAD; a cache keeps it apart from the JSON."""
    reply = get(service, "/", accept=accept)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.text == (FOLDER / "index.html").read_text()
    assert reply.headers["vary"] == "Accept"
    head = service.http.head("/", headers={"accept": accept})
    assert (head.content, head.headers["content-length"]) == (b"", str(len(reply.content)))


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "application/json", "text/*", "text/html;q=0", "application/json, text/plain, */*"],
)
def test_a_program_gets_the_liveness_of_v1(service: Service, accept: str) -> None:
    """It is what the path was before there was a page."""
    reply = get(service, "/", accept=accept)
    assert (reply.status_code, reply.json()) == (200, {"status": "alive"})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["vary"] == "Accept"
    assert "content-security-policy" not in reply.headers


def test_no_accept_is_json(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.endswith(b'{"status":"alive"}')


def test_the_headers_of_a_page(service: Service) -> None:
    """The page and each of its files have the policy; no other answer has it."""
    for path in ("/", *(f"/page/{file.name}" for file in FILES if file.suffix != ".html")):
        reply = get(service, path, accept=BROWSER)
        assert reply.status_code == 200
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["permissions-policy"] == (
            "geolocation=(), microphone=(), camera=(self)"
        )
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["cache-control"] == "no-cache"
    for path in ("/docs", "/model", "/page/nothing.js"):
        assert "content-security-policy" not in get(service, path, accept=BROWSER).headers


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_file_is_sent_again_only_if_it_has_changed(service: Service, file: Path) -> None:
    """By its ETag, in a list and weak, too."""
    path = "/" if file.name == "index.html" else f"/page/{file.name}"
    reply = get(service, path, accept=BROWSER)
    assert reply.content == file.read_bytes()
    assert reply.headers["content-type"] == MEDIA_TYPES[file.suffix]
    etag = reply.headers["etag"]
    assert etag == f'"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"'
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = get(service, path, accept=BROWSER, if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["cache-control"] == "no-cache"
    assert get(service, path, accept=BROWSER, if_none_match='"other"').status_code == 200


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "..%2fpage.py", "%2e%2e/page.py", "page.js/", ""]
)
def test_other_files_are_not_found(service: Service, name: str) -> None:
    reply = get(service, f"/page/{name}")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


def test_the_page_counts_as_administration(service: Service) -> None:
    counted = "topfive_http_requests_total"
    before = [service.metric(counted, route=route) for route in ("admin", "other")]
    get(service, "/page/page.js")
    get(service, "/page/nothing.js")
    after = [service.metric(counted, route=route) for route in ("admin", "other")]
    assert after[1] == before[1]
    # The first look at the metrics, and perhaps the second one, count themselves.
    assert after[0] - before[0] >= 4


def test_the_page_is_small() -> None:
    """HTML, CSS and JavaScript together, without the photos."""
    assert sum(path.stat().st_size for path in TEXTS) < MAX_BYTES


def test_every_reference_is_to_a_file_of_the_page() -> None:
    """No script, style, picture or module is missing, and none is unused."""
    index = (FOLDER / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', index))
    for script in FOLDER.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert named == {path.name for path in FILES} - {"index.html"}


def test_nothing_comes_from_elsewhere_or_is_inline() -> None:
    """The policy would stop it; and text never becomes markup."""
    for path in TEXTS:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), path
    index = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! type=\"module\" src=)", index)


def test_an_installation_has_the_files() -> None:
    """They are data of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    packed = {path for pattern in patterns for path in (ROOT / "service").glob(pattern)}
    assert set(FILES) <= packed


def test_the_state_that_the_page_shows(service: Service) -> None:
    """A device counts images of requests and names its last check; there is no reason if ready."""
    before = service.http.get("/model").json()["statistics"]["devices"][0]["images"]
    files = [("image", ("x", pictures.encoded(seed=seed))) for seed in range(3)]
    service.http.post("/classify", files=files).raise_for_status()
    state = service.http.get("/model").json()
    [device] = state["statistics"]["devices"]
    assert device["images"] == before + 3
    assert device["last_check"]["kind"] in ("self_test", "probe")
    assert 0 <= device["last_check"]["seconds_ago"] < 60
    assert device["last_failure"] is None
    assert (state["reason"], state["accuracy"]) == ("", None)
    assert state["statistics"]["bodies"]["max_body_bytes"] == 16 << 20


def report(version: str) -> str:
    share = '{"correct": 8, "accuracy": 0.8, "wilson_95": [0.49, 0.94]}'
    return (
        f'{{"model": {{"name": "x", "version": "{version}"}}, "labels": {{"file": "val.txt"}},'
        f' "images": {{"asked": 11, "written": 10}}, "top1": {share}, "top5": {share}}}'
    )


@pytest.mark.parametrize("fault", ["", "version", "text", "share"])
def test_a_report_of_the_accuracy(fault: str, tmp_path: Path) -> None:
    """The report.json of an evaluation is shown; a wrong one is logged, and the model is served."""
    folder = tiny.write_tiny_artifact(tmp_path / "tiny")
    version = read_manifest(folder).version
    text = report("0" * 12 if fault == "version" else version)
    text = {"text": "\xff no JSON", "share": text.replace("0.8", "80.0")}.get(fault, text)
    (folder / "accuracy.json").write_text(text, encoding="latin-1")
    with serving(folder) as service:
        found = service.http.get("/model").json()
    assert found["models"][0]["accuracy"] == found["accuracy"]
    warnings = [line for line in service.log if line["event"] == "accuracy_ignored"]
    if fault:
        assert found["accuracy"] is None
        [warning] = warnings
        assert "accuracy.json" in warning["detail"] and "report.json" in warning["remedy"]
    else:
        share = {"accuracy": 0.8, "wilson_95": [0.49, 0.94]}
        assert found["accuracy"] == {
            "top1": share, "top5": share, "images": 10, "labels": "val.txt",
        }  # fmt: skip
        assert not warnings
