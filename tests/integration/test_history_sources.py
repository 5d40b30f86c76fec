"""Both sources of past bars against the simulated vendors on real sockets; the vendors' SDKs as oracles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from services.errors import (
    CredentialsMissing,
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    RequestRefused,
    WireFormatError,
)
from services.history.dhan_history import instrument_type
from services.history.past import Past
from services.market_data.instruments import AssetClass
from tests.support.past import BOTH, NOON_MS, RELIANCE, PastRig, mapping, past_rig

DAY_MS = 86_400_000
OPEN_MS = int(datetime(2026, 11, 11, 3, 45, tzinfo=UTC).timestamp() * 1000)
CLOSE_MS = OPEN_MS + 375 * 60_000


@pytest.fixture
async def rig(migrated_database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[PastRig]:
    async with past_rig(migrated_database_url, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
async def past(rig: PastRig) -> AsyncIterator[Past]:
    made = await rig.past()
    yield made
    await made.close()


async def test_both_vendors_tell_the_same_minutes_of_a_session(past: Past) -> None:
    dhan = await past.sources["DHAN"].fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    yahoo = await past.sources["YF"].fetch(BOTH[1], "1m", OPEN_MS, CLOSE_MS)
    assert len(dhan) == 375
    assert [row[0] for row in dhan] == list(range(OPEN_MS // 1000, CLOSE_MS // 1000, 60))
    assert dhan == yahoo


@pytest.mark.parametrize("ticks_before", [0, 1])
async def test_the_vendors_past_ends_where_their_live_price_begins(
    past: Past, rig: PastRig, ticks_before: int
) -> None:
    listing = rig.dhan.listing("NSE_EQ:2885")
    assert listing is not None
    begins = listing.instrument.price
    for _ in range(ticks_before):
        rig.dhan.emit("NSE_EQ:2885")
    for source, of in (("DHAN", BOTH[0]), ("YF", BOTH[1])):
        rows = await past.sources[source].fetch(of, "1m", NOON_MS - 3_600_000, NOON_MS)
        assert rows[-1][0] * 1000 == NOON_MS - 60_000
        assert rows[-1][4] == begins
        days = await past.sources[source].fetch(of, "1d", NOON_MS - 60 * DAY_MS, NOON_MS - DAY_MS)
        assert days[-1][4] == pytest.approx(begins, rel=0.02)


async def test_a_bar_that_is_not_finished_is_not_given(past: Past, rig: PastRig) -> None:
    for source, of in (("DHAN", BOTH[0]), ("YF", BOTH[1])):
        rows = await past.sources[source].fetch(of, "1m", NOON_MS - 600_000, NOON_MS + 600_000)
        assert rows[-1][0] * 1000 + 60_000 <= rig.clock.now_ms()
        assert len(rows) == 10


async def test_days_are_unadjusted_without_today_and_adjusted_only_on_request(past: Past) -> None:
    begin = NOON_MS - 60 * DAY_MS
    dhan = await past.sources["DHAN"].fetch(BOTH[0], "1d", begin, NOON_MS)
    yahoo = await past.sources["YF"].fetch(BOTH[1], "1d", begin, NOON_MS)
    assert [row[1:] for row in dhan if row[0] * 1000 < NOON_MS - DAY_MS] == [row[1:] for row in yahoo]
    assert yahoo[-1][0] * 1000 == OPEN_MS
    adjusted = await past.sources["YF"].fetch(BOTH[1], "1d", begin, NOON_MS, adjusted=True)
    assert adjusted[0][4] == pytest.approx(yahoo[0][4] * 0.98)
    assert adjusted[-1] == yahoo[-1]
    with pytest.raises(ValueError, match="no adjusted"):
        await past.sources["DHAN"].fetch(BOTH[0], "1d", begin, NOON_MS, adjusted=True)


async def test_the_contract_s_method_returns_the_newest_bars(past: Past) -> None:
    rows = await past.sources["DHAN"].get_hist_candles("NSE_EQ:2885", "5m", 100)
    assert len(rows) == 100
    assert rows[-1][0] * 1000 + 300_000 <= NOON_MS + 60_000
    assert all(one[0] < two[0] for one, two in pairwise(rows))
    with pytest.raises(ValueError, match="knows no"):
        await past.sources["DHAN"].get_hist_candles("NSE_EQ:1", "5m", 1)
    with pytest.raises(ValueError, match="has no 7m"):
        await past.sources["YF"].get_hist_candles("RELIANCE.NS", "7m", 1)


async def test_what_goes_wrong_at_dhan_is_told_apart(past: Past, rig: PastRig) -> None:
    dhan = past.sources["DHAN"]
    with pytest.raises(RequestRefused) as unknown:
        await dhan.fetch(mapping("NSE:NOPE", "DHAN", "NSE_EQ:99999999"), "1m", OPEN_MS, CLOSE_MS)
    assert unknown.value.reason == "DH-905"
    rig.dhan.charts.broken = True
    with pytest.raises(WireFormatError):
        await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    rig.dhan.charts.broken = False
    rig.dhan.data_plan_active = False
    with pytest.raises(CredentialsRejected, match="data plan"):
        await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    rig.dhan.data_plan_active = True
    rig.settings["DHAN_ACCESS_TOKEN"] = "nonsense"
    with pytest.raises(CredentialsRejected):
        await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    rig.settings["DHAN_ACCESS_TOKEN"] = ""
    with pytest.raises(CredentialsMissing):
        await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    # Credentials are read at every request: a new token works at once.
    rig.settings["DHAN_ACCESS_TOKEN"] = rig.dhan.access_token
    assert await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    rig.settings["DHAN_REST_URL"] = "http://127.0.0.1:1/v2"
    with pytest.raises(ProviderUnavailable) as gone:
        await dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    assert gone.value.reason == "unreachable"


async def test_what_goes_wrong_at_yahoo_is_told_apart(past: Past, rig: PastRig) -> None:
    yahoo = past.sources["YF"]
    with pytest.raises(RequestRefused, match="delisted"):
        await yahoo.fetch(mapping("NSE:NOPE", "YF", "NOPE NOPE"), "1m", OPEN_MS, CLOSE_MS)
    with pytest.raises(RequestRefused, match="within the last 30 days"):
        await yahoo.fetch(BOTH[1], "1m", OPEN_MS - 60 * DAY_MS, OPEN_MS - 59 * DAY_MS)
    with pytest.raises(RequestRefused, match="Only 8 days"):
        await yahoo.fetch(BOTH[1], "1m", OPEN_MS - 10 * DAY_MS, OPEN_MS)
    rig.yahoo.charts.limit.per_second = 0.001
    rig.yahoo.charts.limit._credit = 0.0
    with pytest.raises(ProviderRateLimited) as limited:
        await yahoo.fetch(BOTH[1], "1m", OPEN_MS, CLOSE_MS)
    assert limited.value.reason == "http_429"
    # Nothing more is asked until the pause is over.
    asked = yahoo.requests
    with pytest.raises(ProviderRateLimited, match="not asked now"):
        await yahoo.fetch(BOTH[1], "1m", OPEN_MS, CLOSE_MS, patience_s=1)
    assert yahoo.requests == asked


async def test_the_own_pace_never_meets_the_vendor_s_limit(
    migrated_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with past_rig(migrated_database_url, redis_url, tmp_path, fast=False) as rig:
        past = await rig.past(fast=False)
        dhan = past.sources["DHAN"]
        try:
            await asyncio.gather(*(dhan.fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS) for _ in range(14)))
        finally:
            await past.close()
        assert rig.dhan.charts.limit.taken == 14
        assert rig.dhan.charts.limit.refused == 0


async def test_the_vendor_s_sdk_reads_the_same_bars_from_the_same_server(past: Past, rig: PastRig) -> None:
    from dhanhq import DhanContext, dhanhq

    context = DhanContext(rig.dhan.client_id, rig.dhan.access_token)
    context.get_dhan_http().base_url = rig.dhan.rest_url
    sdk = dhanhq(context)
    answer = await asyncio.to_thread(
        sdk.intraday_minute_data,
        "2885",
        "NSE_EQ",
        "EQUITY",
        "2026-11-11 09:15:00",
        "2026-11-11 15:30:00",
        5,
    )
    context.get_dhan_http().session.close()
    assert answer["status"] == "success"
    chart = answer["data"]
    ours = await past.sources["DHAN"].fetch(BOTH[0], "5m", OPEN_MS, CLOSE_MS)
    columns = ("timestamp", "open", "high", "low", "close", "volume")
    assert [tuple(row) for row in zip(*(chart[name] for name in columns), strict=True)] == ours


@pytest.mark.filterwarnings("ignore")
async def test_yfinance_reads_the_same_bars_from_the_same_server(
    past: Past, rig: PastRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import yfinance
    from yfinance import base, const
    from yfinance.data import YfData
    from yfinance.scrapers import history, quote

    for module in (const, base, history, quote):
        if hasattr(module, "_BASE_URL_"):
            monkeypatch.setattr(module, "_BASE_URL_", rig.yahoo.rest_url)
    monkeypatch.setattr(YfData, "_get_cookie_and_crumb", lambda self, *_a, **_k: ("crumb", "basic"))
    yfinance.set_tz_cache_location(str(tmp_path))

    def read() -> list[tuple[int, float, float]]:
        frame = yfinance.Ticker("RELIANCE.NS").history(
            start=datetime.fromtimestamp(OPEN_MS / 1000, UTC),
            end=datetime.fromtimestamp(CLOSE_MS / 1000, UTC),
            interval="5m",
            auto_adjust=False,
        )
        return [
            (int(moment.timestamp()), row["Open"], row["Close"])
            for moment, row in zip(frame.index, frame.to_dict("records"), strict=True)
        ]

    theirs = await asyncio.to_thread(read)
    ours = await past.sources["YF"].fetch(BOTH[1], "5m", OPEN_MS, CLOSE_MS)
    assert len(theirs) == 75
    assert theirs == [(row[0], row[1], row[4]) for row in ours]


@pytest.mark.parametrize(
    ("instrument", "symbol", "kind", "name"),
    [
        ("NSE:RELIANCE", "NSE_EQ:2885", AssetClass.EQUITY, "EQUITY"),
        ("NSE:NIFTYBEES", "NSE_EQ:1", AssetClass.ETF, "EQUITY"),
        ("NSE:NIFTY", "IDX_I:13", AssetClass.INDEX, "INDEX"),
        ("NFO:NIFTY-2026-12-31-25000-CE", "NSE_FNO:1", AssetClass.OPTION, "OPTIDX"),
        ("NFO:RELIANCE-2026-12-31-FUT", "NSE_FNO:1", AssetClass.FUTURE, "FUTSTK"),
        ("CDS:USDINR-2026-12-31-FUT", "NSE_CURRENCY:1", AssetClass.FUTURE, "FUTCUR"),
        ("MCX:GOLD-2026-12-31-5000-CE", "MCX_COMM:1", AssetClass.OPTION, "OPTFUT"),
    ],
)
def test_dhan_is_told_what_an_instrument_is(
    instrument: str, symbol: str, kind: AssetClass, name: str
) -> None:
    assert instrument_type(mapping(instrument, "DHAN", symbol, kind=kind)) == name


def test_the_test_s_day_is_a_trading_day() -> None:
    assert date(2026, 11, 11).weekday() < 5
    assert BOTH[0].instrument == RELIANCE


async def test_the_token_does_not_follow_a_redirect_to_somebody_else(past: Past, rig: PastRig) -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("access-token", ""))
        return web.json_response({})

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"http://localhost:{other.port}{request.path}")

    async with served(elsewhere) as other, served(moved) as first:
        rig.settings["DHAN_REST_URL"] = f"http://127.0.0.1:{first.port}"
        with pytest.raises(ProviderError, match="307"):
            await past.sources["DHAN"].fetch(BOTH[0], "1m", OPEN_MS, CLOSE_MS)
    assert seen == []


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[TestServer]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield server
