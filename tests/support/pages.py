"""Pages of the dashboard in this machine's Chromium, driven by Playwright; what they complain of is kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from tests.support.eventually import FACTOR
from tests.support.javascript import browser_path

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic")
expect.set_options(timeout=10_000 * FACTOR)


class Pages:
    """A browser; `open` gives a page of its own context, `complaints` is what all of them said."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    @contextlib.asynccontextmanager
    async def open(
        self, url: str, *, width: int = 1280, height: int = 900, **options: Any
    ) -> AsyncIterator[Page]:
        """Open `url` in a fresh context of that size (CSS pixels); `options` are Playwright's."""
        context = await self._browser.new_context(viewport={"width": width, "height": height}, **options)
        page = await context.new_page()
        page.set_default_timeout(20_000 * FACTOR)
        page.on("console", self._heard)
        page.on("request", lambda request: self._asked(request.url))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        try:
            await page.goto(url)
            yield page
        finally:
            await context.close()

    def _asked(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:")):
            self.complaints.append(f"foreign request: {url}")

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")


@contextlib.asynccontextmanager
async def browser_pages() -> AsyncIterator[Pages]:
    """Start the machine's Chromium; skips where there is none (fails with `REQUIRE_BROWSER`)."""
    path = browser_path()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield Pages(browser)
        finally:
            await browser.close()
