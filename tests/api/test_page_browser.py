"""The page at `/` in Chromium: as a person uses it, by hand, by keyboard and by a screen reader."""

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from service.api.http.page import FOLDER
from service.tools import key_file
from service.tools.key_file import NewKey
from tests.support import pictures, tiny
from tests.support.browser import browsing, opened
from tests.support.serving import Service, serving

CAT = FOLDER / "cat.jpg"
DROP = """([names, contents, type]) => {
    const transfer = new DataTransfer();
    names.forEach((name, at) => {
        const bytes = Uint8Array.from(atob(contents[at]), (each) => each.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
    });
    const target = document.querySelector("#zone");
    for (const kind of ["dragover", "drop"]) {
        const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
        target.dispatchEvent(new DragEvent(kind, options));
    }
}"""
HOSTILE = '<img src=x onerror="window.violations.push(1)">.png'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from browsing()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("page") / "tiny")
    with serving(artifact, "--restart-delay-s", "1", "--max-body-bytes", "100000") as running:
        yield running


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    """Drop these files on the page, by a real DataTransfer."""
    names = [name for name, _ in files]
    contents = [base64.b64encode(content).decode() for _, content in files]
    page.evaluate(DROP, [names, contents, ""])


def labels(page: Page, card: int = 0) -> list[str]:
    return page.locator(".card").nth(card).locator(".label").all_inner_texts()


def expected(service: Service, content: bytes) -> list[str]:
    """Return the labels that /classify answers to a program."""
    headers = {"content-type": "application/octet-stream"}
    [result] = service.http.post("/classify", content=content, headers=headers).json()["results"]
    return [each["label"] for each in result["predictions"]]


def await_answers(page: Page, count: int = 1) -> None:
    expect(page.locator(".card[data-outcome]")).to_have_count(count)


def test_a_dropped_file_gets_its_five_labels(browser: Browser, service: Service) -> None:
    """With the stages of this answer; its name is text, whatever it contains."""
    with opened(browser, service.url) as found:
        page, content = found.page, pictures.encoded(seed=5)
        drop(page, (HOSTILE, content))
        await_answers(page)
        assert labels(page) == expected(service, content)
        assert page.locator(".file").inner_text() == HOSTILE
        stages = page.locator(".stages th")
        expect(stages).to_have_count(8)
        expect(stages.first).to_contain_text("receive")
        expect(page.locator(".stages summary")).to_contain_text("cpu0 · batch of 1")
        expect(page.locator("#spoken")).to_contain_text(labels(page)[0])
        expect(page.locator("#state")).to_have_text("Ready · 1 of 1 device")
        expect(page.locator("#model")).to_contain_text("Short side to 16 by bilinear")
        assert found.faults() == []


def test_several_files_are_a_grid(browser: Browser, service: Service) -> None:
    """Each has its own answer, or the reason why it has none and what to do."""
    images = [pictures.encoded(seed=seed) for seed in range(8)]
    files = [(f"{at}.png", content) for at, content in enumerate(images)]
    with opened(browser, service.url) as found:
        page = found.page
        drop(page, *files, ("broken.jpg", pictures.encoded("JPEG")[:-60]))
        await_answers(page, 9)
        for at, content in enumerate(images):
            assert labels(page, at) == expected(service, content)
        broken = page.locator(".card").nth(8)
        expect(broken.locator(".message strong")).not_to_be_empty()
        expect(broken.locator(".remedy")).not_to_be_empty()
        expect(page.locator("#spoken")).to_have_text("8 images answered, 1 not answered.")
        page.click("#clear")
        expect(page.locator(".card")).to_have_count(0)


EXPLAINED = [
    ("IMG_0001.HEIC", b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", "Most Compatible"),
    ("photo.jpg", b"\0\0\0\x1cftypmif1\0\0\0\0msf1miaf", "Most Compatible"),
    ("x.heic", b"unknown bytes", "Most Compatible"),
    ("x.avif", b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1", "Export it as JPEG"),
    ("film.mp4", b"\0\0\0\x1cftypisom\0\0\0\0", "a video"),
    ("empty.png", b"", "empty"),
    ("large.bmp", b"BM" + bytes(120_000), "up to 0.1 MiB"),
]


def test_what_is_explained_before_it_is_sent(browser: Browser, service: Service) -> None:
    """A photo of an iPhone, an image in AVIF, a video, nothing, and too much."""
    with opened(browser, service.url) as found:
        page, sent = found.page, []
        page.on("request", lambda one: sent.append(one.url) if one.method == "POST" else None)
        expect(page.locator("#model")).to_contain_text("tiny")
        drop(page, *((name, content) for name, content, _ in EXPLAINED))
        await_answers(page, len(EXPLAINED))
        for message, (_, _, what) in zip(page.locator(".message").all(), EXPLAINED, strict=True):
            expect(message).to_contain_text(what)
        assert not sent
        assert page.evaluate("window.violations") == []


def test_the_keyboard_alone(browser: Browser, service: Service) -> None:
    """Tab to a sample, Enter, Tab to the stages of its answer, Enter; the tabs by arrows."""
    with opened(browser, service.url) as found:
        page = found.page
        reach(page, "[data-sample='cat.jpg']")
        page.keyboard.press("Enter")
        await_answers(page)
        assert labels(page) == expected(service, CAT.read_bytes())
        reach(page, ".stages summary")
        expect(page.locator(".stages table")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.locator(".stages table")).to_be_hidden()
        reach(page, "#tab-curl")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#snippet-text")).to_contain_text("import httpx")
        focus = page.locator(":focus")
        assert focus.get_attribute("id") == "tab-python"
        assert focus.evaluate("(each) => getComputedStyle(each).outlineStyle") == "solid"


def reach(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.locator(f"{selector}:focus").count():
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def test_axe_finds_nothing_serious(browser: Browser, service: Service) -> None:
    """With answers and an error, light and dark, and on a narrow phone.

    There targets are large enough for a finger, and nothing is wider than the page.
    """
    with opened(browser, service.url, reduced_motion="reduce") as found:
        page = found.page
        expect(page.locator("#model")).to_contain_text("tiny")
        drop(page, ("a.png", pictures.encoded()), ("b.png", b"hello"))
        await_answers(page, 2)
        page.locator(".stages summary").first.click()
        assert serious(page) == []
        page.emulate_media(color_scheme="dark")
        assert serious(page) == []
        page.set_viewport_size({"width": 320, "height": 640})
        assert serious(page) == []
        assert page.evaluate(SMALL) == []
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


SMALL = """[...document.querySelectorAll("button, a:not(.skip), select, summary, .button")]
    .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 44)
    .map((each) => each.textContent)"""
"""The targets that a finger may miss: less than 44 pixels high."""


def serious(page: Page) -> list[object]:
    """Return axe's serious and critical findings: the rule, and the elements."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        (each["id"], [node["target"] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser, tmp_path: Path) -> None:
    """It is sent as a bearer, is not in the snippets, and is forgotten on demand."""
    artifact, file = tiny.write_tiny_artifact(tmp_path / "tiny"), tmp_path / "keys"
    key = key_file.add(file, NewKey("infer", "", "", "", ""))
    with (
        serving(artifact, "--keys-file", str(file)) as service,
        opened(browser, service.url) as found,
    ):
        page = found.page
        expect(page.locator("#key-form")).to_be_visible()
        assert serious(page) == []
        page.fill("#key", key[:-4] + "0000")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("needs a valid API key")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        page.reload()
        expect(page.locator("#model")).to_contain_text("tiny")
        expect(page.locator("#access-notice")).to_be_hidden()
        drop(page, ("a.png", pictures.encoded()))
        await_answers(page)
        assert len(labels(page)) == 5
        expect(page.locator("#snippet-text")).to_contain_text("Bearer $TOPFIVE_KEY")
        assert key not in page.content()
        page.click("#forget-key")
        expect(page.locator("#key-form")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_several_models(browser: Browser, service: Service) -> None:
    """A model is chosen, sent with each image, and part of the snippets.

    A service that is open to everyone says so.
    """
    state = service.http.get("/model").json()
    [model] = state["models"]
    other = model | {"name": "other", "version": "f" * 12}
    state |= {"models": [other, model], "model": None}
    state |= {"access": {"keys": False, "public": True}}
    asked = []

    def classified(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_(url=f"{service.url}/classify")

    with opened(browser, "about:blank") as found:
        page = found.page
        page.route("**/model", lambda route: route.fulfill(json=state))
        page.route("**/classify?model=*", classified)
        page.goto(service.url)
        expect(page.locator("#model-name")).to_have_value("other")
        expect(page.locator("#access-notice")).to_contain_text("--keys-file")
        page.select_option("#model-name", "tiny")
        expect(page.locator("#snippet-text")).to_contain_text("/classify?model=tiny")
        drop(page, ("a.png", pictures.encoded()))
        await_answers(page)
        assert asked == [f"{service.url}/classify?model=tiny"]


def test_a_busy_service_and_a_lost_connection(browser: Browser, service: Service) -> None:
    """The page says that it waits, waits as long as Retry-After, and recovers by itself."""
    busy = {"code": "overloaded", "detail": "All rows are in use.", "retry_after_ms": 700}
    with opened(browser, service.url) as found:
        page, refused = found.page, []

        def once(route: Route) -> None:
            if refused:
                route.continue_()
            else:
                refused.append(route)
                route.fulfill(status=503, body=json.dumps(busy), headers={"retry-after": "1"})

        page.route("**/classify", once)
        drop(page, ("a.png", pictures.encoded()))
        expect(page.locator(".message")).to_have_text("All rows are in use. Trying again in 1 s.")
        await_answers(page)
        assert len(labels(page)) == 5
        page.context.set_offline(True)
        expect(page.locator("#connection-notice")).to_contain_text("Connection lost. Trying again")
        page.context.set_offline(False)
        expect(page.locator("#connection-notice")).to_be_hidden()
        expect(page.locator("#state")).to_have_attribute("data-state", "ready")


def test_a_device_fails_and_recovers(browser: Browser, service: Service) -> None:
    """Its line says so with the reason, and an image that is sent meanwhile is answered."""
    with opened(browser, service.url) as found:
        page = found.page
        device = page.locator("#devices li")
        expect(device).to_have_attribute("data-state", "ready")
        os.kill(service.hosts()[0], signal.SIGKILL)
        expect(device).to_contain_text("its process ended")
        drop(page, ("a.png", pictures.encoded()))
        await_answers(page)
        assert len(labels(page)) == 5
        expect(device).to_have_attribute("data-state", "ready")


def test_the_first_snippet_runs_as_printed(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    """It is the command of a shell, with this host's address."""
    (tmp_path / "photo.jpg").write_bytes(CAT.read_bytes())
    with opened(browser, service.url) as found:
        command = found.page.locator("#snippet-text").inner_text()
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    [result] = json.loads(done.stdout)["results"]
    assert [each["label"] for each in result["predictions"]] == expected(service, CAT.read_bytes())
