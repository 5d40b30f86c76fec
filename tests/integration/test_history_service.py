"""The history service and the backfill: real Redis, real PostgreSQL, both vendors simulated.

The oracle is the vendors' own past, folded by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from services.history.backfill import BackfillDepth
from services.history.past import Past
from services.history.service import TooManyCandles
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import Candle, HistoryRequest, parse_resolution
from services.market_data.coverage import Note
from services.market_data.records import ControlRecord
from services.storage.client import make_client
from services.storage.retention import Retention
from simulators import past as simulated
from tests.support.eventually import eventually
from tests.support.past import BOTH, NOON_MS, RELIANCE, PastRig, mapping, past_rig
from tests.support.past_bars import write_bars

MINUTE_MS = 60_000
DAY_MS = 86_400_000
YESTERDAY_MS = int(datetime(2026, 11, 11, 3, 45, tzinfo=UTC).timestamp() * 1000)
YESTERDAY_ENDS_MS = YESTERDAY_MS + 375 * MINUTE_MS


@pytest.fixture
async def rig(migrated_database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[PastRig]:
    async with past_rig(migrated_database_url, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
async def past(rig: PastRig) -> AsyncIterator[Past]:
    made = await rig.past()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def running(past: Past) -> AsyncIterator[None]:
    task = asyncio.ensure_future(past.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await past.close()


def request(interval: str = "1m", **more: object) -> HistoryRequest:
    return HistoryRequest(instrument=RELIANCE, resolution=parse_resolution(interval), **more)  # type: ignore[arg-type]


def vendor(rig: PastRig, minutes: int, from_ms: int, to_ms: int) -> list[Candle]:
    listing = rig.dhan.listing("NSE_EQ:2885")
    assert listing is not None
    bars = simulated.bars(
        listing.instrument, simulated.INDIA, minutes, from_ms // 1000, to_ms // 1000, NOON_MS // 1000
    )
    return [tuple(bar) for bar in bars]  # type: ignore[misc]


async def stored(rig: PastRig, field: str = "close", interval: str = "1m") -> list[int]:
    client = make_client(rig.redis_url)
    try:
        rows = await client.execute_command("TS.RANGE", f"md:ts:{{{RELIANCE}}}:{interval}:{field}", "-", "+")
    except ResponseError:
        # There is no series yet.
        rows = []
    finally:
        await client.aclose()
    return [row[0] for row in rows]


async def test_what_is_not_stored_is_fetched_stored_and_announced(past: Past, rig: PastRig) -> None:
    asked = request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None)
    answer = await past.read(asked)
    assert answer.candles == vendor(rig, 1, YESTERDAY_MS, YESTERDAY_ENDS_MS)
    assert answer.complete
    assert answer.sources == ("DHAN",)
    assert [(r.type, r.fields["from"], r.fields["to"], r.provider_code) for r in rig.published] == [
        ("backfilled", YESTERDAY_MS, YESTERDAY_ENDS_MS, "DHAN")
    ]
    # The second time it is all in Redis, and nobody is asked.
    before = rig.dhan.charts.answered
    again = await past.read(asked)
    assert (again.candles, again.complete, again.sources) == (answer.candles, True, ())
    assert rig.dhan.charts.answered == before


@pytest.mark.parametrize("minutes", [3, 5, 15, 30, 45, 60, 120])
async def test_any_interval_is_made_of_minutes_and_cut_at_the_session_s_open(
    past: Past, rig: PastRig, minutes: int
) -> None:
    span = {"from_ms": YESTERDAY_MS, "to_ms": YESTERDAY_ENDS_MS, "count": None}
    answer = await past.read(request(f"{minutes}m", **span))
    assert answer.complete
    assert answer.candles == vendor(rig, minutes, YESTERDAY_MS, YESTERDAY_ENDS_MS)
    assert answer.candles[0][0] * 1000 == YESTERDAY_MS


async def test_the_newest_candles_reach_over_nights_and_weekends(past: Past, rig: PastRig) -> None:
    answer = await past.read(request(count=1_000))
    assert len(answer.candles) == 1_000
    assert answer.candles[-1][0] * 1000 > NOON_MS - 5 * MINUTE_MS
    # The last minutes are younger than what the vendors are asked for: they are named as missing.
    assert all(gap.from_s * 1000 >= NOON_MS - 3 * MINUTE_MS for gap in answer.missing)
    hours = await past.read(request("1h", count=20))
    assert len(hours.candles) == 20
    assert (
        hours.candles
        == [
            hour
            for hour in vendor(rig, 60, NOON_MS - 10 * DAY_MS, NOON_MS)
            if hour[0] <= hours.candles[-1][0]
        ][-20:]
    )


async def test_a_candle_that_is_not_finished_is_shown_only_on_request(past: Past, rig: PastRig) -> None:
    rig.clock.advance_ms(-(rig.clock.now_ms() - NOON_MS))
    finished = await past.read(request("1h", count=3))
    forming = await past.read(request("1h", count=3, forming=True))
    assert not finished.forming
    assert forming.forming
    # Hours begin at 09:15, so at noon the one from 11:15 is not finished.
    assert finished.candles[-1][0] * 1000 == NOON_MS - 105 * MINUTE_MS
    assert forming.candles[-1][0] * 1000 == NOON_MS - 45 * MINUTE_MS
    assert forming.candles[:-1] == finished.candles[1:]


async def test_the_day_that_forms_is_made_of_all_its_minutes(past: Past, rig: PastRig) -> None:
    rig.clock.advance_ms(-(rig.clock.now_ms() - NOON_MS))
    opens_ms = NOON_MS - 165 * MINUTE_MS
    answer = await past.read(request("1d", count=3, forming=True))
    assert answer.forming
    begins_s, *prices, _volume = answer.candles[-1]
    minutes = [bar for bar in vendor(rig, 1, opens_ms, NOON_MS) if bar[0] <= NOON_MS // 1000 - 4 * 60]
    assert begins_s * 1000 == opens_ms
    assert prices[0] == minutes[0][1]
    assert prices[1] >= max(bar[2] for bar in minutes)
    assert prices[2] <= min(bar[3] for bar in minutes)
    # Only what the vendor is not asked for yet is missing from the day.
    assert all(gap.from_s * 1000 >= NOON_MS - 3 * MINUTE_MS for gap in answer.missing)


async def test_a_day_that_forms_without_its_morning_says_so(past: Past, rig: PastRig) -> None:
    rig.clock.advance_ms(-(rig.clock.now_ms() - NOON_MS))
    opens_ms = NOON_MS - 165 * MINUTE_MS
    await past.read(request("1d", count=3))
    past.service.may_fill = lambda: False
    await store(
        rig,
        Bar(
            instrument=RELIANCE,
            exchange="NSE",
            interval="1m",
            start_ms=NOON_MS - 2 * MINUTE_MS,
            open=10.0,
            high=12.0,
            low=9.0,
            close=11.0,
            volume=5,
        ),
    )
    answer = await past.read(request("1d", count=3, forming=True))
    assert answer.candles[-1] == (opens_ms // 1000, 10.0, 12.0, 9.0, 11.0, 5)
    assert not answer.complete
    assert answer.missing[0].from_s * 1000 == opens_ms


async def test_days_weeks_and_months_come_from_daily_bars(past: Past, rig: PastRig) -> None:
    days = await past.read(request("1d", count=60))
    assert days.complete
    assert len(days.candles) == 60
    assert days.candles[-1][0] * 1000 == YESTERDAY_MS
    assert len(await stored(rig, interval="1d")) >= 60
    weeks = await past.read(request("1w", count=4))
    assert len(weeks.candles) == 4
    last_week = [day for day in days.candles if day[0] >= weeks.candles[-1][0]]
    assert weeks.candles[-1][1] == last_week[0][1]
    assert weeks.candles[-1][2] == max(day[2] for day in last_week)
    assert weeks.candles[-1][5] == sum(day[5] or 0 for day in last_week)


async def test_adjusted_days_come_from_yahoo_and_are_not_stored(past: Past, rig: PastRig) -> None:
    answer = await past.read(request("1d", count=60, adjusted=True))
    assert answer.sources == ("YF",)
    assert len(answer.candles) == 60
    client = make_client(rig.redis_url)
    assert await client.keys("md:ts:*") == []
    await client.aclose()
    with pytest.raises(ValueError, match="can be adjusted"):
        await past.read(request("1m", adjusted=True))


async def test_the_next_provider_is_asked_when_the_first_one_refuses(past: Past, rig: PastRig) -> None:
    rig.settings["DHAN_ACCESS_TOKEN"] = "nonsense"
    answer = await past.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert answer.complete
    assert answer.sources == ("YF",)
    assert {row.source for row in await past.coverage(RELIANCE)} == {"YF"}


async def test_nothing_is_called_complete_that_nobody_can_give(past: Past, rig: PastRig) -> None:
    rig.settings["DHAN_ACCESS_TOKEN"] = ""
    rig.settings["YAHOO_REST_URL"] = "http://127.0.0.1:1"
    answer = await past.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert answer.candles == []
    assert not answer.complete
    assert [(gap.from_s * 1000, gap.to_s * 1000) for gap in answer.missing] == [
        (YESTERDAY_MS, YESTERDAY_ENDS_MS)
    ]


async def test_what_every_source_lacks_is_unavailable_and_not_asked_for_again(
    past: Past, rig: PastRig
) -> None:
    rig.dhan.charts.empty = True
    rig.settings["YAHOO_REST_URL"] = rig.yahoo.rest_url + "/nothing"
    asked = request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None)
    answer = await past.read(asked)
    assert not answer.complete
    assert answer.missing[0].reason.startswith("unavailable: not in the answer of DHAN")
    before = rig.dhan.charts.answered
    await past.read(asked)
    assert rig.dhan.charts.answered == before


async def test_minutes_without_a_trade_are_known_and_not_missing(past: Past, rig: PastRig) -> None:
    rig.dhan.charts.quiet = rig.yahoo.charts.gaps = 10
    answer = await past.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert len(answer.candles) in (337, 338)
    assert answer.complete
    newest = await past.read(request(to_ms=YESTERDAY_ENDS_MS, count=500))
    assert len(newest.candles) == 500
    assert newest.complete


async def test_what_one_source_lacks_the_other_fills_in(past: Past, rig: PastRig) -> None:
    rig.dhan.charts.quiet = 10
    answer = await past.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert answer.candles == vendor(rig, 1, YESTERDAY_MS, YESTERDAY_ENDS_MS)
    assert answer.sources == ("DHAN", "YF")
    assert past.filler.counters.compared > 300
    assert past.filler.counters.disagreed == 0


async def test_a_span_with_too_many_candles_is_refused(past: Past) -> None:
    with pytest.raises(TooManyCandles, match="more than 5000"):
        await past.read(request(from_ms=NOON_MS - 40 * DAY_MS, count=None))


async def test_without_postgresql_what_is_stored_is_answered(rig: PastRig) -> None:
    first = await rig.past()
    await first.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    await first.close()
    rig.database_url = "postgresql://nobody@127.0.0.1:1/none"
    second = await rig.past()
    try:
        answer = await second.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
        assert len(answer.candles) == 375
        assert answer.complete
    finally:
        await second.close()


def gap(begin_ms: int, end_ms: int, reason: str = "stale") -> ControlRecord:
    fields: dict[str, str | int] = {"from": begin_ms, "to": end_ms, "reason": reason}
    return ControlRecord("gap", RELIANCE, "NSE", end_ms, end_ms, "DHAN", fields)


async def test_a_gap_in_the_stream_is_filled_by_itself(rig: PastRig) -> None:
    past = await rig.past(depth=BackfillDepth(minute_days=1))
    past.note(gap(YESTERDAY_MS + 90_000, YESTERDAY_MS + 300_000))
    async with running(past):
        await eventually(lambda: stored(rig), within_s=20)
        expected = [YESTERDAY_MS + at * MINUTE_MS for at in range(1, 5)]
        await eventually(lambda: _holds(rig, expected), within_s=20)

        async def only_ticks_are_missing() -> bool:
            known = await past.ledger.of(RELIANCE, fresh=True)
            return {row.type for row in known if row.state == "missing"} == {"ticks"}

        await eventually(only_ticks_are_missing, within_s=20)
        rows = await past.coverage(RELIANCE)
    assert [(row.type, row.from_ms, row.to_ms, row.reason) for row in rows if row.state == "missing"] == [
        ("ticks", YESTERDAY_MS + 90_000, YESTERDAY_MS + 300_000, "stale")
    ]


def live_bar(start_ms: int, interval: str = "1m", price: float = 1.0) -> Bar:
    return Bar(
        instrument=RELIANCE,
        exchange="NSE",
        interval=interval,  # type: ignore[arg-type]
        start_ms=start_ms,
        open=price,
        high=price,
        low=price,
        close=price,
        volume=1,
    )


async def store(rig: PastRig, *bars: Bar) -> None:
    client = make_client(rig.redis_url)
    try:
        await write_bars(
            client,
            bars,
            retention=Retention(365 * DAY_MS, {}),
            grid=BarGrid(MarketCalendar()),
            now_ms=rig.clock.now_ms(),
        )
    finally:
        await client.aclose()


async def test_a_minute_that_a_gap_cut_into_is_not_taken_for_a_whole_one(past: Past, rig: PastRig) -> None:
    await store(rig, live_bar(YESTERDAY_MS), live_bar(YESTERDAY_MS + MINUTE_MS))
    past.note(gap(YESTERDAY_MS + 30_000, YESTERDAY_MS + 90_000))
    asked = request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_MS + 2 * MINUTE_MS, count=None)
    past.leading = False
    here = await past.read(asked)
    assert not here.complete
    assert [(gap.from_s * 1000, gap.to_s * 1000) for gap in here.missing] == [
        (YESTERDAY_MS, YESTERDAY_MS + 2 * MINUTE_MS)
    ]
    past.leading = True
    answer = await past.read(asked)
    assert answer.complete
    assert answer.candles == vendor(rig, 1, YESTERDAY_MS, YESTERDAY_MS + 2 * MINUTE_MS)


async def test_a_day_that_was_watched_for_an_hour_is_not_taken_for_a_whole_one(
    past: Past, rig: PastRig
) -> None:
    await store(rig, live_bar(YESTERDAY_MS + 60 * MINUTE_MS), live_bar(YESTERDAY_MS, "1d"))
    asked = request("1d", from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None)
    past.leading = False
    assert not (await past.read(asked)).complete
    past.leading = True
    answer = await past.read(asked)
    assert answer.complete
    (day,) = answer.candles
    assert day[1:5] != (1.0, 1.0, 1.0, 1.0)


async def test_a_day_that_was_watched_from_open_to_close_is_whole(past: Past, rig: PastRig) -> None:
    await store(rig, live_bar(YESTERDAY_MS), live_bar(YESTERDAY_MS, "1d"))
    past.ledger.note(
        Note(
            instrument=RELIANCE,
            type="1m",
            state="have",
            source="LIVE",
            from_ms=YESTERDAY_MS,
            to_ms=YESTERDAY_ENDS_MS,
        )
    )
    answer = await past.read(request("1d", from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert answer.complete
    assert [candle[1:5] for candle in answer.candles] == [(1.0, 1.0, 1.0, 1.0)]
    assert answer.sources == ()


async def _holds(rig: PastRig, starts: list[int]) -> bool:
    return set(starts) <= set(await stored(rig))


async def test_what_was_noted_while_postgresql_was_away_is_kept_on_disk(rig: PastRig) -> None:
    good, rig.database_url = rig.database_url, "postgresql://nobody@127.0.0.1:1/none"
    first = await rig.past()
    first.note(gap(YESTERDAY_MS, YESTERDAY_MS + MINUTE_MS))
    task = asyncio.ensure_future(first.ledger.run())
    await eventually(lambda: first.ledger.reason, within_s=10)
    # Killed: nothing is closed.
    task.cancel()
    await asyncio.wait([task])
    rig.database_url = good
    second = await rig.past()
    await second.ledger.flush()
    assert [(row.type, row.state) for row in await second.coverage(RELIANCE)] == [
        ("1m", "missing"),
        ("ticks", "missing"),
    ]
    await second.close()
    await first.close()


async def test_an_empty_redis_is_noticed_and_nothing_is_believed_of_what_it_held(rig: PastRig) -> None:
    first = await rig.past()
    await first.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    await first.close()
    client = make_client(rig.redis_url)
    await client.flushall()
    await client.aclose()
    second = await rig.past()
    await second.lead("epoch-2")
    await second.ledger.flush()
    answer = await second.read(request(from_ms=YESTERDAY_MS, to_ms=YESTERDAY_ENDS_MS, count=None))
    assert len(answer.candles) == 375
    await second.close()


async def test_a_job_fetches_what_is_not_stored_and_nothing_twice(rig: PastRig) -> None:
    past = await rig.past(
        [*BOTH, mapping("NSE:TCS", "DHAN", "NSE_EQ:11536", primary=True)], depth=BackfillDepth()
    )
    async with running(past):
        job = await past.ask([RELIANCE, "NSE:TCS"], "1m", NOON_MS - 7 * DAY_MS, NOON_MS)
        await eventually(lambda: past.backfill.jobs[job["id"]].finished_ms, within_s=20)
        done = past.backfill.jobs[job["id"]]
        assert (done.windows, done.failed) == (2, 0)
        assert done.bars == 2 * len(await stored(rig))
        assert done.bars > 2_500
        await past.ledger.flush()
        again = await past.ask([RELIANCE, "NSE:TCS"], "1m", NOON_MS - 7 * DAY_MS, NOON_MS - DAY_MS)
        assert again["windows"] == 0
        assert again["finished_ms"] is not None
