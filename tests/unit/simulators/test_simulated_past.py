"""The past of the simulated market ends where the live market begins, and is else the same for everybody."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from simulators.market import Instrument, InstrumentSpec, Kind, Market
from simulators.past import ALWAYS, FX, INDIA, NEW_YORK, Hours, PastBar, around_the_clock, bars, daily_bars

DAY_S = 86_400


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


NOON_S = at("2026-11-12T06:30")
SPECS = (
    InstrumentSpec(name="NSE:RELIANCE", price="1250.00", tick="0.05"),
    InstrumentSpec(name="NSE:NIFTY", kind=Kind.INDEX, price="25000.00", tick="0.05"),
    InstrumentSpec(name="CRYPTO:BTC-USD", kind=Kind.CRYPTO, price="90000.00", tick="0.01"),
    InstrumentSpec(name="NSE:CHEAP", price="8.15", tick="0.05"),
)
MARKETS = (
    (INDIA, NOON_S),
    (around_the_clock(INDIA), at("2026-11-12T22:47")),
    (NEW_YORK, at("2026-11-12T15:05")),
    (ALWAYS, at("2026-11-12T03:33")),
    (FX, at("2026-11-10T13:20")),
)


def stride(it: Instrument) -> float:
    return it.stride * it.tick_size


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(("hours", "began_s"), MARKETS)
@pytest.mark.parametrize("asked_before", [False, True])
def test_the_past_ends_at_the_price_at_which_the_live_market_begins(
    spec: InstrumentSpec, hours: Hours, began_s: int, asked_before: bool
) -> None:
    it = Market().instrument(spec)
    price = it.price
    if asked_before:
        bars(it, hours, 1, began_s - 3_600, began_s, began_s)
    for second in range(150):
        it.step((began_s + second) * 1_000)
    found = bars(it, hours, 1, began_s - 3 * 3_600, began_s + 180, began_s + 170)
    past = [bar for bar in found if bar.start_s < began_s // 60 * 60]
    live = found[len(past) :]
    assert (past[-1].close, len(live)) == (price, 3)
    assert abs(live[0].open - past[-1].close) <= 2.01 * stride(it), "one step of the market"
    within_a_day = [(one, two) for one, two in pairwise(past) if two.start_s - one.start_s == 60]
    # At midnight the slow wave goes on by eight steps.
    assert max(abs(two.open - one.close) for one, two in within_a_day) <= 9.01 * stride(it)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_bar_of_the_last_days_holds_together(spec: InstrumentSpec) -> None:
    it = Market().instrument(spec)
    minutes = bars(it, INDIA, 1, NOON_S - 3 * DAY_S, NOON_S, NOON_S)
    for bar in minutes:
        assert bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        for price in bar[1:5]:
            assert price > 0
            assert round(price / it.tick_size) * it.tick_size == pytest.approx(price, abs=1e-9)
    for bar in bars(it, INDIA, 15, NOON_S - 3 * DAY_S, NOON_S, NOON_S)[:-1]:
        assert bar == folded([one for one in minutes if 0 <= one.start_s - bar.start_s < 900])
    yesterday = daily_bars(it, INDIA, NOON_S - DAY_S - 43_200, NOON_S - 43_200, NOON_S)
    assert yesterday == [
        folded([one for one in minutes if 0 <= one.start_s - yesterday[0].start_s < DAY_S // 2])
    ]


def folded(parts: list[PastBar]) -> PastBar:
    return PastBar(
        parts[0].start_s,
        parts[0].open,
        max(one.high for one in parts),
        min(one.low for one in parts),
        parts[-1].close,
        sum(one.volume for one in parts),
    )


def test_what_is_older_than_a_day_depends_on_no_beginning() -> None:
    def old(began_s: int) -> list[PastBar]:
        it = Market().instrument(SPECS[0])
        it.step(began_s * 1_000)
        return bars(it, INDIA, 1, NOON_S - 9 * DAY_S, NOON_S - 2 * DAY_S, began_s)

    assert old(NOON_S) == old(NOON_S + 3_600) == old(NOON_S + 3 * DAY_S)


def test_the_same_beginning_makes_the_same_past_and_later_questions_change_nothing() -> None:
    def near(*questions_s: int) -> list[PastBar]:
        it = Market().instrument(SPECS[0])
        for asked_s in questions_s:
            bars(it, INDIA, 1, asked_s - 600, asked_s, asked_s)
        return bars(it, INDIA, 1, NOON_S - DAY_S, NOON_S, questions_s[-1])

    assert near(NOON_S) == near(NOON_S, NOON_S + 1_200, NOON_S + 5_400)


@pytest.mark.parametrize("began", ["2026-11-14T11:00", "2026-11-13T19:00"])
def test_a_market_that_is_closed_at_the_beginning_was_left_at_its_price(began: str) -> None:
    it = Market().instrument(SPECS[0])
    found = bars(it, INDIA, 1, at(began) - 3 * DAY_S, at(began), at(began))
    assert found[-1].start_s == at("2026-11-13T09:59")
    assert found[-1].close == it.price
