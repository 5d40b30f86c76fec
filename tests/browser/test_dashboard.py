"""The dashboard in a real browser, before the real daemon and simulated providers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from simulators import faults as f
from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.yahoo import YahooSimulator
from tests.support.databases import temporary_database
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import running_gateway
from tests.support.pages import Pages, browser_pages
from tests.support.stack import Stack

QUICK_JUDGE = "tests/support/quick_judge.py"
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with browser_pages() as found:
        yield found


@pytest.fixture
async def one_market(postgres_server: str, mapped_template: str, redis_url: str) -> AsyncIterator[Stack]:
    """A stack whose two vendors show the same trades, so that one can stand in for the other."""
    journal, market = Journal(), Market()
    async with (
        temporary_database(postgres_server, template_url=mapped_template) as database_url,
        DhanSimulator(rate=20.0, market=market, journal=journal) as dhan,
        YahooSimulator(rate=10.0, market=market, journal=journal) as yahoo,
    ):
        yield Stack(dhan, yahoo, journal, database_url, redis_url)


def row(page: Page, key: str) -> str:
    return f'#rows tr[data-key="{key}"]'


async def text_of(page: Page, selector: str) -> str:
    return (await page.locator(selector).first.inner_text()).strip()


async def keys_shown(page: Page) -> list[str]:
    found: list[str] = await page.locator("#rows tr[data-key]").evaluate_all(
        "rows => rows.map(r => r.dataset.key)"
    )
    return found


async def test_prices_are_live_and_the_table_is_searched_sorted_and_walked_by_key(
    stack: Stack, tmp_path: Path, pages: Pages
) -> None:
    async with (
        stack.daemon(tmp_path / "state") as daemon,
        pages.open(daemon.runtime["api_url"]) as page,
    ):
        price = page.locator(f"{row(page, 'NSE:RELIANCE')} td.price")
        await expect(price).to_have_text(re.compile(r"\d"), timeout=5_000 * FACTOR)
        first = await price.inner_text()
        await expect(price).not_to_have_text(first, timeout=5_000 * FACTOR)
        await expect(page.locator("#link")).to_have_text("Live")
        for code in ("DHAN", "YF"):
            await expect(page.locator(f'article[data-code="{code}"] .pill')).to_have_attribute(
                "data-state", "good"
            )

        await page.keyboard.press("/")
        await expect(page.locator("#search")).to_be_focused()
        await page.keyboard.type("hdfc bank")
        await expect(page.locator("#count")).to_have_text("1 of 10")
        assert await keys_shown(page) == ["NSE:HDFCBANK"], "a name is found as well as a key"
        await page.locator("#search").fill("nothing like it")
        await expect(page.locator("#table-hint")).to_have_text("Nothing matches the search.")
        await page.locator("#search").fill("")
        await page.locator("#exchange").select_option("NASDAQ")
        assert await keys_shown(page) == ["NASDAQ:AAPL", "NASDAQ:MSFT"]
        await page.locator("#exchange").select_option("")

        head = page.locator('#columns th[data-column="key"]')
        await head.get_by_role("button").click()
        await expect(head).to_have_attribute("aria-sort", "descending")
        keys = await keys_shown(page)
        assert keys == sorted(keys, reverse=True)
        await page.locator('#columns th[data-column="price"] button').click()
        await expect(page.locator("#rows tr[data-key]").first).to_have_attribute("data-key", "CRYPTO:BTC-USD")

        await head.get_by_role("button").click()
        await page.locator("#scroller").focus()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        second = (await keys_shown(page))[1]
        await expect(page.locator("#rows tr.selected")).to_have_attribute("data-key", second)
        await page.keyboard.press("Enter")
        await expect(page.locator("#chart-title")).to_have_text(second)
        assert page.url.endswith(f"#{second}")
        await page.keyboard.press("Escape")
        await expect(page.locator("#chart-panel")).to_be_hidden()
    assert pages.complaints == []


async def test_the_chart_shows_candles_its_last_bar_moves_and_options_open(
    stack: Stack, tmp_path: Path, pages: Pages
) -> None:
    async with (
        stack.daemon(tmp_path / "state", BACKFILL_MINUTE_DAYS=1) as daemon,
        pages.open(f"{daemon.runtime['api_url']}/#NSE:NIFTY", timezone_id="Asia/Kolkata") as page,
    ):
        chart = page.locator("#chart")
        await expect(page.locator("#chart-title")).to_have_text("NSE:NIFTY")
        await eventually(lambda: _bars(page), within_s=20)
        await expect(page.locator("#chart-hint")).to_be_hidden()
        last = await chart.get_attribute("data-last")
        await expect(chart).not_to_have_attribute("data-last", last or "")
        assert await chart.locator("canvas").count() > 2
        assert await chart.locator("canvas").first.evaluate(
            "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 3"
        ), "something is drawn"

        for label, seconds in (("5m", 300), ("1h", 3600), ("1d", 86_400), ("1m", 60)):
            button = page.locator("#intervals").get_by_role("button", name=label, exact=True)
            await button.click()
            await expect(button).to_have_attribute("aria-pressed", "true")
            await expect(chart).to_have_attribute("data-interval", label)

            async def begins_on_the_grid(seconds: int = seconds) -> bool:
                begins = int(((await chart.get_attribute("data-last")) or "1").split()[0])
                # Sessions begin on a quarter of an hour.
                return begins % min(seconds, 900) == 0

            # The candles of the interval come a moment after its button is down.
            await eventually(begins_on_the_grid, within_s=20)

        await page.get_by_role("button", name="Options", exact=True).click()
        await expect(page.locator("#options-title")).to_have_text("Options on NSE:NIFTY")
        await expect(page.locator("#chain tr.atm")).to_have_count(1)
        assert await page.locator("#chain tr").count() > 10
        assert await page.locator("#expiry option").count() >= 1
        await page.keyboard.press("Escape")
        await expect(page.locator("#options-panel")).to_be_hidden()
        await expect(page.locator("#chart-panel")).to_be_visible()
    assert pages.complaints == []


async def _bars(page: Page) -> bool:
    return int(await page.locator("#chart").get_attribute("data-bars") or 0) > 0


async def test_a_mute_provider_turns_amber_and_the_switch_is_told_and_marked(
    one_market: Stack, tmp_path: Path, pages: Pages
) -> None:
    async with (
        one_market.daemon(tmp_path / "state", program=QUICK_JUDGE) as daemon,
        pages.open(f"{daemon.runtime['api_url']}/#NSE:RELIANCE") as page,
    ):
        source = page.locator(f"{row(page, 'NSE:RELIANCE')} td").last
        await expect(source).to_have_text("DHAN")
        await eventually(lambda: _bars(page), within_s=20)
        await asyncio.sleep(10)  # what is usual is learned
        await one_market.dhan.inject(f.Mute())
        card = page.locator('article[data-code="DHAN"]')
        await expect(card.locator(".pill")).to_have_attribute("data-state", "warn", timeout=70_000 * FACTOR)
        await expect(card.locator(".pill")).to_have_text("silent")
        await expect(card.locator(".reason")).to_contain_text("DHAN NSE is mute")
        silent = page.locator('#events li[data-type="provider"]').filter(has_text="DHAN is silent")
        await expect(silent).to_have_count(1)
        switched = page.locator('#events li[data-type="switched"]').filter(has_text="NSE:RELIANCE")
        await expect(switched).to_contain_text("DHAN → YF", timeout=70_000 * FACTOR)
        await expect(source).to_have_text("YF delayed")
        await expect(page.locator("#chart")).to_have_attribute("aria-label", re.compile("switched"))
        # Whoever opens the page later sees it on the chart too.
        async with pages.open(f"{daemon.runtime['api_url']}/#NSE:RELIANCE") as later:
            await expect(later.locator("#chart")).to_have_attribute("aria-label", re.compile("switched"))
    assert pages.complaints == []


async def test_a_killed_daemon_shows_reconnecting_and_the_page_recovers_by_itself(
    stack: Stack, tmp_path: Path, pages: Pages
) -> None:
    first = stack.daemon(tmp_path / "state")
    async with first, contextlib.AsyncExitStack() as exits:
        port = first.port
        page = await exits.enter_async_context(pages.open(f"{first.runtime['api_url']}/#NSE:TCS"))
        price = page.locator(f"{row(page, 'NSE:TCS')} td.price")
        await expect(price).to_have_text(re.compile(r"\d"))
        await page.evaluate("window.samePage = true")
        assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
        await expect(page.locator("#link")).to_have_text("Reconnecting")
        await expect(page.locator("#notice")).to_contain_text("does not answer")
        before = await price.inner_text()
        assert re.search(r"\d", before), "the last state stays in view"
        second = stack.daemon(tmp_path / "state", API_PORT=port)
        await exits.enter_async_context(second)
        await expect(page.locator("#link")).to_have_text("Live", timeout=25_000 * FACTOR)
        await expect(page.locator("#notice")).not_to_contain_text("does not answer")
        await expect(price).not_to_have_text(before)
        assert await page.evaluate("window.samePage"), "it was not loaded again"
    refused = ("net::ERR_CONNECTION_REFUSED", "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE", "503")
    others = [said for said in pages.complaints if not any(word in said for word in refused)]
    assert others == [], "a browser reports refused connections; nothing else"


async def test_a_token_is_asked_for_refused_and_taken(pages: Pages) -> None:
    async with (
        running_gateway(tokens={"me": "correct-horse"}) as rig,
        pages.open(rig.url) as page,
    ):
        await expect(page.locator("#sign-in")).to_be_visible()
        await expect(page.locator("#scroller")).to_be_hidden()
        await expect(page.locator("#token")).to_be_focused()
        await expect(page.locator("#sign-in-error")).to_have_text("")
        await page.keyboard.type("wrong-horse")
        await page.keyboard.press("Enter")
        await expect(page.locator("#sign-in-error")).to_have_text("This token is not valid.")
        await page.locator("#token").fill("correct-horse")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#link")).to_have_text("Live")
        await expect(page.locator("#rows tr[data-key]")).to_have_count(3)
        rig.market.tick("NSE:TCS", 3210.5)
        await expect(page.locator(f"{row(page, 'NSE:TCS')} td.price")).to_have_text("3,210.50")
        assert "horse" not in page.url
        await page.get_by_role("button", name="Forget token").click()
        await expect(page.locator("#sign-in")).to_be_visible()
    others = [said for said in pages.complaints if "401" not in said]
    assert others == [], "a browser reports answers with 401; nothing else"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_never_scrolls_sideways(
    stack: Stack, tmp_path: Path, pages: Pages, scheme: str
) -> None:
    async with (
        stack.daemon(tmp_path / "state") as daemon,
        pages.open(
            f"{daemon.runtime['api_url']}/#NSE:NIFTY", width=360, height=740, color_scheme=scheme
        ) as page,
    ):
        await expect(page.locator(f"{row(page, 'NSE:NIFTY')} td.price")).to_have_text(re.compile(r"\d"))
        await page.get_by_role("button", name="Options", exact=True).click()
        await expect(page.locator("#chain tr.atm")).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        assert await page.evaluate("document.documentElement.dataset.theme") == scheme
        await page.goto(f"{daemon.runtime['api_url']}/docs")
        await expect(page.locator("#history")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
    assert pages.complaints == []


async def test_five_thousand_instruments_scroll_with_few_rows(pages: Pages) -> None:
    keys = [f"NSE:ROW{number:04}" for number in range(5_000)]
    async with running_gateway(keys) as rig, pages.open(rig.url) as page:
        await expect(page.locator("#count")).to_have_text("5,000")
        scroller = page.locator("#scroller")
        for share in (0.1, 0.5, 1.0):
            await scroller.evaluate("(node, share) => { node.scrollTop = share * node.scrollHeight; }", share)
            wanted = keys[min(4_999, int(share * 5_000) + (0 if share == 1 else 2))]
            await expect(page.locator(row(page, wanted))).to_be_visible()
            assert await page.locator("#rows tr").count() < 80
        # Only what is in view is watched, and what is in view is live.
        rig.market.tick(keys[-1], 77.25)
        await eventually(lambda: _price_of(page, keys[-1], "77.25"))
        await eventually(lambda: len(rig.backend.interest) < 120)
        took_ms = await page.evaluate(
            """async () => {
                const node = document.getElementById("scroller");
                let worst = 0;
                for (let step = 0; step < 60; step += 1) {
                    const begun = performance.now();
                    node.scrollTop = step * 900;
                    await new Promise(requestAnimationFrame);
                    worst = Math.max(worst, performance.now() - begun);
                }
                return worst;
            }"""
        )
        assert took_ms < 500 * FACTOR, "no step of scrolling stops the page"
    assert pages.complaints == []


async def _price_of(page: Page, key: str, price: str) -> bool:
    return await text_of(page, f"{row(page, key)} td.price") == price


async def test_the_interface_can_be_tried_from_its_page(pages: Pages) -> None:
    async with running_gateway() as rig, pages.open(f"{rig.url}/docs") as page:
        rig.market.tick("NSE:RELIANCE", 1234.5)
        quotes = page.locator("#quotes")
        await quotes.locator("summary").click()
        await expect(quotes.get_by_label("instruments *")).to_have_value("NSE:RELIANCE,NASDAQ:AAPL")
        await quotes.get_by_role("button", name="Send").click()
        await expect(quotes.locator("> .pill")).to_have_text("200 OK")
        await expect(quotes.locator(".answer")).to_contain_text('"last_price": 1234.5')
        await expect(quotes.locator(".curl")).to_contain_text(
            "/api/quotes?instruments=NSE%3ARELIANCE%2CNASDAQ%3AAAPL'"
        )
        stream = page.locator("#stream")
        await stream.locator("summary").click()
        await stream.get_by_role("button", name="Send").click()
        await expect(stream.locator(".answer")).to_contain_text("without end")
        switch = page.locator("#switchRoute")
        await switch.locator("summary").click()
        await switch.locator("textarea").fill('{"to": "YF", "for_s": 60}')
        await switch.get_by_role("button", name="Send").click()
        await expect(switch.locator("> .pill")).to_have_text("200 OK")
        assert rig.backend.switches[-1]["to"] == "YF"
        described = (await (await page.request.get(f"{rig.url}/openapi.json")).json())["paths"]
        assert await page.locator(".operation").count() == sum(len(item) for item in described.values())
    assert pages.complaints == []


async def test_a_daemon_without_instruments_says_what_to_run(pages: Pages) -> None:
    async with running_gateway(()) as rig, pages.open(rig.url) as page:
        await expect(page.locator("#table-hint")).to_contain_text("populate_instrument_mappings.py")
    assert pages.complaints == []
