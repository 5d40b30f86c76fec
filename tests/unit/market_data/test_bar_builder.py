"""Bars: first and last trades by time, finished by the clock, revised by late ticks, cut by the calendar."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.market_data.bar_builder import DELAYED_MS, GRACE_MS, LATE_MS, BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, BarStatus, bar_record, parse_bar
from services.market_data.calendar import MarketCalendar, Phase
from services.market_data.records import (
    FLAG_DELAYED,
    FLAG_LATE,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    ControlRecord,
    DataIngestionFormat,
)

CALENDAR = MarketCalendar()
GRID = BarGrid(CALENDAR)


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


OPEN = utc("2026-12-01T03:45")
CLOSE = utc("2026-12-01T10:00")


def tick(
    at_ms: int, price: float, volume: int | None = 1, key: str = "NSE:TCS", **fields: Any
) -> DataIngestionFormat:
    provider = fields.pop("provider", "DHAN")
    exchange = key.partition(":")[0]
    return DataIngestionFormat(key, price, volume, at_ms, provider, exchange=exchange, **fields)


def built(*ticks: DataIngestionFormat, builder: BarBuilder | None = None) -> BarBuilder:
    builder = builder or BarBuilder(GRID)
    for each in ticks:
        builder.take(each)
    return builder


def minutes(bars: list[Bar]) -> list[Bar]:
    return [bar for bar in bars if bar.interval == "1m"]


def figures(bar: Bar) -> tuple[float, float, float, float, int | None, int]:
    return bar.open, bar.high, bar.low, bar.close, bar.volume, bar.ticks


def test_open_and_close_are_the_first_and_last_by_time_not_by_arrival() -> None:
    builder = built(
        tick(OPEN + 5_000, 101.0, 10),
        tick(OPEN + 9_000, 99.0, None),
        tick(OPEN + 2_000, 105.0, None, flags=FLAG_LATE),
        tick(OPEN + 9_000, 100.0, 7, provider="YF"),
    )
    (bar,) = minutes(builder.close(OPEN + 60_000 + GRACE_MS)[0])
    assert figures(bar) == (105.0, 105.0, 99.0, 100.0, 17, 4)
    assert bar.sources == ("DHAN", "YF")
    assert (bar.status, bar.revision, bar.start_ms) == (BarStatus.FINAL, 0, OPEN)


def test_a_bar_is_finished_by_the_clock_and_only_once() -> None:
    builder = built(tick(OPEN + 1, 100.0), tick(OPEN + 60_001, 101.0))
    assert builder.close(OPEN + 60_000 + GRACE_MS - 1) == ([], False)
    assert [bar.start_ms for bar in builder.close(OPEN + 60_000 + GRACE_MS)[0]] == [OPEN]
    assert builder.close(OPEN + 60_000 + GRACE_MS)[0] == []
    assert [bar.start_ms for bar in builder.close(OPEN + 120_000 + GRACE_MS)[0]] == [OPEN + 60_000]


def test_a_minute_without_a_trade_makes_no_bar_and_unknown_volume_stays_unknown() -> None:
    builder = built(tick(OPEN, 100.0, None), tick(OPEN + 120_000, 101.0, 0))
    bars = minutes(builder.close(OPEN + 300_000)[0])
    assert [(bar.start_ms, bar.volume) for bar in bars] == [(OPEN, None), (OPEN + 120_000, 0)]


def test_the_closing_second_belongs_to_the_last_minute_and_is_waited_for() -> None:
    builder = built(tick(CLOSE - 1, 100.0), tick(CLOSE + 999, 102.0), tick(CLOSE + 1_000, 500.0))
    assert builder.close(CLOSE + GRACE_MS + 999)[0] == []
    bars = builder.close(CLOSE + GRACE_MS + 1_000)[0]
    assert {bar.interval: (bar.start_ms, bar.close) for bar in bars} == {
        "1m": (CLOSE - 60_000, 102.0),
        "5m": (CLOSE - 300_000, 102.0),
        "15m": (CLOSE - 900_000, 102.0),
        "1h": (utc("2026-12-01T09:45"), 102.0),
        "1d": (OPEN, 102.0),
    }
    assert builder.refused == {"outside_session": 1}


def test_a_market_that_never_closes_gives_the_first_second_to_the_new_day() -> None:
    midnight = utc("2026-12-02T00:00")
    builder = built(tick(midnight, 5.0, key="CRYPTO:BTC-USD"))
    bars = builder.close(midnight + 86_400_000 + 3_000)[0]
    assert {bar.start_ms for bar in bars} == {midnight}


def test_extended_hours_make_minutes_of_their_own_phase_and_nothing_longer() -> None:
    eight, opens, late = (utc(f"2026-12-01T{at}") for at in ("13:00", "14:30", "21:30"))
    builder = built(*(tick(at, 50.0, key="NASDAQ:AAPL") for at in (eight, opens, late)))
    bars = builder.close(late + 120_000)[0]
    assert [bar.phase for bar in minutes(bars)] == [Phase.PRE, Phase.REGULAR, Phase.POST]
    assert {bar.start_ms for bar in bars if bar.interval != "1m"} == {opens}


@pytest.mark.parametrize(
    ("key", "at", "starts"),
    [
        # The hours of New York move with its clocks, those of Mumbai never.
        ("NASDAQ:AAPL", "2026-10-30T14:45", "2026-10-30T14:30"),
        ("NASDAQ:AAPL", "2026-11-02T15:45", "2026-11-02T15:30"),
        ("NSE:TCS", "2026-11-02T05:00", "2026-11-02T04:45"),
        # A Muhurat session begins where it begins: 13:45 in Mumbai on that day.
        ("NSE:TCS", "2025-10-21T09:00", "2025-10-21T08:15"),
        # Exchanges without known hours have whole hours.
        ("INDEX:^GSPC", "2026-11-02T05:10", "2026-11-02T05:00"),
    ],
)
def test_an_hour_begins_with_the_session(key: str, at: str, starts: str) -> None:
    builder = built(tick(utc(at), 50.0, key=key))
    bars = builder.close(utc(at) + 2 * 86_400_000)[0]
    assert [bar.start_ms for bar in bars if bar.interval == "1h"] == [utc(starts)]


def test_always_open_cuts_hours_as_on_an_ordinary_day_and_days_at_midnight() -> None:
    builder = BarBuilder(BarGrid(MarketCalendar(always_open=True)))
    night = utc("2026-11-29T20:00")
    built(tick(night, 50.0), builder=builder)
    bars = {bar.interval: bar.start_ms for bar in builder.close(night + 3 * 86_400_000)[0]}
    assert bars["1h"] == utc("2026-11-29T19:45")
    assert bars["1d"] == utc("2026-11-29T18:30")


def test_late_ticks_make_one_revision_of_every_bar_they_lie_in() -> None:
    builder = built(tick(OPEN, 100.0, 5), tick(OPEN + 60_000, 101.0, 5))
    now = OPEN + 330_000
    first = builder.close(now)[0]
    assert [(bar.interval, bar.start_ms) for bar in first] == [
        ("1m", OPEN),
        ("1m", OPEN + 60_000),
        ("5m", OPEN),
    ]
    built(
        tick(OPEN + 70_000, 120.0, None, flags=FLAG_LATE),
        tick(OPEN + 71_000, 90.0, 3, flags=FLAG_LATE),
        builder=builder,
    )
    revised = builder.close(now + 100)[0]
    assert {(bar.interval, bar.status, bar.revision, *figures(bar)) for bar in revised} == {
        ("1m", BarStatus.REVISED, 1, 101.0, 120.0, 90.0, 90.0, 8, 3),
        ("5m", BarStatus.REVISED, 1, 100.0, 120.0, 90.0, 90.0, 13, 4),
    }
    assert builder.close(now + 200)[0] == []
    hour = builder.forming("NSE:TCS", "1h")
    assert hour is not None
    assert figures(hour) == (100.0, 120.0, 90.0, 90.0, 13, 4)


def test_a_late_minute_that_had_no_bar_gets_one_and_longer_bars_are_revised() -> None:
    builder = built(tick(OPEN, 100.0))
    builder.close(OPEN + 302_000)
    built(tick(OPEN + 250_000, 130.0, None, flags=FLAG_LATE), builder=builder)
    bars = builder.close(OPEN + 303_000)[0]
    assert [(bar.interval, bar.status, bar.high) for bar in bars] == [
        ("1m", BarStatus.FINAL, 130.0),
        ("5m", BarStatus.REVISED, 130.0),
    ]


def test_a_tick_that_is_too_late_changes_nothing_and_is_counted() -> None:
    builder = built(tick(OPEN, 100.0))
    builder.close(OPEN + 60_000 + LATE_MS)
    built(tick(OPEN + 1, 500.0, flags=FLAG_LATE), builder=builder)
    assert minutes(builder.close(OPEN + 60_001 + LATE_MS)[0]) == []
    assert builder.refused == {"too_late": 1}


def test_ticks_that_piled_up_while_the_process_stood_make_their_bars() -> None:
    builder = built(tick(OPEN, 100.0))
    builder.close(OPEN + 30_000)
    resumed = OPEN + 20 * 60_000
    assert [bar.start_ms for bar in minutes(builder.close(resumed)[0])] == [OPEN]
    built(*(tick(OPEN + n * 30_000, 100.0 + n) for n in range(4, 8)), builder=builder)
    assert [bar.close for bar in minutes(builder.close(resumed + 100)[0])] == [105.0]
    built(tick(resumed + 200, 300.0), builder=builder)
    bars = minutes(builder.close(resumed + 2_000)[0])
    assert [(bar.start_ms, bar.close, bar.revision) for bar in bars] == [(OPEN + 180_000, 107.0, 0)]
    assert builder.refused == {}


def test_a_lag_that_no_flag_tells_of_makes_final_bars_and_no_storm_of_revisions() -> None:
    builder, said = BarBuilder(GRID), []
    builder.close(OPEN + 15 * 60_000 - 100)
    for n in range(60):
        at_ms = OPEN + n * 10_000
        builder.take(tick(at_ms, 100.0 + n))
        said += minutes(builder.close(at_ms + 15 * 60_000)[0])
    assert [(bar.start_ms, bar.ticks, bar.revision) for bar in said] == [
        (OPEN + n * 60_000, 6, 0) for n in range(9)
    ]


def test_many_late_ticks_make_one_revision_a_second() -> None:
    builder = built(tick(OPEN, 100.0))
    builder.close(OPEN + 61_000)
    revisions = []
    for n in range(40):
        built(tick(OPEN + n, 100.0 + n, flags=FLAG_LATE), builder=builder)
        revisions += minutes(builder.close(OPEN + 62_000 + n * 100)[0])
    assert [bar.revision for bar in revisions] == [1, 2, 3, 4]


def test_snapshots_and_suspect_prices_are_no_trades() -> None:
    builder = built(
        tick(OPEN, 77.0, None, flags=FLAG_SNAPSHOT),
        tick(OPEN + 1, 100.0),
        tick(OPEN + 2, 1_000.0, flags=FLAG_SUSPECT),
    )
    (bar,) = minutes(builder.close(OPEN + 61_000)[0])
    assert figures(bar) == (100.0, 100.0, 100.0, 100.0, 1, 1)
    assert builder.refused == {"snapshot": 1, "suspect": 1}


def test_delayed_instruments_are_finished_by_their_own_ticks_or_at_last_by_the_clock() -> None:
    builder = built(tick(OPEN, 100.0, flags=FLAG_DELAYED))
    assert builder.close(OPEN + 15 * 60_000)[0] == []
    built(tick(OPEN + 62_000, 101.0, flags=FLAG_DELAYED), builder=builder)
    assert [bar.close for bar in minutes(builder.close(OPEN + 15 * 60_000 + 62_000)[0])] == [100.0]
    assert [bar.close for bar in minutes(builder.close(OPEN + 120_000 + DELAYED_MS)[0])] == [101.0]


def test_coverage_is_what_no_gap_took() -> None:
    builder = built(tick(OPEN, 100.0), tick(OPEN + 60_000, 100.0))
    gaps: list[tuple[str, dict[str, str | int]]] = [
        ("NSE:TCS", {"from": OPEN + 10_000, "to": OPEN + 30_000}),
        ("", {"from": OPEN + 20_000, "to": OPEN + 70_000}),
        ("NSE:TCS", {"from": OPEN, "to": OPEN + 120_000, "store": "stream"}),
        ("NSE:INFY", {"from": OPEN, "to": OPEN + 120_000}),
    ]
    for key, fields in gaps:
        builder.note(ControlRecord("gap", key, "NSE", OPEN, OPEN, "DHAN", {**fields, "reason": "x"}))
    bars = {bar.interval: bar.covered_ms for bar in builder.close(OPEN + 61_000)[0]}
    assert bars == {"1m": 10_000}
    bars = {bar.interval: bar.covered_ms for bar in builder.close(OPEN + 400_000)[0]}
    assert bars == {"1m": 50_000, "5m": 240_000}


def test_nothing_flowed_before_the_first_tick_there_ever_was() -> None:
    builder = BarBuilder(GRID)
    builder.recall_known({"NSE:TCS": OPEN - 60_000})
    built(tick(OPEN + 25_000, 1.0), tick(OPEN + 25_000, 1.0, key="NSE:NEW"), builder=builder)
    covered = {bar.instrument: bar.covered_ms for bar in minutes(builder.close(OPEN + 61_000)[0])}
    assert covered == {"NSE:TCS": 60_000, "NSE:NEW": 35_000}


def test_nothing_flowed_before_the_first_tick_of_what_was_filled_or_followed_before_either() -> None:
    stored = minutes(
        built(tick(OPEN, 100.0, 5), tick(OPEN, 100.0, 5, key="NSE:INFY")).close(OPEN + 61_000)[0]
    )
    builder = BarBuilder(GRID, follow=True)
    builder.recall_known({})
    builder.close(OPEN + 62_000)
    builder.refill("NSE:TCS", stored[:1])
    builder.note(bar_record(stored[1], OPEN + 62_000))
    for key in ("NSE:TCS", "NSE:INFY"):
        builder.take(tick(OPEN + 85_000, 101.0, 5, key=key))
        bar = builder.forming(key, "1m")
        assert bar is not None
        assert (bar.start_ms, bar.covered_ms) == (OPEN + 60_000, 35_000)


def test_what_was_said_before_a_restart_is_said_again_only_when_it_differs() -> None:
    ticks = [tick(OPEN, 100.0, 5), tick(OPEN + 60_000, 101.0, 5), tick(OPEN + 120_000, 7.0, 5)]
    said = minutes(built(*ticks[:2]).close(OPEN + 130_000)[0])
    builder = BarBuilder(GRID)
    for bar in said:
        builder.recall_said(bar)
    built(ticks[0], tick(OPEN + 61_000, 200.0, 1), *ticks[1:], builder=builder)
    bars = builder.close(OPEN + 190_000)[0]
    assert [(bar.start_ms, bar.status, bar.revision) for bar in minutes(bars)] == [
        (OPEN + 60_000, BarStatus.REVISED, 1),
        (OPEN + 120_000, BarStatus.FINAL, 0),
    ]


def test_a_few_at_a_time_is_the_same_as_all_at_once() -> None:
    ticks = [tick(OPEN + n * 7_000, 100.0 + n % 9, n, key=f"NSE:S{n % 5}") for n in range(200)]
    at_once = built(*ticks).close(CLOSE + 5_000)[0]
    builder, found, more = built(*ticks), [], True
    while more:
        some, more = builder.close(CLOSE + 5_000, 3)
        assert len(some) <= 3
        found += some
    key = lambda bar: (bar.instrument, bar.interval, bar.start_ms)  # noqa: E731
    assert sorted(found, key=key) == sorted(at_once, key=key)


def test_a_follower_says_nothing_and_takes_over_what_is_said() -> None:
    leader = built(tick(OPEN, 100.0, 5), tick(OPEN + 30_000, 110.0, 5))
    follower = BarBuilder(GRID, follow=True)
    built(tick(OPEN + 30_000, 110.0, 5), builder=follower)
    (said,) = minutes(leader.close(OPEN + 61_000)[0])
    assert follower.close(OPEN + 61_000) == ([], False)
    follower.note(bar_record(said, OPEN + 61_000))
    (bar,) = follower.finished("NSE:TCS", "1m")
    assert figures(bar) == figures(said)


def test_stored_minutes_fill_the_longer_bars_that_form() -> None:
    builder = built(tick(OPEN, 100.0, 5), tick(OPEN + 900_000, 101.0, 5))
    stored = minutes(builder.close(OPEN + 962_000)[0])
    filled = Bar(
        **{name: getattr(stored[0], name) for name in stored[0].__struct_fields__}
        | {"start_ms": OPEN + 300_000, "high": 300.0, "volume": 50}
    )
    builder.refill("NSE:TCS", [stored[0], filled])
    hour = builder.forming("NSE:TCS", "1h")
    assert hour is not None
    assert (hour.open, hour.high, hour.close, hour.volume) == (100.0, 300.0, 101.0, 60)
    (revised,) = [bar for bar in builder.close(OPEN + 963_000)[0] if bar.interval == "15m"]
    assert (revised.revision, revised.high, revised.volume) == (1, 300.0, 55)


def test_a_record_says_the_whole_bar() -> None:
    builder = built(tick(OPEN, 100.25, None), tick(OPEN + 1, 101.0, None, provider="YF"))
    for bar in builder.close(CLOSE + 10_000)[0]:
        record = bar_record(bar, CLOSE)
        assert parse_bar(record) == bar
        assert "v" not in record.fields
        assert record.fields["o"] == "100.25"


def test_a_repeat_of_the_last_trade_after_a_restart_does_not_begin_its_minute_anew() -> None:
    # The book moves without a trade: every packet carries the time of the last one, half an hour old.
    traded, now_ms = OPEN + 300_500, OPEN + 2_100_000
    builder = BarBuilder(GRID)
    builder.recall_known({"NSE:TCS": traded})
    builder.close(now_ms)
    builder.take(tick(traded + 1, 100.0, None, received_ms=now_ms))
    assert builder.close(CLOSE + 10_000)[0] == []
    assert builder.refused == {"too_late": 1}


def test_what_a_snapshot_tells_of_the_past_is_not_built_from_its_repeats() -> None:
    traded, now_ms = OPEN + 300_500, OPEN + 2_100_000
    builder = built(tick(OPEN + 1, 90.0))
    builder.close(now_ms)
    builder.take(tick(traded, 100.0, None, flags=FLAG_SNAPSHOT))
    builder.take(tick(traded + 1, 100.0, None))
    assert {bar.interval for bar in builder.close(CLOSE + 10_000)[0]} == {"1h", "1d"}
    assert builder.refused == {"snapshot": 1, "too_late": 1}


def test_a_minute_that_comes_too_late_for_its_longer_bar_does_not_take_its_place() -> None:
    builder = built(tick(OPEN + 1, 100.0, 10))
    said = builder.close(OPEN + 700_000)[0]
    assert ("5m", OPEN) in [(bar.interval, bar.start_ms) for bar in said]
    builder.take(tick(OPEN + 120_001, 101.0, 1, received_ms=OPEN + 700_000))
    late = builder.close(CLOSE + 10_000)[0]
    assert ("1m", OPEN + 120_000) in [(bar.interval, bar.start_ms) for bar in late]
    assert not [bar for bar in late if bar.interval == "5m"]


@pytest.mark.parametrize("ticks_first", [True, False])
def test_the_morning_that_is_fetched_before_the_first_minute_ends_is_in_the_day(ticks_first: bool) -> None:
    begins = OPEN + 3_600_000
    builder = BarBuilder(GRID)
    builder.close(begins)
    fetched = built(tick(OPEN, 200.0, 50), tick(OPEN + 60_000, 50.0, 7)).close(OPEN + 130_000)[0]
    if ticks_first:
        built(tick(begins + 5_000, 100.0, 1), builder=builder)
    builder.refill("NSE:TCS", minutes(fetched))
    if not ticks_first:
        built(tick(begins + 5_000, 100.0, 1), builder=builder)
    forming = builder.forming("NSE:TCS", "1d")
    assert forming is not None
    assert (forming.open, forming.high, forming.low, forming.volume) == (200.0, 200.0, 50.0, 58)
    (day,) = [bar for bar in builder.close(CLOSE + 10_000)[0] if bar.interval == "1d"]
    assert (day.start_ms, day.open, day.high, day.low, day.close, day.volume) == (
        OPEN,
        200.0,
        200.0,
        50.0,
        100.0,
        58,
    )


def test_what_is_fetched_of_an_instrument_nobody_watches_makes_no_bars_here() -> None:
    builder = BarBuilder(GRID)
    builder.close(OPEN + 3_600_000)
    builder.refill("NSE:TCS", minutes(built(tick(OPEN, 200.0, 50)).close(OPEN + 130_000)[0]))
    assert builder.close(CLOSE + 10_000)[0] == []


def test_a_bar_that_ended_just_now_is_said_again_when_its_day_was_made_of_stored_minutes() -> None:
    # What is stored may lack its last minute, which was still on its way, and have been written over it.
    builder = built(tick(OPEN + 1, 100.0, 10), tick(OPEN + 240_001, 101.0, 5))
    said = [bar for bar in builder.close(OPEN + 301_100)[0] if bar.interval == "5m"]
    assert [figures(bar)[:5] for bar in said] == [(100.0, 101.0, 100.0, 101.0, 15)]
    stored = [bar for bar in minutes(builder.finished("NSE:TCS", "1m")) if bar.start_ms == OPEN]
    builder.refill("NSE:TCS", stored)
    (again,) = [bar for bar in builder.close(OPEN + 303_000)[0] if bar.interval == "5m"]
    assert (again.revision, figures(again)[:5]) == (1, (100.0, 101.0, 100.0, 101.0, 15))
    builder.close(OPEN + 330_000)
    builder.refill("NSE:TCS", stored)
    assert [bar for bar in builder.close(OPEN + 332_000)[0] if bar.interval == "5m"] == []
