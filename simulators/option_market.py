"""The simulated option market: expiries, strikes, and what every leg trades at, from the underlying's price.

Stands behind the chains of all simulated vendors, so that two vendors show one market. Prices follow Black's
formula with a smile, on a grid of 0.05; open interest grows with what the underlying has traded. The same
underlying at the same moment gives the same chain. Knows no wire.
"""

from __future__ import annotations

import zlib
from datetime import UTC, date, datetime, time, timedelta
from math import erfc, exp, log, sqrt
from typing import NamedTuple
from zoneinfo import ZoneInfo

from simulators.market import Instrument

INDIA, NEW_YORK = ZoneInfo("Asia/Kolkata"), ZoneInfo("America/New_York")
_CLOSES = {INDIA: time(15, 30), NEW_YORK: time(16, 0)}
_EXPIRY_WEEKDAY = {INDIA: 1, NEW_YORK: 4}
"""Tuesday, as NSE's contracts end since 2025, and Friday."""
EXPIRIES = 4
STRIKES_EACH_WAY = 20
_GRID = 0.05
_RATES = {INDIA: 0.065, NEW_YORK: 0.0425}
_YEAR_S = 365 * 86_400


class OptionLeg(NamedTuple):
    """One leg; `side` is CE or PE, `iv` in percent, greeks for a day and a percentage point."""

    strike: float
    side: str
    price: float
    bid: float
    ask: float
    volume: int
    oi: int
    oi_change: int
    iv: float
    delta: float
    gamma: float
    theta: float
    vega: float


def expiries(zone: ZoneInfo, now_ms: int) -> list[date]:
    """Return the next expiries, the day of `now_ms` included until its close."""
    now = datetime.fromtimestamp(now_ms / 1000, zone)
    day = now.date()
    if now.time() >= _CLOSES[zone]:
        day += timedelta(days=1)
    day += timedelta(days=(_EXPIRY_WEEKDAY[zone] - day.weekday()) % 7)
    return [day + timedelta(weeks=week) for week in range(EXPIRIES)]


def midnight_utc_s(day: date) -> int:
    """Return midnight UTC of a day in epoch seconds, as Yahoo counts expiries."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def legs(underlying: Instrument, zone: ZoneInfo, day: date, now_ms: int) -> list[OptionLeg]:
    """Return all legs of one expiry, by strike, calls before puts."""
    spot = underlying.price
    closes_s = datetime.combine(day, _CLOSES[zone], zone).timestamp()
    years = max(60.0, closes_s - now_ms / 1000) / _YEAR_S
    step = strike_step(spot)
    middle = round(spot / step)
    rate = _RATES[zone]
    found = []
    for number in range(middle - STRIKES_EACH_WAY, middle + STRIKES_EACH_WAY + 1):
        strike = number * step
        if strike > 0:
            found += [_leg(underlying, day, side, strike, spot, years, rate) for side in ("CE", "PE")]
    return found


def strike_step(spot: float) -> float:
    """Return the distance of strikes at this price: 50 for an index of 25 000, 2.5 for a share of 300."""
    for limit, step in ((100, 1.0), (500, 2.5), (1_000, 10.0), (5_000, 20.0), (30_000, 50.0)):
        if spot < limit:
            return step
    return 100.0


def _leg(
    underlying: Instrument, day: date, side: str, strike: float, spot: float, years: float, rate: float
) -> OptionLeg:
    sign = 1 if side == "CE" else -1
    vol = 0.13 + 0.9 * (log(strike / spot)) ** 2 + (0.02 if strike < spot else 0.0)
    forward, discount = spot * exp(rate * years), exp(-rate * years)
    deviation = vol * sqrt(years)
    d1 = log(forward / strike) / deviation + deviation / 2
    d2 = d1 - deviation
    density = exp(-d1 * d1 / 2) / sqrt(2 * 3.141592653589793)
    value = sign * discount * (forward * _normal(sign * d1) - strike * _normal(sign * d2))
    price = max(_GRID, round(value / _GRID) * _GRID)
    half = max(_GRID, round(price * 0.002 / _GRID) * _GRID)
    seed = zlib.crc32(f"{underlying.spec.name}{day}{strike}{side}".encode())
    lot = max(1, underlying.lot if underlying.lot > 1 else 25)
    near = exp(-((strike / spot - 1) ** 2) * 900)
    change = (underlying.seq // 20 + seed % 400 - 200) * lot
    oi = max(0, int(40_000 * near * (1 + seed % 7) / 4) * lot + change)
    theta = -(spot * density * vol / (2 * sqrt(years))) - sign * rate * strike * discount * _normal(sign * d2)
    return OptionLeg(
        strike=strike,
        side=side,
        price=round(price, 2),
        bid=round(max(0.0, price - half), 2),
        ask=round(price + half, 2),
        volume=int(300_000 * near) * lot + underlying.seq * lot,
        oi=oi,
        oi_change=change,
        iv=round(vol * 100, 4),
        delta=round(sign * _normal(sign * d1), 5),
        gamma=round(density / (spot * deviation), 6),
        theta=round(theta / 365, 5),
        vega=round(spot * density * sqrt(years) / 100, 5),
    )


def _normal(x: float) -> float:
    return 0.5 * erfc(-x / sqrt(2))
