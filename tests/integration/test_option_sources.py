"""The sources of option chains against the simulated vendors: their limits, blocks and empty answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from services.errors import ProviderUnavailable
from services.history.dhan_history import DhanHistory
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.options.manager import Found, OptionsManager
from services.options.sources import option_sources
from services.options.underlyings import Underlyings
from services.pipeline.failover import NobodyAnswered
from services.rest import vendor_limits
from services.rest.quota import Quota
from simulators.dhan import DhanSimulator
from simulators.market import Market
from simulators.nse import NseSimulator
from simulators.universe import dhan_specs
from simulators.yahoo import YahooSimulator


def row(key: str, provider: str, kind: AssetClass, **more: str) -> InstrumentMapping:
    exchange, _, symbol = key.partition(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=key,
        exchange=exchange,
        symbol=symbol,
        name=symbol,
        asset_class=kind,
        currency="INR" if exchange == "NSE" else "USD",
        provider_code=provider,
        search_code=more.pop("search_code", symbol),
        **more,
    )


MAPPINGS = (
    row("NSE:NIFTY", "DHAN", AssetClass.INDEX, segment="IDX_I", security_id="13"),
    row("NSE:BANKNIFTY", "DHAN", AssetClass.INDEX, segment="IDX_I", security_id="25"),
    row("NSE:RELIANCE", "DHAN", AssetClass.EQUITY, segment="NSE_EQ", security_id="2885"),
    row("NASDAQ:AAPL", "YF", AssetClass.EQUITY),
)


class Vendors:
    """The three vendors on one market, and a manager that asks them."""

    def __init__(self) -> None:
        market = Market(seed=3)
        self.dhan = DhanSimulator(rate=0, market=market)
        self.yahoo = YahooSimulator(rate=0, market=market)
        self.nse = NseSimulator(market)
        self.settings: dict[str, str] = {}
        self.manager: OptionsManager

    async def __aenter__(self) -> Vendors:
        self._stack = AsyncExitStack()
        for vendor in (self.dhan, self.yahoo, self.nse):
            await self._stack.enter_async_context(vendor)
        self.settings |= {
            "DHAN_REST_URL": self.dhan.rest_url,
            "DHAN_CLIENT_ID": self.dhan.client_id,
            "DHAN_ACCESS_TOKEN": self.dhan.access_token,
            "YAHOO_REST_URL": self.yahoo.rest_url,
            "NSE_REST_URL": self.nse.url,
        }
        clock = SystemClock()
        underlyings = Underlyings()
        underlyings.load(MAPPINGS)
        self.manager = OptionsManager(
            clock, option_sources(lambda: self.settings, clock), resolve=underlyings.find
        )
        self._stack.push_async_callback(self.manager.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def nifty(self) -> Found:
        return await self.manager.chain("NIFTY")


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    async with Vendors() as found:
        yield found


async def test_dhan_answers_with_its_own_greeks_and_the_legs_have_instrument_keys(vendors: Vendors) -> None:
    found = await vendors.nifty()
    chain = found.chain
    assert (chain.source, found.refusals, len(chain.legs)) == ("DHAN", (), 82)
    assert {leg.greeks_by for leg in chain.legs} == {"vendor"}
    assert chain.legs[0].symbol.startswith("NFO:NIFTY-20")
    assert chain.legs[0].symbol.endswith("-CE")
    assert chain.completeness == 1.0
    assert chain.forward_by == "parity"
    assert chain.atm_strike is not None
    assert chain.pcr_oi is not None


async def test_with_dhan_refusing_the_chain_comes_from_nse_and_agrees_with_dhans(vendors: Vendors) -> None:
    of_dhan = {(leg.quote.strike, leg.quote.side): leg for leg in (await vendors.nifty()).chain.legs}
    await asyncio.sleep(0)
    vendors.settings["DHAN_ACCESS_TOKEN"] = vendors.dhan.tokens.issue(life_s=-60)
    vendors.manager._chains.clear()
    found = await vendors.nifty()
    assert found.chain.source == "NSE"
    assert [(refusal.provider_code, refusal.reason) for refusal in found.refusals] == [
        ("DHAN", "token_expired")
    ]
    assert vendors.dhan.option_chains.refused == {}, "a token known to be dead is not sent"
    assert found.chain.missing == ((found.chain.legs[-1].quote.strike, "put"),)
    for leg in found.chain.legs:
        twin = of_dhan[leg.quote.strike, leg.quote.side]
        assert leg.quote.oi == twin.quote.oi
        # NSE's pages take seconds to warm up: time value may have moved by a step of the grid meanwhile.
        assert leg.quote.last_price == pytest.approx(twin.quote.last_price, abs=0.11)
        if leg.greeks is not None and twin.greeks is not None and leg.greeks_by == "computed":
            # The vendor's figures rest on its volatility to four digits, NSE's to two.
            assert leg.greeks.delta == pytest.approx(twin.greeks.delta, abs=0.02)


async def test_an_empty_chain_is_a_refusal_and_missing_legs_are_named(vendors: Vendors) -> None:
    vendors.dhan.option_chains.empty = True
    found = await vendors.nifty()
    assert (found.chain.source, found.refusals[0].reason) == ("NSE", "empty")
    vendors.dhan.option_chains.empty, vendors.dhan.option_chains.missing_legs = False, 10
    chain = (await vendors.manager.chain("BANKNIFTY")).chain
    assert (chain.source, len(chain.legs), len(chain.missing)) == ("DHAN", 74, 8)
    assert chain.completeness == round(74 / 82, 4)


async def test_where_both_refuse_both_reasons_are_told(vendors: Vendors) -> None:
    await vendors.manager.expiries("NIFTY")
    vendors.dhan.data_plan_active = False
    vendors.nse.blocked = True
    with pytest.raises(NobodyAnswered) as caught:
        await vendors.nifty()
    assert {refusal.provider_code: refusal.reason for refusal in caught.value.refusals} == {
        "DHAN": "806",
        "NSE": "blocked",
    }
    asked = vendors.dhan.option_chains.refused["806"]
    await asyncio.sleep(2.1)
    with pytest.raises(NobodyAnswered):
        await vendors.nifty()
    assert vendors.dhan.option_chains.refused["806"] == asked, "refused credentials are not tried again"


async def test_fifty_clients_asking_for_three_chains_keep_dhans_limit(vendors: Vendors) -> None:
    names = ("NIFTY", "BANKNIFTY", "RELIANCE")
    for _ in range(3):
        found = await asyncio.gather(*(vendors.manager.chain(names[n % 3]) for n in range(50)))
        assert {one.chain.source for one in found} == {"DHAN"}
    assert vendors.dhan.option_chains.refused == {}
    assert vendors.dhan.option_chains.answered == {"expiries": 3, "chain": 3}


async def test_fifty_clients_asking_for_twenty_chains_at_once_beside_a_backfill_keep_dhans_limit(
    vendors: Vendors,
) -> None:
    listed = {spec.name: symbol for symbol, spec in dhan_specs().items() if symbol.startswith("NSE_EQ:")}
    names = sorted(listed)[:20]
    underlyings, clock = Underlyings(), SystemClock()
    underlyings.load(
        row(name, "DHAN", AssetClass.EQUITY, segment="NSE_EQ", security_id=listed[name].partition(":")[2])
        for name in names
    )
    # What keeps a turn for the past takes it from the same budget.
    quota = Quota("DHAN", vendor_limits.DHAN, clock)
    history = DhanHistory(clock=clock, settings=lambda: vendors.settings, quota=quota)
    sources = option_sources(lambda: vendors.settings, clock, ("DHAN",), {"DHAN": quota})
    manager = OptionsManager(clock, sources, resolve=underlyings.find)
    mapped = underlyings.find(names[0])
    assert mapped is not None
    now_ms = clock.now_ms()

    async def backfill() -> int:
        for day in range(1, 6):
            begin_ms = now_ms - day * 86_400_000
            await history.fetch(mapped.mappings["DHAN"], "1m", begin_ms, begin_ms + 3_600_000)
        return history.requests

    async def client(number: int) -> list[Found]:
        order = names[number % 20 :] + names[: number % 20]
        return list(await asyncio.gather(*(manager.chain(name) for name in order)))

    try:
        requests, *answers = await asyncio.gather(backfill(), *(client(number) for number in range(50)))
    finally:
        await manager.close()
        await history.close()
    assert requests == 5
    assert [len(answer) for answer in answers] == [20] * 50
    assert {found.chain.source for answer in answers for found in answer} == {"DHAN"}
    limit = vendors.dhan.charts.limit
    assert (limit.per_second, limit.refused) == (5.0, 0)
    assert vendors.dhan.option_chains.refused == {}
    assert vendors.dhan.option_chains.answered["expiries"] == 20
    # A chain that was asked for again after it was three seconds old is asked for again, and no sooner.
    assert limit.taken == quota.taken == 45 + vendors.dhan.option_chains.answered["chain"] - 20


async def test_chains_leave_a_part_of_the_day_for_the_past_and_say_so(vendors: Vendors) -> None:
    clock = SystemClock()
    quota = Quota("DHAN", msgspec.structs.replace(vendor_limits.DHAN, per_second=1_000.0, per_day=30), clock)
    underlyings = Underlyings()
    underlyings.load(MAPPINGS)
    sources = option_sources(lambda: vendors.settings, clock, ("DHAN",), {"DHAN": quota})
    manager = OptionsManager(clock, sources, resolve=underlyings.find)
    try:
        for _ in range(26):
            await quota.take(0.1)
        assert (await manager.expiries("NIFTY")).source == "DHAN"
        with pytest.raises(NobodyAnswered) as caught:
            await manager.chain("NIFTY")
        assert caught.value.refusals[0].reason == "quota_day"
        await quota.take(0.1)
    finally:
        await manager.close()


async def test_nse_wants_fresh_cookies_once_and_gets_them(vendors: Vendors) -> None:
    vendors.settings["DHAN_CLIENT_ID"] = ""
    assert (await vendors.nifty()).chain.source == "NSE"
    pages = vendors.nse.answered["/option-chain"]
    vendors.nse.stale = True
    assert (await vendors.manager.chain("BANKNIFTY")).chain.source == "NSE"
    assert vendors.nse.answered["/option-chain"] == pages + 1
    assert vendors.nse.refused == {"stale": 1}


async def test_yahoo_answers_for_us_underlyings_and_renews_its_crumb(vendors: Vendors) -> None:
    found = await vendors.manager.chain("AAPL")
    chain = found.chain
    assert (chain.source, chain.style) == ("YF", "european")
    assert chain.legs[0].symbol.startswith("AAPL")
    assert {leg.greeks_by for leg in chain.legs} <= {"computed", None}
    vendors.yahoo.option_chains.crumb_ended = True
    expiries = await vendors.manager.expiries("AAPL")
    second = await vendors.manager.chain("AAPL", expiries.expiries[1])
    assert second.chain.expiry == expiries.expiries[1]
    assert vendors.yahoo.option_chains.refused == {"401": 1}


async def test_a_vendor_that_is_gone_is_told_as_unreachable(vendors: Vendors) -> None:
    vendors.settings["DHAN_REST_URL"] = "http://127.0.0.1:9/v2"
    vendors.settings["NSE_REST_URL"] = "http://127.0.0.1:9"
    with pytest.raises(ProviderUnavailable) as caught:
        await vendors.manager.expiries("NIFTY")
    assert isinstance(caught.value, NobodyAnswered)
    assert {refusal.reason for refusal in caught.value.refusals} == {"unreachable"}
