"""One option chain as users see it: each leg with volatility and greeks, and what all of it says. Pure.

A chain is one object, made at one moment from one provider's answer: legs of two answers are never
mixed. What the vendor says is kept and marked, what it does not say is worked out where the prices
allow it, and what cannot be known stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec

from services.on_demand_provider import OptionChain, OptionQuote, OptionSide
from services.options.greeks import Greeks, Terms, greeks_from_iv, greeks_from_price

Style = Literal["european", "american"]
GreeksBy = Literal["vendor", "computed"]
_PAIRS_FOR_FORWARD = 5
_WIDEST_SPREAD = 0.6
"""A middle between bid and ask that are further apart, in parts of the middle, is no price."""
_FORWARD_DIGITS, _IV_DIGITS, _GREEK_DIGITS, _GAMMA_DIGITS = 4, 4, 6, 8


class Conventions(NamedTuple):
    """`rate_percent` a year, `year_days` as the day count, `style` of the contracts."""

    rate_percent: float = 0.0
    year_days: float = 365.0
    style: Style = "european"


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One leg: its instrument key `symbol`, what was said of it, and its greeks with where they are from.

    `price` is what the greeks rest on: the middle of bid and ask, else the last price; None for neither.
    """

    symbol: str
    quote: OptionQuote
    price: float | None
    greeks: Greeks | None
    greeks_by: GreeksBy | None


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """All legs of one underlying and expiry at one moment.

    `timestamp` (when the provider says it was so) and `received_ms` are UTC epoch ms, `expiry` is UTC
    epoch **seconds**. `missing` are the legs that are absent although their strike has the other one.
    `pcr_oi` and `pcr_volume` are puts per call; None where the calls have none.
    """

    underlying: str
    source: str
    timestamp: int
    received_ms: int
    underlying_price: float | None
    expiry: int
    forward: float | None
    forward_by: Literal["parity", "carry"] | None
    atm_strike: str | None
    style: Style
    legs: tuple[Leg, ...]
    missing: tuple[tuple[str, OptionSide], ...]
    pcr_oi: float | None
    pcr_volume: float | None
    max_pain: str | None

    @property
    def completeness(self) -> float:
        """The share of the legs that are there, 1.0 when each strike has both."""
        there = len(self.legs)
        return round(there / (there + len(self.missing)), 4) if there else 0.0


def assemble(
    answer: OptionChain,
    *,
    underlying: str,
    source: str,
    expiry: int,
    received_ms: int,
    conventions: Conventions,
    symbol_of: Callable[[OptionQuote], str],
) -> Chain:
    """Complete a provider's answer; `symbol_of(quote)` gives a leg's instrument key."""
    quotes = quotes_of(answer)
    years = (expiry - answer.timestamp / 1000) / (86_400 * conventions.year_days)
    rate = conventions.rate_percent / 100
    spot = answer.underlying_price
    prices = {(quote.strike, quote.side): price_of(quote) for quote in quotes}
    terms, forward_by = _terms(spot, prices, years, rate, conventions.year_days)
    legs = tuple(_leg(quote, prices[quote.strike, quote.side], terms, symbol_of(quote)) for quote in quotes)
    strikes = sorted({quote.strike for quote in quotes}, key=float)
    forward = terms.forward if terms else None
    reference = forward if forward is not None else spot
    return Chain(
        underlying=underlying,
        source=source,
        timestamp=answer.timestamp,
        received_ms=received_ms,
        underlying_price=spot,
        expiry=expiry,
        forward=None if forward is None else round(forward, _FORWARD_DIGITS),
        forward_by=forward_by,
        atm_strike=_nearest(strikes, reference),
        style=conventions.style,
        legs=legs,
        missing=tuple(
            (strike, side) for strike in strikes for side in _SIDES if (strike, side) not in prices
        ),
        pcr_oi=_ratio(quotes, "oi"),
        pcr_volume=_ratio(quotes, "volume"),
        max_pain=_max_pain(quotes, strikes),
    )


_SIDES: tuple[OptionSide, ...] = ("call", "put")


def quotes_of(answer: OptionChain) -> Sequence[OptionQuote]:
    """Return the legs of a provider's answer, from its rows where it gives no quotes."""
    if answer.quotes:
        return answer.quotes
    found = []
    for row in answer.symbols:
        symbol, strike, side, _spot, last, volume, oi, change, _expiry, delta, gamma, theta, vega, iv = row.f
        found.append(
            OptionQuote(
                side=side,
                strike=strike,
                contract=symbol or None,
                last_price=last,
                volume=volume,
                oi=oi,
                oi_change=change,
                delta=delta,
                gamma=gamma,
                theta=theta,
                vega=vega,
                iv=iv,
            )
        )
    return found


def has_greeks(quote: OptionQuote) -> bool:
    """Tell whether the vendor says all that would be computed otherwise."""
    return None not in (quote.iv, quote.delta, quote.gamma, quote.theta, quote.vega)


def price_of(quote: OptionQuote) -> float | None:
    """Return the price a leg's volatility may rest on, None when nothing says it.

    Without a bid the price lies somewhere below the ask: then only a last price that fits below counts.
    """
    bid, ask, last = quote.bid, quote.ask, quote.last_price
    if bid is not None and ask is not None and bid <= ask:
        middle = (bid + ask) / 2
        if ask - bid <= _WIDEST_SPREAD * middle:
            return middle
    if last is None or (ask is not None and last > ask) or (bid is not None and last < bid):
        return None
    return last


def _terms(
    spot: float | None,
    prices: dict[tuple[str, OptionSide], float | None],
    years: float,
    rate: float,
    year_days: float,
) -> tuple[Terms | None, Literal["parity", "carry"] | None]:
    """Return what the legs share, with the forward that puts and calls agree on, else the carried spot."""
    if spot is None:
        return None, None
    carried = Terms(spot, spot, years, rate, year_days)
    carried = carried._replace(forward=spot / carried.discount)
    if years <= 0:
        return carried._replace(forward=spot), "carry"
    pairs = []
    for (strike, side), call in prices.items():
        put = prices.get((strike, "put"))
        if side == "call" and call is not None and put is not None:
            difference = call - put
            pairs.append((abs(difference), float(strike) + difference / carried.discount))
    if not pairs:
        return carried, "carry"
    nearest = sorted(pairs)[:_PAIRS_FOR_FORWARD]
    return carried._replace(forward=median(forward for _, forward in nearest)), "parity"


def _leg(quote: OptionQuote, price: float | None, terms: Terms | None, symbol: str) -> Leg:
    greeks, by = _greeks(quote, price, terms)
    return Leg(symbol=symbol, quote=quote, price=price, greeks=greeks, greeks_by=by)


def _greeks(
    quote: OptionQuote, price: float | None, terms: Terms | None
) -> tuple[Greeks | None, GreeksBy | None]:
    if has_greeks(quote):
        vendors = (quote.iv, quote.delta, quote.gamma, quote.theta, quote.vega)
        return Greeks(*vendors), "vendor"  # type: ignore[arg-type]
    if terms is None:
        return None, None
    strike = float(quote.strike)
    if quote.iv is not None:
        # The vendor's own volatility, its greeks worked out from it.
        return greeks_from_iv(quote.side, strike, quote.iv, terms), "computed"
    if price is None:
        return None, None
    computed = greeks_from_price(quote.side, strike, price, terms)
    return (None, None) if computed is None else (computed, "computed")


def _nearest(strikes: Iterable[str], reference: float | None) -> str | None:
    if reference is None:
        return None
    return min(strikes, key=lambda strike: (abs(float(strike) - reference), float(strike)), default=None)


def _ratio(quotes: Sequence[OptionQuote], name: Literal["oi", "volume"]) -> float | None:
    sums = dict.fromkeys(_SIDES, 0)
    for quote in quotes:
        sums[quote.side] += getattr(quote, name) or 0
    return round(sums["put"] / sums["call"], 4) if sums["call"] else None


def _max_pain(quotes: Sequence[OptionQuote], strikes: Sequence[str]) -> str | None:
    """Return the strike at which the holders of all open contracts would be paid least; the lower of two.

    `strikes` ascend. From one to the next, calls below are paid the step more, puts above the step less.
    """
    calls, puts = dict.fromkeys(strikes, 0), dict.fromkeys(strikes, 0)
    for quote in quotes:
        (calls if quote.side == "call" else puts)[quote.strike] += quote.oi or 0
    calls_below, puts_above = 0, sum(puts.values())
    if not puts_above and not any(calls.values()):
        return None
    levels = [float(strike) for strike in strikes]
    paid = sum(oi * (float(strike) - levels[0]) for strike, oi in puts.items())
    best, least, before = strikes[0], paid, levels[0]
    for strike, level in zip(strikes, levels, strict=True):
        paid += (calls_below - puts_above) * (level - before)
        calls_below, puts_above, before = calls_below + calls[strike], puts_above - puts[strike], level
        if paid < least:
            best, least = strike, paid
    return best


def chain_json(chain: Chain, now_ms: int) -> dict[str, Any]:
    """Return a chain as the interface shows it: `timestamp`, `underlying_price`, `symbols` of 14 fields.

    The fields of `f`: symbol, strike, side, spot, last price, volume, open interest, its change, expiry
    (UTC epoch s), delta, gamma, theta, vega, implied volatility (percent). null where unknown.
    """
    return {
        "timestamp": chain.timestamp,
        "underlying_price": chain.underlying_price,
        "symbols": [_leg_json(chain, leg, now_ms) for leg in chain.legs],
        "underlying": chain.underlying,
        "source": chain.source,
        "expiry": chain.expiry,
        "age_ms": max(0, now_ms - chain.timestamp),
        "forward": chain.forward,
        "forward_by": chain.forward_by,
        "atm_strike": chain.atm_strike,
        "style": chain.style,
        "completeness": chain.completeness,
        "missing": [list(leg) for leg in chain.missing],
        "pcr": chain.pcr_oi,
        "pcr_volume": chain.pcr_volume,
        "max_pain": chain.max_pain,
    }


def leg_figures(leg: Leg) -> tuple[float | None, float | None, float | None, float | None, float | None]:
    """Return delta, gamma, theta, vega and volatility (percent) of a leg as they are shown, rounded."""
    quote, greeks = leg.quote, leg.greeks
    iv = greeks.iv if greeks is not None and greeks.iv is not None else quote.iv
    return (
        _rounded(greeks.delta if greeks else quote.delta, _GREEK_DIGITS),
        _rounded(greeks.gamma if greeks else quote.gamma, _GAMMA_DIGITS),
        _rounded(greeks.theta if greeks else quote.theta, _GREEK_DIGITS),
        _rounded(greeks.vega if greeks else quote.vega, _GREEK_DIGITS),
        _rounded(iv, _IV_DIGITS),
    )


def _leg_json(chain: Chain, leg: Leg, now_ms: int) -> dict[str, Any]:
    quote = leg.quote
    return {
        "f": [
            leg.symbol,
            quote.strike,
            quote.side,
            chain.underlying_price,
            quote.last_price,
            quote.volume,
            quote.oi,
            quote.oi_change,
            chain.expiry,
            *leg_figures(leg),
        ],
        "bid": quote.bid,
        "ask": quote.ask,
        "bid_size": quote.bid_size,
        "ask_size": quote.ask_size,
        "age_ms": max(0, now_ms - (quote.event_ms or chain.timestamp)),
        "greeks_by": leg.greeks_by,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
