"""Mappings that cannot be right: when two providers' prices are compared, and when that is an alarm."""

from __future__ import annotations

import pytest

from services.market_data.instruments import AssetClass
from services.quality.prices import PriceComparison, Quote, difference_bps

NOW_MS = 1_790_748_968_000
KEY = "NSE:RELIANCE"


class Market:
    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.comparison = PriceComparison()
        self.first = {"provider": "DHAN", "symbol": "NSE_EQ:2885", "price": 2_450.0}
        self.second = {"provider": "YF", "symbol": "RELIANCE.NS", "price": 2_450.5}
        self.age_ms = {"DHAN": 500, "YF": 900}
        self.real_time = {"DHAN": True, "YF": True}
        self.asset_class = AssetClass.EQUITY

    def minutes(self, count: int) -> list[tuple[str, str, float]]:
        found: list[tuple[str, str, float]] = []
        for _ in range(count):
            self.now_ms += 60_000
            quotes = [
                Quote(
                    side["provider"],
                    side["symbol"],
                    side["price"],
                    self.now_ms - 100,
                    self.now_ms - self.age_ms[side["provider"]],
                    self.real_time[side["provider"]],
                )
                for side in (self.first, self.second)
            ]
            found += self.comparison.compare(KEY, self.asset_class, quotes, self.now_ms)
        return found

    def alarm(self) -> str | None:
        found = self.comparison.alarms(self.now_ms).get(KEY)
        return found.text() if found else None


def test_prices_that_agree_are_measured_and_no_alarm() -> None:
    market = Market()
    found = market.minutes(30)
    assert len(found) == 30
    assert found[0] == ("DHAN", "YF", pytest.approx(2.04, abs=0.01))
    assert market.alarm() is None


def test_a_wrong_mapping_is_an_alarm_after_ten_minutes_and_names_both_symbols() -> None:
    market = Market()
    market.second |= {"symbol": "RELIANCEPP.NS", "price": 1_200.0}
    market.minutes(10)
    assert market.alarm() is None
    market.minutes(1)
    text = market.alarm()
    assert text is not None
    assert "NSE:RELIANCE: DHAN (NSE_EQ:2885) 2450 and YF (RELIANCEPP.NS) 1200 are 6849 bps apart" in text
    market.second |= {"symbol": "RELIANCE.NS", "price": 1_200.0}
    market.minutes(1)
    assert market.alarm() is None, "mapped anew, it begins anew"


def test_one_minute_of_agreement_begins_anew() -> None:
    market = Market()
    market.second["price"] = 2_500.0
    market.minutes(9)
    market.second["price"] = 2_451.0
    market.minutes(1)
    market.second["price"] = 2_500.0
    market.minutes(9)
    assert market.alarm() is None


def test_an_alarm_ends_well_below_the_limit_only() -> None:
    market = Market()
    market.second["price"] = 2_500.0
    market.minutes(12)
    market.second["price"] = 2_470.0  # 81 bps
    market.minutes(5)
    assert market.alarm() is not None
    market.second["price"] = 2_455.0
    market.minutes(1)
    assert market.alarm() is None


@pytest.mark.parametrize("why", ["old", "delayed", "no price time", "apart in time"])
def test_what_is_not_fresh_on_both_sides_is_not_compared(why: str) -> None:
    market = Market()
    market.second["price"] = 1.0
    if why == "delayed":
        market.real_time["YF"] = False
    elif why == "no price time":
        market.age_ms["YF"] = market.now_ms + 60_000
    else:
        market.age_ms["YF"] = 20_000 if why == "apart in time" else 900_000
    assert market.minutes(1) == []
    assert market.alarm() is None


def test_options_may_differ_more() -> None:
    market = Market()
    market.asset_class = AssetClass.OPTION
    market.second["price"] = 2_600.0
    market.minutes(30)
    assert market.alarm() is None


def test_what_was_not_compared_for_an_hour_or_is_unmapped_is_forgotten() -> None:
    market = Market()
    market.second["price"] = 1_200.0
    market.minutes(12)
    market.now_ms += 3_700_000
    assert market.alarm() is None
    market.minutes(12)
    assert market.alarm() is not None
    market.comparison.retain(set())
    assert market.alarm() is None


def test_a_difference_is_of_the_mean() -> None:
    assert difference_bps(99.0, 101.0) == pytest.approx(200.0)
    assert difference_bps(-99.0, -101.0) == pytest.approx(200.0)
    assert difference_bps(0.0, 0.0) == 0.0
