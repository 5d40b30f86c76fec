"""Implied volatility and greeks of European options by Black's formula on the forward (Black-76). Pure.

QuantLib does the mathematics; this module says in which units and what happens where there is no answer.
American contracts (US single stocks) are valued as European ones: early exercise is worth something for
deep puts and for calls before a dividend, and is left out; chains say so by `style`.
Loading QuantLib takes 0.2 s and some 35 MB, so it happens at the first chain that needs it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

from services.wire.option_records import OptionSide

SHORTEST_YEARS = 60.0 / (365 * 86_400)
"""With less than a minute left an option is worth what it pays; volatility means nothing any more."""
_ACCURACY = 1e-7
_MOST_STEPS = 100
_FIRST_GUESS = 0.2
_LOWEST_IV, _HIGHEST_IV = 0.005, 10.0
"""What lies outside, as fractions a year, is the noise of a price, no volatility."""


class Greeks(NamedTuple):
    """`iv` in percent a year (None where there is none), `delta` and `gamma` for 1 of the underlying,
    `theta` for a day, `vega` for one percentage point of `iv`."""

    iv: float | None
    delta: float
    gamma: float
    theta: float
    vega: float


class Terms(NamedTuple):
    """What all legs of a chain share: prices in the same currency, `years` until expiry, `rate` as a fraction
    a year (continuous), `year_days` as the day count."""

    spot: float
    forward: float
    years: float
    rate: float
    year_days: float = 365.0

    @property
    def discount(self) -> float:
        """What 1 at expiry is worth now."""
        return math.exp(-self.rate * max(0.0, self.years))


def greeks_from_price(side: OptionSide, strike: float, price: float, terms: Terms) -> Greeks | None:
    """Return volatility and greeks that explain `price`; None where no volatility does.

    No volatility explains a price at or below what the option pays at once, nor one above the forward.
    At expiry the answer is the greeks of the payoff, without a volatility.
    """
    if terms.years < SHORTEST_YEARS:
        return _of_the_payoff(side, strike, terms)
    ql = _quantlib()
    root = math.sqrt(terms.years)
    try:
        deviation = ql.blackFormulaImpliedStdDev(
            _kind(side),
            strike,
            terms.forward,
            price,
            terms.discount,
            0.0,
            _FIRST_GUESS * root,
            _ACCURACY * root,
            _MOST_STEPS,
        )
    except RuntimeError:
        # QuantLib's way to say that there is none.
        return None
    iv = deviation / root
    return greeks_from_iv(side, strike, iv * 100, terms) if _LOWEST_IV <= iv <= _HIGHEST_IV else None


def greeks_from_iv(side: OptionSide, strike: float, iv: float, terms: Terms) -> Greeks:
    """Return the greeks at a volatility of `iv` percent a year."""
    if terms.years < SHORTEST_YEARS:
        return _of_the_payoff(side, strike, terms)
    ql = _quantlib()
    deviation = iv / 100 * math.sqrt(terms.years)
    payoff = ql.PlainVanillaPayoff(_kind(side), strike)
    black = ql.BlackCalculator(payoff, terms.forward, deviation, terms.discount)
    return Greeks(
        iv,
        black.delta(terms.spot),
        black.gamma(terms.spot),
        black.theta(terms.spot, terms.years) / terms.year_days,
        black.vega(terms.years) / 100,
    )


def price_at(side: OptionSide, strike: float, iv: float, terms: Terms) -> float:
    """Return what an option is worth at a volatility of `iv` percent a year."""
    if terms.years < SHORTEST_YEARS:
        return max(0.0, (terms.spot - strike) if side == "call" else (strike - terms.spot))
    deviation = iv / 100 * math.sqrt(terms.years)
    return float(_quantlib().blackFormula(_kind(side), strike, terms.forward, deviation, terms.discount))


def _of_the_payoff(side: OptionSide, strike: float, terms: Terms) -> Greeks:
    in_the_money = terms.spot > strike if side == "call" else terms.spot < strike
    sign = 1.0 if side == "call" else -1.0
    return Greeks(None, sign if in_the_money else 0.0, 0.0, 0.0, 0.0)


def load() -> None:
    """Load QuantLib now: in a thread, before the first chain that needs it, ticks hardly wait for it."""
    _quantlib()


@lru_cache(maxsize=1)
def _quantlib() -> ModuleType:
    import QuantLib

    return QuantLib  # type: ignore[no-any-return]


def _kind(side: OptionSide) -> int:
    option = _quantlib().Option
    return option.Call if side == "call" else option.Put  # type: ignore[no-any-return]
