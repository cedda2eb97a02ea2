"""POST /classify over a real socket: every kind of body, and the errors of bad ones."""

import asyncio
import base64
import gzip
import json
import re
import shlex
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from service.api.http import payload
from service.api.http.body import BodyReader
from service.api.http.middleware import Headers
from service.errors import (
    BodyTimeout,
    Forbidden,
    Malformed,
    TooLarge,
    Undecodable,
    UnsupportedMedia,
)
from tests.support import pictures, tiny
from tests.support.serving import Service, serving

MAX_PIXELS = 1_000_000
MAX_IMAGES = 4


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    flags = ("--max-pixels", str(MAX_PIXELS), "--max-images", str(MAX_IMAGES))
    with serving(artifact, *flags) as running:
        yield running


def post(service: Service, body: bytes, content_type: str = "", **headers: str) -> httpx.Response:
    """POST `body`, with a Content-Type unless it is empty."""
    typed = {"content-type": content_type} if content_type else {}
    return service.http.post("/classify", content=body, headers=typed | headers)


def post_json(service: Service, images: object) -> httpx.Response:
    return post(service, json.dumps({"images": images}).encode(), "application/json")


def b64(seed: int = 0) -> dict[str, str]:
    return {"b64": base64.b64encode(pictures.encoded("PNG", seed)).decode()}


def scores(predictions: list[dict[str, Any]]) -> np.ndarray:
    """Return the scores in the order of class ids, of predictions of all classes."""
    return np.array([p["score"] for p in sorted(predictions, key=lambda p: p["class_id"])])


def winners(reply: httpx.Response) -> list[int]:
    """Return the best class of each image."""
    return [result["predictions"][0]["class_id"] for result in reply.json()["results"]]


def expected_winners(*seeds: int) -> list[int]:
    """Return the best classes that numpy computes for the tiny artifact."""
    rows = np.array([pictures.pixels(seed) for seed in seeds])
    return [int(row.argmax()) for row in tiny.probabilities(rows)]


def assert_problem(reply: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """Check the status, the code and words of the detail, and return the problem."""
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    for word in words:
        assert word in reply.json()["detail"], reply.text
    return reply.json()


KINDS = [
    ("image/png", "PNG"), ("image/bmp", "BMP"), ("image/gif", "GIF"),
    ("image/webp", "WEBP"), ("image/jpeg", "JPEG"),
]  # fmt: skip


@pytest.mark.parametrize(("content_type", "kind"), KINDS)
def test_raw_bodies_of_each_type(service: Service, content_type: str, kind: str) -> None:
    """Each image type is accepted under its name, as octet-stream and without a type."""
    body = pictures.encoded(kind)
    replies = [post(service, body, name) for name in (content_type, "application/octet-stream", "")]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert replies[0].json()["results"] == replies[1].json()["results"]
    assert replies[0].json()["results"] == replies[2].json()["results"]


def test_scores_are_those_of_the_network(service: Service) -> None:
    """All probabilities agree with numpy's, and come best first with their labels."""
    reply = service.http.post("/classify?top_k=10", content=pictures.encoded())
    predictions = reply.json()["results"][0]["predictions"]
    expected = tiny.probabilities(pictures.pixels()[None])[0]
    assert np.abs(scores(predictions) - expected).max() < 1e-5
    assert [p["class_id"] for p in predictions] == list(np.argsort(-expected))
    assert all(p["wnid"] == f"n{p['class_id']:08d}" for p in predictions)
    assert all(p["label"] == f"class {p['class_id']}" for p in predictions)


def test_answer_names_the_model(service: Service) -> None:
    """The answer has the model's name and version, and the request's id."""
    reply = post(service, pictures.encoded())
    manifest = service.http.get("/model").json()["model"]
    assert reply.json()["model"] == {"name": "tiny", "version": manifest["version"]}
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"model", "request_id", "results"}


def test_the_bytes_decide_not_the_declared_type(service: Service) -> None:
    """A PNG that is declared as a JPEG is classified."""
    reply = post(service, pictures.encoded("PNG"), "IMAGE/JPEG; q=1")
    assert winners(reply) == expected_winners(0)


@pytest.mark.parametrize(
    "content_type", ["image/jpg", "image/pjpeg", "image/x-png", "image/tiff", "Image/*; q=1"]
)
def test_any_image_type_is_accepted(service: Service, content_type: str) -> None:
    """Other names of image types are accepted, and the bytes decide the format."""
    assert winners(post(service, pictures.encoded("PNG"), content_type)) == expected_winners(0)
    error = assert_problem(post(service, b"II*\0...", content_type), 415, "unsupported_media")
    assert "TIFF" in error["detail"]


UNDECLARED = "application/x-www-form-urlencoded"


def curl(service: Service, *arguments: str, query: str = "") -> httpx.Response:
    """Return the answer that curl receives."""
    command = ["curl", "-s", "-w", "%{stderr}%{http_code}", f"{service.url}/classify{query}"]
    done = subprocess.run([*command, *arguments], capture_output=True, check=True)
    return httpx.Response(int(done.stderr), content=done.stdout)


@pytest.mark.parametrize("kind", [kind for _, kind in KINDS])
def test_curl_without_a_type(service: Service, kind: str, tmp_path: Path) -> None:
    """An image that curl declares as a form's fields is classified, in each format."""
    file = tmp_path / "image"
    file.write_bytes(pictures.encoded(kind, seed=7))
    typed = curl(service, "-H", "Content-Type: image/jpeg", "--data-binary", f"@{file}")
    untyped = curl(service, "--data-binary", f"@{file}")
    assert untyped.status_code == 200
    assert untyped.json()["results"] == typed.json()["results"]


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        (b"image=cat.jpg", "-H 'Content-Type: application/octet-stream' --data-binary @FILE"),
        (b"image=cat.jpg", "-F image=@FILE"),
        (b"II*\0...", "-F image=@FILE"),
        (json.dumps({"images": [b64()]}).encode(), "-H 'Content-Type: application/json'"),
    ],
)
def test_the_remedy_for_curl_without_a_type(service: Service, body: bytes, flag: str) -> None:
    """A body that does not begin as an image is refused with 415 and the flag to add."""
    reply = post(service, body, f"{UNDECLARED}; charset=utf-8")
    assert flag in assert_problem(reply, 415, "unsupported_media", UNDECLARED)["remedy"]


def test_the_flags_of_the_remedies_work(service: Service, tmp_path: Path) -> None:
    """The remedies' commands are right, with a file in the place of FILE."""
    image, document = tmp_path / "image", tmp_path / "document"
    image.write_bytes(pictures.encoded(seed=3))
    document.write_text(json.dumps({"images": [b64(3)]}))
    flags = {
        image: post(service, b"image=cat.jpg", UNDECLARED).json()["remedy"],
        document: post(service, b"{}", UNDECLARED).json()["remedy"],
    }
    commands = 0
    for file, remedy in flags.items():
        for command in re.findall(r"curl (.+?)(?:,|$)", remedy):
            reply = curl(service, *shlex.split(command.replace("FILE", str(file))))
            assert winners(reply) == expected_winners(3), command
            commands += 1
    assert commands == 3


@pytest.mark.parametrize("kind", [kind for _, kind in KINDS])
def test_curl_that_strips_bytes_is_refused(service: Service, kind: str, tmp_path: Path) -> None:
    """curl -d strips bytes of the image, and what is left is refused."""
    file = tmp_path / "image"
    file.write_bytes(pictures.encoded(kind))
    reply = curl(service, "-d", f"@{file}")
    assert reply.status_code == (415 if kind in ("PNG", "WEBP") else 422)
    assert "--data-binary @FILE" in reply.json()["remedy"]


@pytest.mark.parametrize("content_type", ["text/plain", "x", "image", "multipart/mixed"])
def test_other_media_types_are_refused(service: Service, content_type: str) -> None:
    """The error is 415, with the accepted types in Accept."""
    reply = post(service, pictures.encoded(), content_type)
    assert_problem(reply, 415, "unsupported_media", content_type)
    assert "image/webp" in reply.headers["accept"]
    assert "multipart/form-data" in reply.headers["accept"]


@pytest.mark.parametrize(
    "content_type", ["", "image/png", UNDECLARED, "multipart/form-data; boundary=b"]
)
def test_an_empty_body_is_malformed(service: Service, content_type: str) -> None:
    """The error is 400 for each declared type."""
    assert_problem(post(service, b"", content_type), 400, "malformed")


def test_form_with_several_parts_keeps_their_order(service: Service) -> None:
    """Parts named image and file are answered in the order in which they were sent."""
    names = ("image", "file", "image", "file")
    parts = [(name, ("x.png", pictures.encoded(seed=i))) for i, name in enumerate(names)]
    reply = service.http.post("/classify", files=parts)
    assert winners(reply) == expected_winners(0, 1, 2, 3)


NAMES = ("image", "images", "file", "files")


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}[]" for name in NAMES)])
def test_names_of_parts(service: Service, name: str) -> None:
    """Clients may name a list of files as PHP and axios do, with brackets."""
    parts = [(name, ("x.png", pictures.encoded(seed=seed))) for seed in (2, 1)]
    assert winners(service.http.post("/classify", files=parts)) == expected_winners(2, 1)


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def part(headers: bytes, seed: int = 0) -> bytes:
    return headers + b"\r\n\r\n" + pictures.encoded(seed=seed)


DISPOSITION = b'Content-Disposition: form-data; name="image"'
FORM = "multipart/form-data; boundary=b"


def test_form_by_hand(service: Service) -> None:
    """A form may have no file names, lower-case headers, an epilogue and a quoted boundary."""
    parts = (part(b"content-disposition:form-data;name=image", 1), part(DISPOSITION, 2))
    body = form(*parts) + b"epilogue"
    reply = post(service, body, 'multipart/form-data; boundary="b"')
    assert winners(reply) == expected_winners(1, 2)


FOLDED = b'Content-Disposition: form-data;\r\n name="image";\r\n\tfilename="x"\r\nX:\r\n y'


@pytest.mark.parametrize(
    "body",
    [
        b"This is a form in MIME.\r\nRead on.\r\n" + form(part(DISPOSITION, 4)),
        b"\r\n\r\n" + form(part(DISPOSITION, 4)),
        b"a text - with -- dashes and --b in it\r\n" + form(part(DISPOSITION, 4)),
        b"lines of another kind\n" + form(part(DISPOSITION, 4)),
        form(part(DISPOSITION, 4)) + b"an epilogue\r\n--b\r\nof two lines",
        form(part(DISPOSITION, 4), end=b"--b--"),
        form(part(DISPOSITION, 4)).replace(b"--b\r\n", b"--b \t\r\n"),
        form(part(FOLDED, 4)),
    ],
    ids=["preamble", "lines", "dashes", "lf", "epilogue", "no line", "padding", "folded"],
)
def test_forms_of_rfc_2046(service: Service, body: bytes) -> None:
    """Bytes before the first boundary and after the last are ignored. Headers may be folded."""
    assert winners(post(service, body, FORM)) == expected_winners(4)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"no form at all", "does not contain the boundary"),
        (form(part(DISPOSITION), end=b""), "before its last boundary"),
        (form(part(DISPOSITION)).replace(b"--b\r\n", b"--bad\r\n"), "not alone on its line"),
        (form(part(DISPOSITION)).replace(b"\r\n", b"\n"), "does not end in CRLF"),
        (form(DISPOSITION), "have no end (an empty line) within 4096 bytes"),
        (form(part(b"Content-Type image/png")), "no colon"),
    ],
)
def test_the_error_names_what_is_wrong_with_a_form(
    service: Service, body: bytes, detail: str
) -> None:
    """The detail names the mistake, and the remedy says how to send a form."""
    problem = assert_problem(post(service, body, FORM), 400, "malformed", detail)
    assert "curl -F image=@FILE" in problem["remedy"]


def test_bytes_that_look_like_a_boundary_stay_in_the_image() -> None:
    """A boundary is one only at the beginning of a line."""
    image = b"x--b\n--b--\r--b\r\n-b\r\n--"
    body = form(DISPOSITION + b"\r\n\r\n" + image)
    assert payload.split(body, FORM, 1) == [image]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", form(part(DISPOSITION))),
        ("multipart/form-data; boundary=", form(part(DISPOSITION))),
        (f"multipart/form-data; boundary={'b' * 1000}", form(part(DISPOSITION))),
        (FORM, form(part(DISPOSITION))[:-20]),
        (FORM, form(part(DISPOSITION), end=b"")),
        (FORM, form(part(DISPOSITION), part(DISPOSITION))[:-60]),
        (FORM, b"no form at all"),
        (FORM, b"--b--\r\n"),
        (FORM, form(part(b'Content-Disposition: form-data; name="photo"'))),
        (FORM, form(part(b'Content-Disposition: form-data; name="image[0]"'))),
        (FORM, form(part(b'Content-Disposition: form-data; name="image[][]"'))),
        (FORM, form(part(b'Content-Disposition: form-data; name="[]"'))),
        (FORM, form(part(b"Content-Disposition: form-data"))),
        (FORM, form(part(b"Content-Type: image/png"))),
        (FORM, form(part(b'X: name="image"'))),
        (FORM, form(b"\r\n" + pictures.encoded())),
        (FORM, form(part(b"no colon"))),
        (FORM, form(part(b"X-Long: " + b"x" * 100_000 + b"\r\n" + DISPOSITION))),
        (FORM, form(part(DISPOSITION + b"\r\nX: y" * 1000))),
        (FORM, form(part(DISPOSITION.replace(b"image", b"im\xff\x00age")))),
    ],
)
def test_bad_forms_are_malformed(service: Service, content_type: str, body: bytes) -> None:
    """The error is 400 for a bad boundary, a truncated or empty form, and other names of parts."""
    assert_problem(post(service, body, content_type), 400, "malformed")


def test_unknown_part_is_named(service: Service) -> None:
    """The error has the name of the part and the accepted names."""
    body = form(part(b'Content-Disposition: form-data; name="photo"'))
    error = assert_problem(post(service, body, FORM), 400, "malformed", "'photo'")
    assert "image, images, file or files" in error["remedy"]


def test_top_k_is_no_field_of_a_form(service: Service) -> None:
    """A part named top_k is refused, and the remedy says where top_k belongs."""
    parts = [("image", ("x", pictures.encoded()))]
    reply = service.http.post("/classify", files=parts, data={"top_k": "3"})
    assert "?top_k=3" in assert_problem(reply, 400, "malformed", "'top_k'")["remedy"]


def test_json_images_in_order(service: Service) -> None:
    """Several images in base64 are answered in order."""
    reply = post_json(service, [b64(3), b64(1), b64(2)])
    assert winners(reply) == expected_winners(3, 1, 2)


def wrapped(data: bytes) -> str:
    """Return base64 in lines of 76 characters, as `base64` of coreutils and MIME write it."""
    return base64.encodebytes(data).decode()


def urlsafe(data: bytes) -> str:
    """Return base64 in the alphabet of URLs without padding, as TensorFlow's clients send it."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


SPELLINGS: list[Callable[[bytes], str]] = [
    lambda data: base64.b64encode(data).decode(),
    wrapped,
    lambda data: wrapped(data).replace("\n", "\r\n"),
    lambda data: f"\t {wrapped(data)} ",
    lambda data: base64.b64encode(data).decode().rstrip("="),
    urlsafe,
    lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}",
    lambda data: f"DATA:image/jpeg;charset=utf-8;Base64,{wrapped(data)}",
    lambda data: f"data:;base64,{urlsafe(data)}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("length", [0, 1, 2])
def test_spellings_of_base64(
    service: Service, spelling: Callable[[bytes], str], length: int
) -> None:
    """Each spelling is accepted as a string and as b64, with each length of padding."""
    file = pictures.encoded("BMP", 5)
    file += bytes(-len(file) % 3 + length)  # bytes after the pixels of a BMP are ignored
    text = spelling(file)
    assert winners(post_json(service, [text, {"b64": text}])) == expected_winners(5, 5)


@pytest.mark.parametrize("path", ["", "/images/0"])
@pytest.mark.parametrize(
    ("member", "escaped"), [("topk", "topk"), ("top_k", "top_k"), ("image", "image"),
                            ("instances", "instances"), ("a/~ü", "a~1~0%C3%BC")],
)  # fmt: skip
def test_unknown_members_are_named(service: Service, path: str, member: str, escaped: str) -> None:
    """The error is 400 and has the member's name and the place of top_k, with or without images."""
    for good in ([b64()], []):
        document = {"images": [{**b64(), member: 3}]} if path else {"images": good, member: 3}
        reply = post(service, json.dumps(document).encode(), "application/json")
        error = assert_problem(reply, 400, "malformed", repr(member))
        assert error["errors"][0]["pointer"] == f"#{path}/{escaped}"
        assert "?top_k=3" in error["remedy"]


@pytest.mark.parametrize(
    ("images", "pointer"),
    [
        ("x", "#/images"),
        ({"b64": ""}, "#/images"),
        (None, "#/images"),
        ([b64(), {"b64": 5}], "#/images/1/b64"),
        ([{"b65": "x"}], "#/images/0/b65"),
        ([{}], "#/images/0/b64"),
        (["x"], "#/images/0"),
        ([None], "#/images/0"),
        ([["aGVsbG8="]], "#/images/0"),
        ([b64(), "https://example.org/cat.jpg"], "#/images/1"),
        (["data:image/png,%89PNG"], "#/images/0"),
        (["data:image/png;base64"], "#/images/0"),
        ([b64(), {"b64": "data:image/svg+xml;utf8,<svg/>"}], "#/images/1/b64"),
        ([{"b64": "not base64!"}], "#/images/0/b64"),
        ([b64(), b64(), {"b64": "abcde"}], "#/images/2/b64"),
        (["aGVsbG8=aGVsbG8="], "#/images/0"),
        ([{"b64": "ü"}], "#/images/0/b64"),
        ([{"b64": "aGVs!bG8="}], "#/images/0/b64"),
    ],
)
def test_wrong_members_are_pointed_at(service: Service, images: object, pointer: str) -> None:
    """The error is 400 with a JSON pointer to the first wrong member."""
    error = assert_problem(post_json(service, images), 400, "malformed", pointer)
    assert error["errors"][0]["pointer"] == pointer
    assert error["errors"][0]["detail"]


URL = "https://images.example.org/cat.jpg"


@pytest.mark.parametrize("images", [[{"url": URL}], [b64(), {"url": URL}, {"url": ""}]])
def test_urls_are_forbidden_by_default(service: Service, images: list[dict[str, str]]) -> None:
    """The error is 403, names the first URL, and says what to send and what to ask for."""
    pointer = f"#/images/{len(images) // 2}/url"
    error = assert_problem(post_json(service, images), 403, "forbidden", pointer)
    assert error["errors"][0]["pointer"] == pointer
    assert "b64" in error["remedy"]
    assert "--fetch-hosts" in error["remedy"]


@pytest.mark.parametrize(
    ("image", "pointer"),
    [
        ({"url": 5}, "#/images/0/url"),
        ({"url": None}, "#/images/0/url"),
        ({"url": URL, **b64()}, "#/images/0"),
        ({"url": URL, "headers": {}}, "#/images/0/headers"),
        (URL, "#/images/0"),
    ],
)
def test_urls_that_are_malformed(image: object, pointer: str) -> None:
    """With URLs allowed, an image has one URL and nothing else, and a string is base64."""
    body = json.dumps({"images": [image]}).encode()
    with pytest.raises(Malformed) as malformed:
        payload.split(body, "application/json", MAX_IMAGES, urls=True)
    assert malformed.value.detail.startswith(f"{pointer}: ")


def test_urls_stay_in_their_place() -> None:
    """Files and URLs are in one list."""
    body = json.dumps({"images": [{"url": URL}, {"b64": "AAAA"}, {"url": "x"}]}).encode()
    found = payload.split(body, "application/json", MAX_IMAGES, urls=True)
    assert found == [URL, bytes(3), "x"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"5", b'"images"', b"{}", b'{"images": []}', b'{"images": [{"b64": ""}]}',
     b"\xff", b"null", b"[" * 100_000],
)  # fmt: skip
def test_bad_json_is_malformed(service: Service, body: bytes) -> None:
    """The error is 400 for a body that is not JSON, has no images, or is empty."""
    assert_problem(post(service, body, "application/json"), 400, "malformed")


def test_compressed_bodies(service: Service) -> None:
    """An image and JSON may be sent with gzip, and with deflate in zlib's format."""
    image, document = pictures.encoded(seed=5), json.dumps({"images": [b64(6)]}).encode()
    zipped = {"content-encoding": "gzip"}
    deflated = {"content-encoding": "Deflate"}
    assert winners(post(service, gzip.compress(image), **zipped)) == expected_winners(5)
    assert winners(post(service, zlib.compress(image), **deflated)) == expected_winners(5)
    reply = post(service, gzip.compress(document), "application/json", **zipped)
    assert winners(reply) == expected_winners(6)


@pytest.mark.parametrize(
    "coding", ["x-gzip", "X-GZIP", "GZip", "identity , x-gzip", "gzip,identity", ",gzip"]
)
def test_spellings_of_gzip(service: Service, coding: str) -> None:
    """x-gzip is gzip (RFC 9110 8.4.1.3), and a list may contain identity."""
    reply = post(service, gzip.compress(pictures.encoded(seed=5)), **{"content-encoding": coding})
    assert winners(reply) == expected_winners(5)


@pytest.mark.parametrize("coding", ["identity", "Identity", "identity, identity"])
def test_identity_is_no_coding(service: Service, coding: str) -> None:
    """A body with the coding identity is read unchanged."""
    reply = post(service, pictures.encoded(seed=5), **{"content-encoding": coding})
    assert winners(reply) == expected_winners(5)


ZIPPED = gzip.compress(pictures.encoded(), mtime=0)  # the name of the test is the same in each run


@pytest.mark.parametrize(
    "body", [b"not gzip", ZIPPED[:-9], ZIPPED + b"more", ZIPPED + ZIPPED, b"", ZIPPED[:5]]
)
def test_broken_compression_is_malformed(service: Service, body: bytes) -> None:
    """The error is 400 for bytes that are not gzip, end early, or continue after the end."""
    assert_problem(post(service, body, **{"content-encoding": "gzip"}), 400, "malformed")


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x-gzip, deflate", "zstd", ""])
def test_unknown_codings_are_refused(service: Service, coding: str) -> None:
    """The error is 415 with the accepted codings in Accept-Encoding."""
    reply = post(service, pictures.encoded(), **{"content-encoding": coding})
    assert_problem(reply, 415, "unsupported_media", "Content-Encoding")
    assert reply.headers["accept-encoding"] == "gzip, deflate, identity"


@pytest.mark.parametrize("top_k", ["1", "5", "10"])
def test_top_k(service: Service, top_k: str) -> None:
    """The answer has as many predictions as top_k, the best first."""
    reply = service.http.post("/classify", params={"top_k": top_k}, content=pictures.encoded())
    values = [p["score"] for p in reply.json()["results"][0]["predictions"]]
    assert len(values) == int(top_k)
    assert values == sorted(values, reverse=True)


def test_top_k_is_five_by_default(service: Service) -> None:
    """Without top_k the answer has five predictions."""
    assert len(post(service, pictures.encoded()).json()["results"][0]["predictions"]) == 5


@pytest.mark.parametrize("top_k", ["11", "1000", "0011", "9" * 5000, "0" * 30 + "10"])
def test_top_k_above_the_classes_is_all_of_them(service: Service, top_k: str) -> None:
    """A large top_k is no error: clients send 5 to a network of two classes."""
    reply = service.http.post("/classify", params={"top_k": top_k}, content=pictures.encoded())
    assert len(reply.json()["results"][0]["predictions"]) == tiny.CLASSES


@pytest.mark.parametrize(
    "top_k", ["0", "-1", "abc", "", "1.0", " 5", "٥", "1e1", "0" * 30, "x" * 5000, "1" * 20 + "x"]
)
def test_bad_top_k_is_malformed(service: Service, top_k: str) -> None:
    """The error is 400 for a top_k below 1, and for one that is no integer."""
    reply = service.http.post("/classify", params={"top_k": top_k}, content=pictures.encoded())
    assert_problem(reply, 400, "malformed", "top_k")


@pytest.mark.parametrize(
    ("query", "name"),
    [("topk=3", "topk"), ("topK=", "topK"), ("top_k=3&k=2", "k"), ("TOP_K=3", "TOP_K"),
     ("top_k%20=3", "top_k "), ("x", "x"), ("=3", ""), ("x" * 5000, "x" * 40)],
)  # fmt: skip
def test_unknown_query_parameters_are_named(service: Service, query: str, name: str) -> None:
    """The error is 400 and names the parameter and the one that exists."""
    reply = service.http.post(f"/classify?{query}", content=pictures.encoded())
    error = assert_problem(reply, 400, "malformed", f"query parameter {name!r}")
    assert "/classify?top_k=3" in error["remedy"]


def test_a_repeated_top_k_is_malformed(service: Service) -> None:
    """The error is 400, since one of the two values would be ignored."""
    reply = service.http.post("/classify?top_k=3&top_k=3", content=pictures.encoded())
    assert_problem(reply, 400, "malformed", "top_k is given 2 times")


@pytest.mark.parametrize("query", ["", "?", "?&", "?top_k=3&"])
def test_an_empty_query_is_accepted(service: Service, query: str) -> None:
    """A query may be empty or end in an empty parameter."""
    reply = service.http.post(f"{service.url}/classify{query}", content=pictures.encoded())
    assert winners(reply) == expected_winners(0)


def bad_images() -> list[tuple[bytes, int, str]]:
    """Return files that are refused, each with its status and code."""
    return [
        (b"hello, I am no image", 415, "unsupported_media"),
        (pictures.encoded("JPEG")[:-60], 422, "undecodable"),
        (pictures.vast_png(1001, 1000), 413, "too_many_pixels"),
    ]


@pytest.mark.parametrize(("file", "status", "code"), bad_images())
def test_a_single_bad_image_has_its_own_status(
    service: Service, file: bytes, status: int, code: str
) -> None:
    """The error of a request with one image is the image's, with a remedy."""
    error = assert_problem(post(service, file), status, code)
    assert error["remedy"]


@pytest.mark.parametrize(
    ("file", "status", "code"), [*bad_images(), (b"", 415, "unsupported_media")]
)
def test_one_bad_image_among_several_fails_alone(
    service: Service, file: bytes, status: int, code: str
) -> None:
    """The answer is 200 with an error in the image's place, and predictions for the others."""
    files = [pictures.encoded(seed=1), file, pictures.encoded(seed=2)]
    reply = service.http.post("/classify", files=[("file", ("x", data)) for data in files])
    assert reply.status_code == 200
    first, second, third = reply.json()["results"]
    assert set(second) == {"error"}
    assert (second["error"]["status"], second["error"]["code"]) == (status, code)
    found = [result["predictions"][0]["class_id"] for result in (first, third)]
    assert found == expected_winners(1, 2)


def test_several_images_all_bad(service: Service) -> None:
    """The error is 422, with the error of each image and its pointer."""
    parts = [("image", ("x", data)) for data, _, _ in bad_images()]
    error = assert_problem(service.http.post("/classify", files=parts), 422, "undecodable")
    assert [one["pointer"] for one in error["errors"]] == [f"#/images/{i}" for i in range(3)]
    assert [one["status"] for one in error["errors"]] == [status for _, status, _ in bad_images()]
    assert all(one["detail"] for one in error["errors"])


def test_too_many_images(service: Service) -> None:
    """The error is 413 with the limit, for forms and JSON. The limit itself is accepted."""
    count = MAX_IMAGES + 1
    parts = [("image", ("x", pictures.encoded()))] * count
    for reply in (service.http.post("/classify", files=parts), post_json(service, [b64()] * count)):
        error = assert_problem(reply, 413, "too_large", str(MAX_IMAGES))
        assert error["limit_images"] == MAX_IMAGES
        assert reply.headers["connection"] == "close"
    assert winners(post_json(service, [b64(1)] * MAX_IMAGES)) == expected_winners(1) * MAX_IMAGES


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, form(*[part(DISPOSITION)] * 5, end=b"and then nothing")),
        ("application/json", b'{"images": [1, 2, 3, 4, 5]}'),
        ("application/json", b'{"images": [{"b64": "", "more": [' + b"[]," * 1000 + b"[]]}]}"),
        ("application/json", b'{"images": [""], "more": {' + b'"":{},' * 1000 + b'"": 1}}'),
        ("application/json", b'{"images": [' + b'"",' * 1000 + b'""]}'),
    ],
)
def test_images_are_counted_before_they_are_read(content_type: str, body: bytes) -> None:
    """An image too many is refused before the body is read any further.

    Neither the end of the form is searched, nor base64 decoded, nor an object made for each
    image, because a small body can name very many.
    """
    with pytest.raises(TooLarge):
        payload.split(body, content_type, 4)


FRAGMENTS = st.sampled_from(
    [b"--b", b"\r\n", b"--", b"\n", DISPOSITION, b": ", b"x", b"\r\n\r\n", b'name="',
     b'{"images": [', b'{"b64": "', b'{"url": "', b'"}', b"]}", b'"', b"data:", b";base64,", b",",
     b"\x00", b"\xff", b";", b"="]
)  # fmt: skip
CONTENT_TYPES = st.one_of(
    st.just(FORM),
    st.just("application/json"),
    st.just(UNDECLARED),
    st.text(st.characters(max_codepoint=255), max_size=20).map(lambda text: f"{FORM}{text}"),
    st.text(st.characters(max_codepoint=255), max_size=20),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(FRAGMENTS | st.binary(max_size=8)).map(b"".join), CONTENT_TYPES)
def test_any_bytes_are_files_or_refused(body: bytes, content_type: str) -> None:
    """Any body of any type is split into files, or refused with a detail."""
    try:
        found = payload.split(body, content_type, MAX_IMAGES)
    except (Forbidden, Malformed, TooLarge, Undecodable, UnsupportedMedia) as error:
        assert error.detail
    else:
        assert 1 <= len(found) <= MAX_IMAGES


async def test_a_body_slower_than_the_default_deadline() -> None:
    """The remedy names the operator's setting, since the header can only shorten the deadline."""

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    reader = BodyReader(1000, 1000, 10.0, 0.02)
    headers = Headers({"type": "http", "headers": []})
    with reader.reservation() as reservation, pytest.raises(BodyTimeout) as late:
        await reader.receive(headers, receive, 0.02, reservation)
    operator = "ask the operator to raise --default-deadline-ms."
    assert late.value.remedy == f"Send the body faster, or {operator}"
