"""The market model: identity mode to the letter, the random walk on its grid, what never happens."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.market import DEPTH_LEVELS, Instrument, InstrumentSpec, Kind, Market, exact_text
from simulators.universe import dhan_specs, price_list, yahoo_rows


def _instrument(*, identity: bool = False, seed: int = 1, **spec: object) -> Instrument:
    return Instrument(InstrumentSpec(name="X", **spec), seed=seed, identity=identity)  # type: ignore[arg-type]


def test_in_identity_mode_price_and_quantity_follow_from_the_sequence() -> None:
    it = _instrument(identity=True, price="1192.30", tick="0.10", day_volume=1_000)
    volume = 1_000
    for seq in range(1, 2_000):
        tick = it.step(seq)
        volume += 1 + seq % 97
        assert Decimal(tick.price_text) == Decimal("1192.30") + seq * Decimal("0.10")
        assert tick.price == float(tick.price_text)
        assert (tick.seq, tick.quantity, tick.volume, tick.event_ms) == (seq, 1 + seq % 97, volume, seq)


@given(
    seed=st.integers(0, 10_000),
    price=st.integers(7, 10_000_000),
    tick=st.sampled_from(["0.0025", "0.01", "0.05", "0.10", "1", "5"]),
    steps=st.integers(1, 200),
)
def test_the_walk_stays_on_its_grid_above_zero_and_its_volume_only_grows(
    seed: int, price: int, tick: str, steps: int
) -> None:
    base = price * Decimal(tick)
    it = _instrument(seed=seed, price=str(base), tick=tick)
    before = it.volume
    for step in range(steps):
        made = it.step(step)
        assert made.price > 0
        assert Decimal(made.price_text) % Decimal(tick) == 0
        assert made.volume > before
        before = made.volume
        assert it.low_units <= it.price_units <= it.high_units
        assert it.low_units <= it.open_units <= it.high_units


def test_the_walk_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    walks = [[_walk.step(0).price for _ in range(50)] for _walk in map(_seeded, (1, 1, 2))]
    assert walks[0] == walks[1] != walks[2]


def _seeded(seed: int) -> Instrument:
    return _instrument(seed=seed)


def test_a_long_walk_stays_near_where_it_began() -> None:
    it = _instrument(price="1000", tick="0.05")
    for _ in range(50_000):
        it.step(0)
    assert it.low_units / 100 > 800
    assert it.high_units / 100 < 1_250


@pytest.mark.parametrize("kind", [Kind.INDEX, Kind.FX])
def test_an_index_and_an_exchange_rate_have_no_volume(kind: Kind) -> None:
    it = _instrument(kind=kind, day_volume=500)
    tick = it.step(0)
    assert (tick.quantity, tick.volume) == (0, 0)


def test_the_rolling_volume_of_a_crypto_pair_moves_both_ways() -> None:
    it = _instrument(kind=Kind.CRYPTO, rolling_volume=1_000_000)
    seen = []
    for _ in range(9):
        before = it.rolling_volume
        it.step(0)
        seen.append(it.rolling_volume - before)
    assert min(seen) < 0 < max(seen)


def test_open_interest_moves_between_its_high_and_low_in_whole_lots() -> None:
    it = _instrument(kind=Kind.FUTURE, oi=6_500, lot=65)
    for _ in range(100):
        it.step(0)
        assert it.oi_low <= it.oi <= it.oi_high
        assert it.oi % 65 == 0
    assert it.oi_low < it.oi_high


def test_the_book_lies_around_the_price_best_level_first() -> None:
    it = _instrument(price="100", tick="0.05")
    levels = [it.book(level) for level in range(DEPTH_LEVELS)]
    bids, asks = [level[4] for level in levels], [level[5] for level in levels]
    assert bids == [99.95, 99.9, 99.85, 99.8, 99.75]
    assert asks == [100.05, 100.1, 100.15, 100.2, 100.25]


def test_a_bid_that_would_not_be_above_zero_is_an_empty_level() -> None:
    it = _instrument(price="0.10", tick="0.05")
    assert it.book(0)[4] == 0.05
    bid_quantity, ask_quantity, bid_orders, _, bid, ask = it.book(1)
    assert (bid_quantity, bid_orders, bid) == (0, 0, 0.0)
    assert ask_quantity > 0
    assert ask == 0.2


@pytest.mark.parametrize("price", [float("nan"), float("inf"), 0.0, -5.0])
def test_a_damaged_price_goes_out_and_leaves_the_market_where_it_was(price: float) -> None:
    it = _instrument(price="100", tick="0.05")
    tick = it.trade(0, price=price, quantity=3)
    assert tick.price_text == exact_text(price, 2)
    assert it.price == 100.0
    assert (it.low_units, it.high_units) == (it.base_units, it.base_units)


def test_a_manual_tick_may_lie_off_the_grid_and_set_the_volume() -> None:
    it = _instrument(price="100", tick="0.05", day_volume=900)
    tick = it.trade(5, price=100.07, quantity=4, volume=50)
    assert (tick.price_text, tick.quantity, tick.volume) == ("100.07", 4, 50)
    again = it.trade(6, quantity=6)
    assert (again.price_text, again.volume) == ("100.07", 56)


def test_the_average_price_is_weighted_by_volume() -> None:
    it = _instrument(price="100", tick="1", day_volume=10)
    it.trade(0, price=200, quantity=30)
    assert it.average_price == pytest.approx((10 * 100 + 30 * 200) / 40)


@pytest.mark.parametrize(("price", "tick"), [("0", "1"), ("1", "0"), ("-1", "1")])
def test_an_instrument_without_a_price_or_a_tick_size_is_refused(price: str, tick: str) -> None:
    with pytest.raises(ValueError, match="greater than zero"):
        _instrument(price=price, tick=tick)


@pytest.mark.parametrize(
    ("price", "decimals", "text"), [(1192.3, 2, "1192.30"), (100.125, 2, "100.125"), (float("nan"), 2, "nan")]
)
def test_a_price_is_written_as_the_decimal_that_is_meant(price: float, decimals: int, text: str) -> None:
    assert exact_text(price, decimals) == text


def test_a_market_knows_each_name_once() -> None:
    market = Market()
    spec = InstrumentSpec(name="NSE:RELIANCE")
    assert market.instrument(spec) is market.instrument(InstrumentSpec(name="NSE:RELIANCE", price="5"))


# The shipped list.


def test_every_shipped_instrument_has_a_price_on_its_tick_grid() -> None:
    specs = [row.spec for row in price_list().values()] + list(dhan_specs().values())
    for spec in specs:
        assert Decimal(spec.price) > 0, spec
        assert Decimal(spec.price) % Decimal(spec.tick) == 0, spec


def test_identity_prices_survive_float32_for_every_shipped_instrument() -> None:
    # Half a tick must exceed the rounding of float32, or the tick could not be recognised again.
    for spec in [row.spec for row in price_list().values()] + list(dhan_specs().values()):
        half_step = 2.0 ** (math.frexp(float(spec.price))[1] - 25)
        assert half_step < float(spec.tick) / 2, spec


def test_the_instruments_of_the_two_vendors_meet_by_name() -> None:
    for dhan, yahoo in {
        "NSE_EQ:2885": "RELIANCE.NS",
        "BSE_EQ:500325": "RELIANCE.BO",
        "IDX_I:13": "^NSEI",
        "IDX_I:51": "^BSESN",
        "NSE_EQ:2031": "M&M.NS",
    }.items():
        assert dhan_specs()[dhan].name == yahoo_rows()[yahoo].spec.name


def test_an_id_means_different_things_in_different_segments() -> None:
    specs = dhan_specs()
    assert specs["NSE_EQ:2885"].kind is Kind.EQUITY
    assert specs["NSE_CURRENCY:2885"].kind is Kind.OPTION
    assert specs["NSE_EQ:25"].name != specs["IDX_I:25"].name
    assert not any(symbol.endswith(":2044") for symbol in specs), "NSE commodities have no feed segment"
