"""Volatility and greeks against an implementation of Black-76 of the test's own, on a grid of 5 000 cases."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from services.options.greeks import Greeks, Terms, greeks_from_iv, greeks_from_price, price_at
from services.wire.option_records import OptionSide

SIDES: tuple[OptionSide, ...] = ("call", "put")
_SECONDS_A_YEAR = 365 * 86_400


def normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def black(
    side: OptionSide, spot: float, strike: float, years: float, vol: float, rate: float, carry: float
) -> float:
    """Black's formula from its textbook: forward = spot * exp(carry * years), discounted at `rate`."""
    forward = spot * math.exp(carry * years)
    deviation = vol * math.sqrt(years)
    d1 = (math.log(forward / strike) + deviation**2 / 2) / deviation
    d2 = d1 - deviation
    if side == "call":
        value = forward * normal(d1) - strike * normal(d2)
    else:
        value = strike * normal(-d2) - forward * normal(-d1)
    return math.exp(-rate * years) * value


GRID = list(
    itertools.product(
        SIDES,
        (0.6, 0.75, 0.85, 0.93, 0.97, 0.99, 1.0, 1.01, 1.05, 1.15, 1.3, 1.6),
        (0.02, 7 / 365, 30 / 365, 0.25, 1.0),
        (0.08, 0.15, 0.3, 0.6, 1.2),
        (0.0, 0.05, 0.09),
        (-0.01, 0.02, 0.065),
    )
)


def close(found: float, expected: float, scale: float) -> bool:
    return abs(found - expected) <= 1e-4 * max(abs(expected), scale)


def test_greeks_agree_with_finite_differences_of_an_independent_formula() -> None:
    spot = 25_000.0
    assert len(GRID) >= 5_000
    for side, moneyness, years, vol, rate, carry in GRID:
        strike = spot * moneyness
        terms = Terms(spot, spot * math.exp(carry * years), years, rate)
        found = greeks_from_iv(side, strike, vol * 100, terms)

        def value(
            s: float = spot,
            t: float = years,
            v: float = vol,
            case: tuple[OptionSide, float, float, float] = (side, strike, rate, carry),
        ) -> float:
            return black(case[0], s, case[1], t, v, case[2], case[3])

        step = spot * 1e-4
        delta = (value(spot + step) - value(spot - step)) / (2 * step)
        gamma = (value(spot + step) - 2 * value() + value(spot - step)) / step**2
        hour = 1 / (365 * 240)
        theta = -(value(t=years + hour) - value(t=years - hour)) / (2 * hour) / 365
        vega = (value(v=vol + 1e-4) - value(v=vol - 1e-4)) / 2e-4 / 100
        case = (side, moneyness, years, vol, rate, carry)
        assert close(price_at(side, strike, vol * 100, terms), value(), 0.01), case
        assert close(found.delta, delta, 0.1), case
        assert abs(found.gamma - gamma) <= 2e-3 * max(abs(gamma), 1e-6), case
        assert abs(found.theta - theta) <= 2e-3 * max(abs(theta), 0.05), case
        assert close(found.vega, vega, 0.1), case


def test_volatility_is_found_again_from_its_price_wherever_the_price_says_anything() -> None:
    spot, tried = 25_000.0, 0
    for side, moneyness, years, vol, rate, carry in GRID:
        strike = spot * moneyness
        terms = Terms(spot, spot * math.exp(carry * years), years, rate)
        price = black(side, spot, strike, years, vol, rate, carry)
        found = greeks_from_iv(side, strike, vol * 100, terms)
        if found.vega < 1e-3:
            # A price that hardly knows volatility cannot tell it.
            continue
        tried += 1
        again = greeks_from_price(side, strike, price, terms)
        assert again is not None
        assert again.iv == pytest.approx(vol * 100, rel=1e-4), (side, moneyness, years, vol, rate, carry)
    assert tried > 3_000


def test_put_call_parity_holds_on_computed_pairs() -> None:
    rng = random.Random(7)
    for _ in range(500):
        spot, years, rate = rng.uniform(50, 60_000), rng.uniform(0.001, 2), rng.uniform(0, 0.1)
        strike, iv = spot * rng.uniform(0.6, 1.5), rng.uniform(3, 150)
        terms = Terms(spot, spot * math.exp(rng.uniform(-0.02, 0.1) * years), years, rate)
        call, put = (price_at(side, strike, iv, terms) for side in SIDES)
        assert call - put == pytest.approx((terms.forward - strike) * terms.discount, abs=spot * 1e-9)
        call_greeks, put_greeks = (greeks_from_iv(side, strike, iv, terms) for side in SIDES)
        carried = terms.forward / terms.spot * terms.discount
        assert call_greeks.delta - put_greeks.delta == pytest.approx(carried, abs=1e-9)
        assert call_greeks.gamma == pytest.approx(put_greeks.gamma, abs=1e-12)
        assert call_greeks.vega == pytest.approx(put_greeks.vega, abs=1e-9)


TERMS = Terms(25_000.0, 25_050.0, 7 / 365, 0.065)


@pytest.mark.parametrize(
    ("side", "strike", "price"),
    [
        ("call", 20_000.0, 0.0),
        ("call", 20_000.0, 4_900.0),
        ("put", 30_000.0, 4_000.0),
        ("call", 25_000.0, 30_000.0),
        ("put", 25_000.0, -1.0),
    ],
)
def test_a_price_that_no_volatility_explains_has_none(side: OptionSide, strike: float, price: float) -> None:
    assert greeks_from_price(side, strike, price, TERMS) is None


def test_deep_in_and_far_out_of_the_money_stays_finite() -> None:
    for side, strike in itertools.product(SIDES, (1.0, 5_000.0, 100_000.0, 1e7)):
        found = greeks_from_iv(side, strike, 15.0, TERMS)
        assert all(math.isfinite(value) for value in found[1:])
        assert -1.001 <= found.delta <= 1.01
        assert found.gamma >= 0
        assert found.vega >= 0


@pytest.mark.parametrize("left_s", [59.0, 0.0, -3600.0])
def test_at_expiry_only_the_payoff_counts(left_s: float) -> None:
    terms = Terms(25_000.0, 25_000.0, left_s / _SECONDS_A_YEAR, 0.065)
    assert greeks_from_price("call", 24_900.0, 100.0, terms) == Greeks(None, 1.0, 0.0, 0.0, 0.0)
    assert greeks_from_price("call", 25_100.0, 0.05, terms) == Greeks(None, 0.0, 0.0, 0.0, 0.0)
    assert greeks_from_iv("put", 25_100.0, 12.0, terms) == Greeks(None, -1.0, 0.0, 0.0, 0.0)
    assert price_at("put", 25_100.0, 12.0, terms) == 100.0


def test_two_hours_before_expiry_the_money_still_has_a_volatility() -> None:
    terms = Terms(25_000.0, 25_000.0, 7_200 / _SECONDS_A_YEAR, 0.065)
    price = price_at("call", 25_000.0, 18.0, terms)
    found = greeks_from_price("call", 25_000.0, price, terms)
    assert found is not None
    assert found.iv == pytest.approx(18.0, rel=1e-4)
    assert found.theta < -100
