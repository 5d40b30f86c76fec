"""The depth ladder and the live chain of the dashboard in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Request, expect

from services.gateway.channel_feeds import DepthFeed
from services.market_data.clock import SystemClock
from services.market_data.updates import DEPTH_CROSSED, DEPTH_STALE
from tests.support.books import ToldBooks
from tests.support.eventually import FACTOR
from tests.support.gateway import running_gateway
from tests.support.pages import Pages, browser_pages
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with browser_pages() as found:
        yield found


async def test_the_ladder_of_the_daemon_is_live_and_as_deep_as_is_chosen(
    stack: Stack, tmp_path: Path, pages: Pages
) -> None:
    async with (
        stack.daemon(tmp_path / "state", DHAN_DEPTH_20_URL=stack.dhan.depth_20_url) as daemon,
        pages.open(f"{daemon.runtime['api_url']}/#NSE:RELIANCE") as page,
    ):
        await page.get_by_role("button", name="Depth", exact=True).click()
        await expect(page.locator("#depth-title")).to_have_text("Depth of NSE:RELIANCE")
        rows = page.locator("#ladder tr")
        await expect(rows).to_have_count(5, timeout=20_000 * FACTOR)
        await expect(page.locator("#depth-facts")).to_contain_text("from DHAN")
        cells = rows.first.locator("td")
        bid, ask = cells.nth(2), cells.nth(3)
        await expect(bid).to_have_text(re.compile(r"^[\d,]+\.\d+$"))
        first = await page.locator("#ladder").inner_text()
        await expect(page.locator("#ladder")).not_to_have_text(first, use_inner_text=True)
        lower, higher = [float((await cell.inner_text()).replace(",", "")) for cell in (bid, ask)]
        assert lower < higher
        widest = await page.locator("#ladder .size").evaluate_all(
            "cells => Math.max(...cells.map(cell => parseInt(cell.style.getPropertyValue('--share'))))"
        )
        assert widest == 100, "the largest quantity has the longest bar"

        await page.locator("#depth-levels").select_option("20")
        await expect(rows).to_have_count(20, timeout=30_000 * FACTOR)
        await page.locator("#depth-levels").select_option("5")
        await expect(rows).to_have_count(5)
        # Another instrument is chosen: the ladder goes along, and one that has no book says so.
        await page.evaluate("location.hash = '#NASDAQ:AAPL'")
        await expect(page.locator("#depth-title")).to_have_text("Depth of NASDAQ:AAPL")
        await expect(page.locator("#depth-hint")).to_contain_text("Nobody here has the depth")
        await expect(rows).to_have_count(0)
        await page.keyboard.press("Escape")
        await expect(page.locator("#depth-panel")).to_be_hidden()
        await expect(page.locator("#chart-panel")).to_be_visible()
    assert pages.complaints == []


async def test_the_chain_changes_by_itself_over_the_channel(
    stack: Stack, tmp_path: Path, pages: Pages
) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        if "/chain?" in request.url:
            asked.append(request.url)

    async with (
        stack.daemon(tmp_path / "state") as daemon,
        pages.open(f"{daemon.runtime['api_url']}/#NSE:NIFTY") as page,
    ):
        page.on("request", note)
        await page.get_by_role("button", name="Options", exact=True).click()
        await expect(page.locator("#chain tr.atm")).to_have_count(1, timeout=30_000 * FACTOR)
        first = await page.locator("#chain").inner_text()
        await expect(page.locator("#chain")).not_to_have_text(
            first, use_inner_text=True, timeout=30_000 * FACTOR
        )
        second = await page.locator("#chain").inner_text()
        await expect(page.locator("#chain")).not_to_have_text(
            second, use_inner_text=True, timeout=30_000 * FACTOR
        )
        assert len(asked) == 1, "the first one is asked for, the others are told"
        await expect(page.locator("#options-source")).to_contain_text("from DHAN")
        picker = page.locator("#expiry")
        if await picker.locator("option").count() > 1:
            await picker.select_option(index=1)
            await expect(page.locator("#chain tr.atm")).to_have_count(1, timeout=30_000 * FACTOR)
        await page.keyboard.press("Escape")
        await expect(page.locator("#options-panel")).to_be_hidden()
    assert pages.complaints == []


async def test_a_crossed_and_a_stale_book_are_flagged_and_a_refusal_is_said(pages: Pages) -> None:
    books = ToldBooks()
    books.at_ms = SystemClock().now_ms()
    async with running_gateway() as rig, pages.open(f"{rig.url}/#NSE:TCS") as page:
        DepthFeed(rig.gateway.channels, books)
        books.tell("NSE:TCS", 100.0)
        await page.get_by_role("button", name="Depth", exact=True).click()
        await expect(page.locator("#ladder tr")).to_have_count(5)
        cells = await page.locator("#ladder tr").first.locator("td").all_inner_texts()
        assert cells == ["1", "10", "100.00", "101.00", "20", "2"], (
            "bids left, asks right, best in the middle"
        )
        await expect(page.locator("#depth-facts")).to_contain_text("spread 1.00 · 60 bid, 110 asked")
        await expect(page.locator("#depth-flags .pill")).to_have_count(0)
        books.tell("NSE:TCS", 101.0, DEPTH_CROSSED | DEPTH_STALE)
        flags = page.locator("#depth-flags .pill")
        await expect(flags).to_have_count(2)
        await expect(flags.first).to_have_attribute("data-flag", "crossed")
        await expect(flags.first).to_have_text("crossed: do not trade on it")
        await expect(flags.last).to_have_attribute("data-state", "bad")
        await expect(page.locator("#depth-panel")).to_have_class(re.compile(r"\bold\b"))
        books.tell("NSE:TCS", 102.0)
        await expect(flags).to_have_count(0)
        # The connection breaks: the ladder is back with it.
        for session in list(rig.gateway._sockets.sessions):
            session.abort(1006, "cut by the test")
        await expect(page.locator("#link")).to_have_text("Live")
        books.tell("NSE:TCS", 103.0)
        await expect(page.locator("#ladder tr td.level.rise").first).to_have_text("103.00")
        await page.evaluate("location.hash = '#NSE:RELIANCE'")
        await expect(page.locator("#depth-hint")).to_have_text(
            "Nobody here has the depth of this instrument."
        )
        assert books.wanted == [], "what is shown no longer is wanted no longer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_the_ladder_without_scrolling_sideways(pages: Pages, scheme: str) -> None:
    books = ToldBooks()
    async with (
        running_gateway() as rig,
        pages.open(f"{rig.url}/#NSE:TCS", width=360, height=740, color_scheme=scheme) as page,
    ):
        DepthFeed(rig.gateway.channels, books)
        books.tell("NSE:TCS", 123_456.0)
        await page.get_by_role("button", name="Depth", exact=True).click()
        await expect(page.locator("#ladder tr")).to_have_count(5)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await expect(page.locator("#ladder tr").first.locator("td.minor").first).to_be_hidden()
        ink, back = await page.locator("#ladder td.level").first.evaluate(
            """cell => {
                const panel = getComputedStyle(document.getElementById("depth-panel")).backgroundColor;
                return [getComputedStyle(cell).color, panel];
            }"""
        )
        assert ink != back
        await expect(page.get_by_role("table").filter(has=page.locator("#ladder"))).to_be_visible()
        await expect(page.get_by_label("Levels")).to_have_value("5")
