"""The client on a real `topfive serve`, against the answers that numpy computes."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import pictures, tiny
from tests.support.serving import Service, serving
from topfive_client import (
    AsyncClient,
    Client,
    ImageRejected,
    ModelVersion,
    RequestRejected,
    Result,
)

IMAGES = 150
FILES = [pictures.encoded(seed=seed) for seed in range(IMAGES)]
PIXELS = np.stack([pictures.pixels(seed) for seed in range(IMAGES)])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


def check(results: list[Result], top_k: int = 5) -> None:
    """Fail unless the results are those of PIXELS by numpy, in order."""
    expected = tiny.probabilities(PIXELS)
    assert len(results) == len(expected)
    for result, scores in zip(results, expected, strict=True):
        assert result.error is None
        best = np.argsort(-scores)[:top_k]
        assert [one.class_id for one in result.predictions] == list(best)
        found = [one.score for one in result.predictions]
        assert found == pytest.approx(scores[best], abs=1e-4)


async def all_of(results: AsyncIterator[Result]) -> list[Result]:
    return [result async for result in results]


def test_one_image(client: Client, service: Service) -> None:
    """The result has everything that the answer has."""
    result = client.classify(FILES[0], top_k=1)
    [best] = result.predictions
    answer = service.http.post("/classify?top_k=1", content=FILES[0]).json()
    assert vars(best) == answer["results"][0]["predictions"][0]
    assert result.model == ModelVersion(**answer["model"]) == client.model()
    assert result.request_id
    assert result.request_id != answer["request_id"]


def test_every_form_of_an_image_is_answered_the_same(client: Client, tmp_path: Path) -> None:
    """A path, bytes, an image of Pillow and an array, alone and together, also for asyncio."""
    file = tmp_path / "0.png"
    file.write_bytes(FILES[0])
    forms = [file, str(file), FILES[0], Image.open(file), PIXELS[0], PIXELS[0][::-1][::-1]]
    expected = client.classify(file)

    async def classified(url: str) -> list[Result]:
        async with AsyncClient(url) as http:
            alone = [await http.classify(form) for form in forms]
            return alone + await all_of(http.classify(forms))

    assert [client.classify(form) for form in forms] == [expected] * len(forms)
    assert list(client.classify(forms)) == [expected] * len(forms)
    assert asyncio.run(classified(client._calls._url)) == [expected] * 2 * len(forms)


def test_a_turned_photo_of_pillow_is_answered_as_its_file(client: Client, tmp_path: Path) -> None:
    """The orientation goes with the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[0]).save(tmp_path / "turned.png", exif=exif)
    turned = client.classify(tmp_path / "turned.png")
    assert client.classify(Image.open(tmp_path / "turned.png")) == turned
    assert client.classify(PIXELS[0][::-1, ::-1]) == turned != client.classify(PIXELS[0])


@pytest.mark.parametrize("concurrency", [1, 4])
def test_many_images(service: Service, concurrency: int) -> None:
    """They are answered in their order, in fewer requests than images."""
    before = service.metric("topfive_http_requests_total", route="classify")
    with Client(service.url, concurrency=concurrency) as client:
        check(list(client.classify(iter(FILES))))
    requests = service.metric("topfive_http_requests_total", route="classify") - before
    assert requests == -(-IMAGES // 16)


async def test_many_images_with_asyncio(service: Service) -> None:
    """An iterable and an asynchronous one, and two of them at the same time."""

    async def files() -> AsyncIterator[bytes]:
        for file in FILES:
            yield file

    async with AsyncClient(service.url) as client:
        both = await asyncio.gather(
            all_of(client.classify(FILES, top_k=3)), all_of(client.classify(files()))
        )
        assert await client.ready()
        assert (await client.model()).name == "tiny"
    check(both[0], top_k=3)
    check(both[1])


BAD = {
    3: b"no image",
    17: b"",
    18: "/nowhere.png",
    40: FILES[40][:-60],
    41: PIXELS[41].astype(np.float32),
    42: object(),
}
CODES = ["unsupported_media", "empty", "unreadable", "undecodable"] + ["unsupported_image"] * 2


async def test_bad_images_have_errors_in_their_places(service: Service, client: Client) -> None:
    """The other images have their predictions, and asyncio is the same."""
    images = [BAD.get(at, file) for at, file in enumerate(FILES)]
    good = list(client.classify(FILES))
    async with AsyncClient(service.url) as other:
        both = [list(client.classify(images)), await all_of(other.classify(images))]
    for results in both:
        assert [at for at, result in enumerate(results) if result.error] == list(BAD)
        assert [result.error.code for result in results if result.error] == CODES
        assert all(one == good[at] for at, one in enumerate(results) if at not in BAD)
        assert results[40].error.request_id == results[40].request_id
        assert results[3].error.remedy


def test_only_bad_images(client: Client, service: Service) -> None:
    """A request without any prediction is answered 422 with all reasons, and not sent again."""
    before = service.metric("topfive_http_requests_total", route="classify")
    results = list(client.classify([b"x", FILES[0][:-60], b"y"]))
    assert service.metric("topfive_http_requests_total", route="classify") == before + 1
    codes = [result.error.code for result in results if result.error]
    assert codes == ["unsupported_media", "undecodable", "unsupported_media"]
    [alone] = client.classify([b"x"])
    assert alone.error
    assert alone.error.code == "unsupported_media"
    assert list(client.classify([])) == []


async def test_the_error_of_one_image_is_raised(service: Service, client: Client) -> None:
    """It has the facts of the answer."""
    with pytest.raises(ImageRejected) as caught:
        client.classify(FILES[0][:-60])
    assert (caught.value.code, caught.value.status) == ("undecodable", 422)
    assert caught.value.request_id
    async with AsyncClient(service.url) as other:
        with pytest.raises(ImageRejected, match="cannot be read"):
            await other.classify(Path("/nowhere"))


def test_a_rejected_request_is_raised(service: Service) -> None:
    """Nothing is sent again when every such request is rejected."""
    for url, model in ((f"{service.url}/nowhere", None), (service.url, "unknown")):
        with Client(url) as client:
            with pytest.raises(RequestRejected) as caught:
                client.classify(FILES[0], model=model)
            assert caught.value.status in (400, 404)
            with pytest.raises(RequestRejected):
                list(client.classify(FILES, model=model))


@pytest.mark.parametrize(
    "limits", [("--max-images", "3"), ("--rows", "5"), ("--max-body-bytes", "4000")], ids=str
)
def test_the_limits_of_the_server_are_learnt(artifact: Path, limits: tuple[str, str]) -> None:
    """Packs are split until they are accepted; later packs are small enough from the start."""
    with serving(artifact, *limits) as service, Client(service.url, concurrency=1) as client:
        check(list(client.classify(FILES)))
        refusals = service.metric("topfive_refusals_total", reason="too_large")
        # Of one iteration only the packs that were made before the first answer are too large.
        assert 1 <= refusals <= 3
        check(list(client.classify(FILES)))
        assert service.metric("topfive_refusals_total", reason="too_large") == refusals


def test_an_image_above_the_limit_loses_no_other(artifact: Path) -> None:
    """The server's reason is in its place, and later packs are not smaller than needed."""
    large = np.zeros((100, 100, 3), np.uint8)
    with (
        serving(artifact, "--max-body-bytes", "20000") as service,
        Client(service.url) as client,
    ):
        results = list(client.classify([*FILES[:5], large, *FILES[5:]]))
        [error] = [result.error for result in results if result.error]
        assert (error.code, error.status) == ("too_large", 413)
        assert results.pop(5).error is error
        check(results)


def test_an_iterable_is_consumed_as_it_is_sent(client: Client) -> None:
    """An endless generator is read a bounded number ahead, and not after the caller stops."""
    pulled = 0

    def endless() -> Iterator[bytes]:
        nonlocal pulled
        for pulled in itertools.count(1):
            yield FILES[pulled % IMAGES]

    results = client.classify(endless())
    assert pulled == 0
    first = next(results)
    assert first == client.classify(FILES[1])
    assert pulled <= 5 * 16
    for _ in range(1000):
        next(results)
        ahead = pulled
    assert 1000 < ahead <= 1001 + 5 * 16
    results.close()
    assert pulled == ahead


def test_an_error_of_the_iterable_is_the_callers(client: Client) -> None:
    """It is raised as it is."""

    def broken() -> Iterator[bytes]:
        yield FILES[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.classify(broken()))


def test_a_file_of_any_size_of_form(client: Client) -> None:
    """Every byte value and line ends in an image leave the form as it is."""
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, "BMP")
    images = [file.getvalue(), b"\r\n" + FILES[0], FILES[0] + b"\r\n--", bytes(range(256)) * 9]
    results = list(client.classify(images))
    assert results[0] == results[2] == client.classify(FILES[0])
    assert [bool(result.error) for result in results] == [False, True, False, True]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://"])
def test_a_url_that_cannot_be_used(url: str) -> None:
    """The error is raised before anything is sent."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8080"):
        Client(url)


def test_options_that_cannot_be_used(client: Client) -> None:
    """They are the caller's mistakes."""
    with pytest.raises(ValueError, match="top_k is 0"):
        client.classify(FILES, top_k=0)
    with pytest.raises(ValueError, match="deadline_s is -1"):
        client.classify(FILES[0], deadline_s=-1)
    with pytest.raises(ValueError, match="newline"):
        Client("http://127.0.0.1", api_key="secret\n")
    for key in ("", " ", " secret", "secret "):
        with pytest.raises(ValueError, match="empty or begins or ends with a space"):
            Client("http://127.0.0.1", api_key=key)
    with pytest.raises(ValueError, match="concurrency is 0"):
        AsyncClient("http://127.0.0.1", concurrency=0)
    with pytest.raises(TypeError):
        client.classify(3)
