"""`make screenshots`: the page at / in Chromium, as pictures, and how fast it answers.

The pictures are of a desktop and a phone, light and dark, with one and with nine images, and of a
device that fails and recovers. Printed are the size of the page, and the time from the start of the
navigation to the five bars of a sample photo that is clicked as soon as it can be.
"""

import argparse
import itertools
import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from service.api.http.page import FOLDER
from tests.support.browser import chromium, opened
from tests.support.paths import PHOTOS, ROOT
from tests.support.serving import Service, serving

FORMS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
RUNS = 5
CLICK = """addEventListener("load", () => {
    new MutationObserver(() => {
        if (document.querySelectorAll(".bars li").length === 5) {
            window.answeredAt ??= performance.now();
        }
    }).observe(document, { childList: true, subtree: true });
    document.querySelector("[data-sample='cat.jpg']").click();
});"""
"""Clicks a sample photo as soon as the page is loaded, and notes when its five bars are there."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--artifact", type=Path, required=True, help="The artifact to serve.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the pictures.")
    parser.add_argument("--only", default="", help="Only pictures whose name contains this text.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    texts = [path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")]
    size = sum(path.stat().st_size for path in texts)
    print(f"HTML, CSS, JS and icon: {size} bytes in {len(texts)} files")
    flags = ("--restart-delay-s", "3")
    with serving(options.artifact, *flags) as service, chromium() as browser:
        for form, scheme in itertools.product(FORMS, ("light", "dark")):
            name = f"{form}-{scheme}"
            if options.only in name:
                take(browser, service.url, options.output, name)
        if options.only in "failing":
            take_failing(browser, service, options.output)
        if not options.only:
            seconds = [first_answer_s(browser, service.url) for _ in range(RUNS)]
            print(f"time to the first answer: {statistics.median(seconds) * 1000:.0f} ms (median)")
    return 0


def photos() -> list[Path]:
    """Return nine photos: the shipped ones, and if they are here the first six of TOPFIVE_DATA."""
    data = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data") / "photos"
    more = sorted(data.glob("n*.JPEG"))[:24:4]
    shipped = sorted(PHOTOS.iterdir())
    return [*shipped, *(more or shipped * 2)]


def take(browser: Browser, url: str, folder: Path, name: str) -> None:
    """Take the pictures of one form and colour scheme: empty, with one image, with nine."""
    form, scheme = name.split("-")
    with opened(browser, url, color_scheme=scheme, **FORMS[form]) as found:
        page = found.page
        page.wait_for_selector("[data-state=ready].state")
        page.wait_for_timeout(1500)
        picture(page, folder / f"{name}-empty.png")
        page.click("[data-sample='cat.jpg']")
        page.wait_for_selector("[data-outcome=answered]")
        page.wait_for_timeout(1200)
        picture(page, folder / f"{name}-one.png")
        page.set_input_files("#choose", photos())
        page.wait_for_selector(".card:nth-child(9)")
        page.wait_for_selector(".card.waiting", state="detached")
        page.wait_for_timeout(1200)
        picture(page, folder / f"{name}-nine.png")


def take_failing(browser: Browser, service: Service, folder: Path) -> None:
    """Take the pictures of a device that is killed, and of its way back."""
    with opened(browser, service.url, color_scheme="light", **FORMS["desktop"]) as found:
        page = found.page
        page.wait_for_selector(".devices [data-state=ready]")
        [host] = service.hosts()
        os.kill(host, signal.SIGKILL)
        page.wait_for_selector(".devices [data-state=waiting]")
        page.click("[data-sample='coffee.jpg']")
        page.wait_for_timeout(500)
        picture(page, folder / "failing-1-waiting.png")
        page.wait_for_selector(".devices [data-state=ready]", timeout=60_000)
        page.wait_for_selector("[data-outcome=answered]", timeout=60_000)
        page.wait_for_timeout(700)
        picture(page, folder / "failing-2-recovered.png")


def first_answer_s(browser: Browser, url: str) -> float:
    """Return the seconds from the start of the navigation to five bars, with an empty cache."""
    with opened(browser, "about:blank") as found:
        found.page.add_init_script(CLICK)
        found.page.goto(url)
        found.page.wait_for_selector(".bars li:nth-child(5)")
        return float(found.page.evaluate("window.answeredAt")) / 1000


def picture(page: Page, path: Path) -> None:
    page.screenshot(path=path, full_page=True)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
