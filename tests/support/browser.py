"""Debian's Chromium without a window, driven by playwright, and what its pages report as wrong."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
      window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium, and end it after the block. No test may await anything within the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        with browser:
            yield browser


def browsing() -> Iterator[Browser]:
    """Yield Chromium for a fixture of a module; skip its tests where it is not installed."""
    if shutil.which("chromium") is None:
        reason = "no chromium here; try: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: CI must not skip these tests")
        pytest.skip(reason)
    with chromium() as browser:
        yield browser


@dataclass
class Opened:
    """A page, with the errors of its console and of its scripts so far."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return the errors, and the violations of the page's security policy."""
        violations: list[str] = self.page.evaluate("window.violations")
        return self.errors + violations


@contextmanager
def opened(browser: Browser, url: str, **options: object) -> Iterator[Opened]:
    """Open `url` in a context of its own, with playwright's `options` of a context."""
    context: BrowserContext = browser.new_context(**options)  # type: ignore[arg-type]
    with context:
        context.add_init_script(_VIOLATIONS)
        found = Opened(context.new_page())
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on(
            "console",
            lambda line: found.errors.append(line.text) if line.type == "error" else None,
        )
        found.page.goto(url)
        yield found
