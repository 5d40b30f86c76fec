"""The normaliser on single ticks and short sequences; pure, no servers."""

from __future__ import annotations

import math
import struct

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.normaliser import IST_OFFSET_MS, ZONE_ALARM_AFTER, Normaliser
from services.market_data.records import (
    FLAG_LATE,
    FLAG_SKEWED,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    DataIngestionFormat,
    ProviderTick,
)

NOW_MS = 1_790_748_968_412
SECOND_MS = NOW_MS - NOW_MS % 1000


def mapping(
    asset_class: AssetClass = AssetClass.EQUITY, tick_size: float | None = 0.05, symbol: str = "RELIANCE"
) -> InstrumentMapping:
    return InstrumentMapping(
        mapping_id=1,
        instrument=f"NSE:{symbol}",
        exchange="NSE",
        symbol=symbol,
        name=symbol,
        asset_class=asset_class,
        currency="INR",
        provider_code="DHAN",
        search_code=f"{symbol}-EQ",
        segment="NSE_EQ",
        security_id="2885",
        tick_size=tick_size,
    )


def normaliser(*mappings: InstrumentMapping) -> Normaliser:
    result = Normaliser("DHAN")
    result.load(mappings or (mapping(),))
    return result


def tick(price: float | None = 1192.3, **fields: object) -> ProviderTick:
    values: dict[str, object] = {
        "provider_symbol": "NSE_EQ:2885",
        "price": price,
        "event_ms": SECOND_MS,
        "event_resolution_ms": 1000,
    }
    return ProviderTick(**(values | fields))


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_a_tick_becomes_the_record_of_its_instrument() -> None:
    record = normaliser().accept(
        tick(float32(1192.3), cumulative_volume=100, bid=float32(1192.25), ask=float32(1192.3)), NOW_MS
    )
    assert record is not None
    assert (record.symbol, record.exchange, record.provider_code) == ("NSE:RELIANCE", "NSE", "DHAN")
    assert (record.price, record.bid, record.ask) == (1192.3, 1192.25, 1192.3)
    assert (record.provider_symbol, record.received_ms, record.cumulative_volume) == (
        "NSE_EQ:2885",
        NOW_MS,
        100,
    )
    assert record.volume is None, "the first cumulative figure is only a baseline"


@pytest.mark.parametrize(
    ("price", "reason"),
    [
        (math.nan, "not_finite"),
        (math.inf, "not_finite"),
        (-math.inf, "not_finite"),
        (0.0, "zero_price"),
        (-37.63, "negative_price"),
        (1e30, "absurd_price"),
    ],
)
def test_a_price_that_cannot_be_a_trade_is_refused_and_counted(price: float, reason: str) -> None:
    subject = normaliser()
    assert subject.accept(tick(price), NOW_MS) is None
    assert subject.counters.rejected == {reason: 1}


def test_a_future_may_trade_below_zero() -> None:
    record = normaliser(mapping(AssetClass.FUTURE, 0.01)).accept(tick(float32(-37.63)), NOW_MS)
    assert record is not None
    assert record.price == -37.63


@pytest.mark.parametrize(
    ("event_ms", "reason"),
    [
        (0, "no_time"),
        (315_532_800_000, "no_time"),
        (NOW_MS - 60 * 3_600_000, "stale"),
        (NOW_MS + 25 * 3_600_000, "far_future"),
        (4_102_444_800_000, "far_future"),
    ],
)
def test_a_time_that_cannot_be_is_refused_and_counted(event_ms: int, reason: str) -> None:
    subject = normaliser()
    assert subject.accept(tick(event_ms=event_ms), NOW_MS) is None
    assert subject.counters.rejected == {reason: 1}


def test_a_time_ahead_of_ours_is_replaced_by_the_receive_time_and_flagged() -> None:
    subject = normaliser()
    record = subject.accept(tick(event_ms=SECOND_MS + 19_800_000), NOW_MS)
    assert record is not None
    assert record.timestamp == NOW_MS
    assert record.flags & FLAG_SKEWED
    again = subject.accept(tick(1192.35, event_ms=SECOND_MS + 19_800_000), NOW_MS)
    assert again is not None
    assert again.timestamp == NOW_MS + 1, "no tick overwrites another"


def test_five_seconds_ahead_is_still_believed() -> None:
    record = normaliser().accept(tick(event_ms=SECOND_MS + 5_000), SECOND_MS)
    assert record is not None
    assert record.timestamp // 1000 == SECOND_MS // 1000 + 5
    assert not record.flags


def test_an_old_snapshot_is_refused_but_kept_as_reference() -> None:
    subject = normaliser()
    old_ms = SECOND_MS - 60 * 3_600_000
    assert subject.accept(tick(event_ms=old_ms, flags=FLAG_SNAPSHOT), NOW_MS) is None
    assert subject.counters.rejected == {"stale": 1}
    assert subject.reference_quote is not None
    assert (subject.reference_quote.price, subject.reference_quote.timestamp) == (1192.3, old_ms)


def test_an_unmapped_symbol_is_counted_and_never_passed_on() -> None:
    subject = normaliser()
    assert subject.accept(tick(provider_symbol="NSE_CURRENCY:2885"), NOW_MS) is None
    assert subject.counters.rejected == {"unmapped": 1}


def test_whole_second_times_become_distinct_inside_their_second() -> None:
    subject = normaliser()
    times = []
    for step in range(4):
        record = subject.accept(tick(1192.3 + step * 0.05), NOW_MS)
        assert record is not None
        times.append(record.timestamp)
    assert times == [NOW_MS, NOW_MS + 1, NOW_MS + 2, NOW_MS + 3]


def test_a_tick_received_after_its_second_counts_up_from_the_seconds_start() -> None:
    subject = normaliser()
    received_ms = SECOND_MS + 1_700
    times = [
        record.timestamp
        for step in range(3)
        if (record := subject.accept(tick(1192.3 + step * 0.05), received_ms)) is not None
    ]
    assert times == [SECOND_MS, SECOND_MS + 1, SECOND_MS + 2]


def test_times_never_leave_their_second_however_many_ticks_it_holds() -> None:
    subject = normaliser()
    times = [
        record.timestamp
        for step in range(1_500)
        if (record := subject.accept(tick(100 + step * 0.05), SECOND_MS + 990)) is not None
    ]
    assert len(times) == 1_500
    assert times == sorted(times)
    assert times[-1] == SECOND_MS + 999


def test_millisecond_times_are_kept_as_they_are() -> None:
    record = normaliser().accept(tick(event_ms=SECOND_MS + 7, event_resolution_ms=1), NOW_MS)
    assert record is not None
    assert record.timestamp == SECOND_MS + 7


def test_volume_is_the_difference_of_the_cumulative_figure() -> None:
    subject = normaliser()
    volumes = []
    for step, cumulative in enumerate([1_000, 1_010, 1_010, 1_500]):
        record = subject.accept(tick(1192.3 + step * 0.05, cumulative_volume=cumulative), NOW_MS)
        assert record is not None
        volumes.append(record.volume)
    assert volumes == [None, 10, 0, 490]


def test_a_falling_cumulative_volume_is_a_new_baseline_and_never_negative() -> None:
    subject = normaliser()
    volumes, flags = [], []
    for step, cumulative in enumerate([1_000, 900, 950]):
        record = subject.accept(tick(1192.3 + step * 0.05, cumulative_volume=cumulative), NOW_MS)
        assert record is not None
        volumes.append(record.volume)
        flags.append(record.flags)
    assert volumes == [None, None, 50]
    assert flags == [0, FLAG_SUSPECT, 0]
    assert subject.counters.noted == {"volume_backwards": 1}


def test_at_a_new_day_the_volume_begins_anew_without_a_remark_on_the_tick() -> None:
    subject = normaliser()
    for at_ms, cumulative in ((NOW_MS - 24 * 3_600_000, 9_000), (NOW_MS, 100), (NOW_MS + 1_000, 130)):
        record = subject.accept(tick(1192.3, event_ms=at_ms, cumulative_volume=cumulative), at_ms)
        assert record is not None
        assert not record.flags
    assert record.volume == 30
    assert subject.counters.noted == {"volume_rebased": 1}


def test_times_that_are_constantly_behind_by_indias_offset_raise_an_alarm_and_are_replaced() -> None:
    subject = normaliser()
    behind_ms = NOW_MS - IST_OFFSET_MS
    with structlog.testing.capture_logs() as logs:
        records = [
            subject.accept(tick(1192.3 + i * 0.05, event_ms=behind_ms + i * 1_000), NOW_MS + i * 1_000)
            for i in range(150)
        ]
    assert [entry["event"] for entry in logs] == ["provider_time_zone_wrong"]
    assert subject.counters.rejected == {"stale": ZONE_ALARM_AFTER - 1}
    kept = [record for record in records if record is not None]
    assert [record.timestamp for record in kept] == [
        NOW_MS + i * 1_000 for i in range(ZONE_ALARM_AFTER - 1, 150)
    ]
    assert {record.flags for record in kept} == {FLAG_SKEWED}
    good = subject.accept(tick(1200.0, event_ms=NOW_MS + 200_000), NOW_MS + 200_000)
    assert good is not None
    assert not good.flags


def test_a_symbol_nobody_mapped_is_named_once_a_minute() -> None:
    subject = normaliser()
    with structlog.testing.capture_logs() as logs:
        for second in range(125):
            stray = ProviderTick(provider_symbol="NSE_EQ:9", price=1.0)
            assert subject.accept(stray, NOW_MS + second * 1_000) is None
    assert [(entry["symbol"], entry["unlogged"]) for entry in logs] == [("NSE_EQ:9", n) for n in (0, 59, 59)]
    assert subject.counters.rejected == {"unmapped": 125}


def test_after_a_rebase_the_next_figure_is_only_a_baseline() -> None:
    subject = normaliser()
    subject.accept(tick(cumulative_volume=1_000), NOW_MS)
    subject.rebase(["NSE_EQ:2885"])
    after = subject.accept(tick(1192.35, cumulative_volume=9_000), NOW_MS)
    assert after is not None
    assert after.volume is None


@pytest.mark.parametrize("asset_class", [AssetClass.INDEX, AssetClass.FX])
def test_an_instrument_without_trades_has_no_volume(asset_class: AssetClass) -> None:
    subject = normaliser(mapping(asset_class))
    subject.accept(tick(cumulative_volume=0), NOW_MS)
    record = subject.accept(tick(1192.35, cumulative_volume=0), NOW_MS)
    assert record is not None
    assert record.volume is None
    assert record.cumulative_volume is None


def test_the_same_frame_three_times_is_one_tick() -> None:
    subject = normaliser()
    frames = [tick(cumulative_volume=100, bid=1192.25, ask=1192.35, bid_size=5, ask_size=6) for _ in range(3)]
    accepted = [record for frame in frames if (record := subject.accept(frame, NOW_MS)) is not None]
    assert len(accepted) == 1
    assert subject.counters.rejected == {"duplicate": 2}


def test_the_same_trade_with_a_new_book_is_an_update_without_quantity() -> None:
    subject = normaliser()
    subject.accept(tick(cumulative_volume=100, bid=1192.25), NOW_MS)
    update = subject.accept(tick(cumulative_volume=100, bid=1192.2), NOW_MS)
    assert update is not None
    assert (update.volume, update.bid) == (0, 1192.2)


def test_a_repeat_of_an_older_tick_is_a_duplicate_too() -> None:
    subject = normaliser()
    first = tick(1192.3, cumulative_volume=10)
    subject.accept(first, NOW_MS)
    subject.accept(tick(1192.4, cumulative_volume=20, event_ms=SECOND_MS + 1_000), NOW_MS + 1_000)
    assert subject.accept(first, NOW_MS + 1_200) is None
    assert subject.counters.rejected == {"duplicate": 1}


def test_a_late_tick_keeps_its_own_second_and_overwrites_nothing() -> None:
    subject = normaliser()
    on_time = subject.accept(tick(1192.3, cumulative_volume=10), SECOND_MS + 1_500)
    newer = subject.accept(tick(1192.4, cumulative_volume=20, event_ms=SECOND_MS + 2_000), SECOND_MS + 2_100)
    late = subject.accept(tick(1192.35, cumulative_volume=15), SECOND_MS + 2_200)
    later = subject.accept(tick(1192.45, cumulative_volume=25, event_ms=SECOND_MS + 3_000), SECOND_MS + 3_100)
    assert on_time is not None
    assert newer is not None
    assert late is not None
    assert later is not None
    assert late.flags & FLAG_LATE
    assert late.timestamp // 1000 == SECOND_MS // 1000
    assert late.timestamp != on_time.timestamp
    assert late.volume is None
    assert later.volume == 5, "the late tick did not touch the baseline"


def test_after_a_restart_the_stored_tick_is_not_accepted_again() -> None:
    before = normaliser()
    stored = before.accept(tick(float32(1192.3), cumulative_volume=100, bid=float32(1192.25)), NOW_MS)
    assert stored is not None
    after = normaliser()
    after.seed("NSE_EQ:2885", stored)
    assert (
        after.accept(tick(float32(1192.3), cumulative_volume=100, bid=float32(1192.25)), NOW_MS + 9_000)
        is None
    )
    assert after.counters.rejected == {"duplicate": 1}
    fresh = after.accept(tick(float32(1192.35), cumulative_volume=105), NOW_MS + 9_000)
    assert fresh is not None
    assert not fresh.flags & FLAG_LATE
    assert fresh.timestamp > stored.timestamp


def test_reference_values_without_a_price_are_merged_into_the_next_tick() -> None:
    subject = normaliser(mapping(AssetClass.FUTURE))
    assert subject.accept(tick(None, event_ms=None, oi=5_000), NOW_MS) is None
    assert subject.accept(tick(None, event_ms=None, previous_close=float32(1190.05)), NOW_MS) is None
    record = subject.accept(tick(), NOW_MS)
    assert record is not None
    assert (record.oi, record.previous_close) == (5_000, 1190.05)
    assert subject.counters.merged == 2


def test_absent_values_stay_unknown_and_zero_quotes_are_absent() -> None:
    record = normaliser().accept(tick(bid=0.0, ask=0.0), NOW_MS)
    assert record is not None
    assert (record.bid, record.ask, record.oi, record.day_high, record.volume) == (None,) * 5


def test_a_tenfold_price_is_kept_and_flagged_until_it_proves_to_be_the_market() -> None:
    subject = normaliser()
    flags = []
    for step, price in enumerate([1192.3, 11_923.0, 11_923.05, 11_923.1, 11_923.15, 11_923.2]):
        record = subject.accept(tick(price, event_ms=SECOND_MS + step * 1_000), NOW_MS + step * 1_000)
        assert record is not None
        flags.append(bool(record.flags & FLAG_SUSPECT))
    assert flags == [False, True, True, True, False, False]


def test_reloading_mappings_keeps_the_memory_of_those_that_stay() -> None:
    subject = normaliser()
    subject.accept(tick(cumulative_volume=100), NOW_MS)
    subject.load([mapping(tick_size=0.1)])
    record = subject.accept(tick(1192.4, cumulative_volume=130), NOW_MS)
    assert record is not None
    assert record.volume == 30


@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(allow_nan=True, allow_infinity=True, width=32), st.just(1192.3), st.none()),
            st.integers(min_value=-(10**15), max_value=10**16),
            st.one_of(st.none(), st.integers(min_value=0, max_value=2**32 - 1)),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_every_record_is_accounted_for_and_nothing_unfit_is_passed_on(
    frames: list[tuple[float | None, int, int | None, bool]],
) -> None:
    subject = normaliser()
    accepted: list[DataIngestionFormat] = []
    for price, offset_ms, volume, whole_seconds in frames:
        record = subject.accept(
            tick(
                price,
                event_ms=NOW_MS + offset_ms,
                event_resolution_ms=1000 if whole_seconds else 1,
                cumulative_volume=volume,
            ),
            NOW_MS,
        )
        if record is not None:
            accepted.append(record)
    counters = subject.counters
    assert counters.records == len(frames)
    assert counters.records == counters.accepted + counters.merged + sum(counters.rejected.values())
    for record in accepted:
        assert math.isfinite(record.price)
        assert record.price > 0
        assert record.timestamp <= NOW_MS + 6_000
        assert record.timestamp >= NOW_MS - 3_601_000
        assert record.volume is None or record.volume >= 0


def test_a_clock_that_is_ahead_by_indias_offset_raises_one_alarm_and_no_correction() -> None:
    subject = normaliser()
    with structlog.testing.capture_logs() as logs:
        for step in range(ZONE_ALARM_AFTER + 50):
            record = subject.accept(
                tick(100 + step * 0.05, event_ms=NOW_MS + IST_OFFSET_MS + step), NOW_MS + step
            )
            assert record is not None
            assert record.timestamp <= NOW_MS + 2 * step + 1, "the receive time is used"
    alarms = [log for log in logs if log["event"] == "provider_time_zone_wrong"]
    assert len(alarms) == 1


def test_other_offsets_raise_no_alarm_about_the_time_zone() -> None:
    subject = normaliser()
    with structlog.testing.capture_logs() as logs:
        for step in range(ZONE_ALARM_AFTER + 50):
            subject.accept(tick(100 + step * 0.05, event_ms=NOW_MS + 3_600_000 + step), NOW_MS + step)
    assert logs == []
