"""Yahoo's chart requests and answers: past bars of every interval.

Stands under the history provider and the simulator's REST side. Pure: no I/O, no clock.
Prices are adjusted for splits by Yahoo itself, always; for dividends only through `adjclose`, which daily
and longer bars carry. The last row may be the live price at the present second and not a bar.
Source: `/v8/finance/chart` as yfinance 1.7 reads it; limits as its answers name them.
"""

from __future__ import annotations

from math import inf, isfinite
from urllib.parse import quote

import msgspec

from services.errors import (
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    RequestRefused,
    UnexpectedAnswer,
    WireFormatError,
)
from services.wire.dhan_charts import ChartRow

INTERVALS = {"1m": "1m", "2m": "2m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "60m", "1d": "1d"}
INTERVAL_S = {"1m": 60, "2m": 120, "5m": 300, "15m": 900, "30m": 1800, "60m": 3600, "1h": 3600}
DEPTH_DAYS = {"1m": 30, "2m": 60, "5m": 60, "15m": 60, "30m": 60, "1h": 730}
"""How far back an interval goes, in days; daily bars go back to the listing."""
WINDOW_DAYS = {"1m": 8}
"""Days one request may span where that is less than the depth."""
REQUESTS_PER_S = 1.0
"""Nothing is published. One to two a second with pauses has been found to last."""
RATE_LIMIT_PAUSE_S = 120.0


class ChartAnswer(msgspec.Struct, frozen=True):
    """The bars of an answer, oldest first, and what is known with them.

    `live` is the row that is no bar but the price of the moment. `adjusted` holds the closes adjusted
    for dividends, by the start of their bar; empty where the answer has none. `closes_s` is when the
    regular session that the answer calls current ends, UTC epoch seconds.
    """

    rows: tuple[ChartRow, ...]
    live: ChartRow | None = None
    adjusted: dict[int, float] = {}
    timezone: str = ""
    market_time_s: int | None = None
    closes_s: int | None = None


class _Quote(msgspec.Struct):
    open: list[float | None] = []
    high: list[float | None] = []
    low: list[float | None] = []
    close: list[float | None] = []
    volume: list[float | None] = []


class _Adjusted(msgspec.Struct):
    adjclose: list[float | None] = []


class _Indicators(msgspec.Struct):
    quote: list[_Quote]
    adjclose: list[_Adjusted] = []


class _Period(msgspec.Struct):
    start: int = 0
    end: int = 0
    gmtoffset: int = 0


class _Periods(msgspec.Struct):
    regular: _Period | None = None


class _Meta(msgspec.Struct, rename="camel"):
    symbol: str = ""
    exchange_timezone_name: str = ""
    regular_market_time: int | None = None
    current_trading_period: _Periods | None = None
    gmtoffset: int = 0


class _Result(msgspec.Struct):
    meta: _Meta
    indicators: _Indicators
    timestamp: list[int] | None = None


class _Error(msgspec.Struct):
    code: str = ""
    description: str = ""


class _Chart(msgspec.Struct):
    result: list[_Result] | None = None
    error: _Error | None = None


class _Body(msgspec.Struct):
    chart: _Chart | None = None
    finance: _Chart | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


def chart_path(symbol: str, interval: str, from_s: int, to_s: int) -> str:
    """Return path and query for the bars of `symbol` from `from_s` until before `to_s`.

    `interval` is one of `INTERVALS`. `^`, `=` and `&` in symbols are encoded.
    """
    return (
        f"/v8/finance/chart/{quote(symbol, safe='')}?period1={from_s}&period2={to_s}"
        f"&interval={INTERVALS[interval]}&includePrePost=false&events=div%2Csplits%2CcapitalGains"
    )


def decode_chart(raw: bytes, interval: str) -> ChartAnswer:
    """Return the bars of an answer with status 200; rows without a price (holidays, halts) are left out.

    The last row is taken for the live price when it stands off the grid of an intraday interval, or is
    a second row of the same day. Raises `WireFormatError` when it is not what the vendor sends, the
    `ProviderError` it means when it names an error.
    """
    try:
        body = _decode_body(raw)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise WireFormatError("bad_chart", str(error), raw) from error
    chart = body.chart or body.finance
    if chart is None:
        raise WireFormatError("bad_chart", "neither result nor error", raw)
    if chart.error is not None:
        raise _named(chart.error, 200)
    if not chart.result or not chart.result[0].indicators.quote:
        return ChartAnswer(())
    result = chart.result[0]
    rows = _rows(result, raw)
    meta = result.meta
    regular = meta.current_trading_period.regular if meta.current_trading_period else None
    live = None
    if rows and _is_live(rows, interval, meta, regular):
        live = rows.pop()
    adjusted: dict[int, float] = {}
    if result.indicators.adjclose and result.timestamp:
        adjusted = {
            start: value
            for start, value in zip(result.timestamp, result.indicators.adjclose[0].adjclose, strict=False)
            if value is not None and isfinite(value)
        }
    return ChartAnswer(
        tuple(rows),
        live,
        adjusted,
        meta.exchange_timezone_name,
        meta.regular_market_time,
        regular.end if regular else None,
    )


def adjust(answer: ChartAnswer) -> list[ChartRow]:
    """Return the bars with all four prices scaled as `adjclose` scales the close."""
    adjusted = []
    for row in answer.rows:
        factor = answer.adjusted.get(row[0], row[4]) / row[4]
        start, opened, high, low, close, volume = row
        adjusted.append((start, opened * factor, high * factor, low * factor, close * factor, volume))
    return adjusted


def refusal(status: int, raw: bytes, retry_after: str | None = None) -> ProviderError:
    """Return what an answer with a status other than 200 means."""
    if status == 429:
        wait_s = float(retry_after) if retry_after and retry_after.isdigit() else RATE_LIMIT_PAUSE_S
        return ProviderRateLimited(
            "Yahoo answers 429, too many requests", reason="http_429", retry_after_s=wait_s
        )
    try:
        body = _decode_body(raw)
    except (msgspec.DecodeError, UnicodeError):
        body = _Body()
    chart = body.chart or body.finance
    if chart is not None and chart.error is not None:
        return _named(chart.error, status)
    if status >= 500:
        return ProviderUnavailable(f"Yahoo answers HTTP {status}", reason=f"http_{status}")
    return UnexpectedAnswer(f"Yahoo answers HTTP {status} without a reason", reason=f"http_{status}")


def _named(error: _Error, status: int) -> ProviderError:
    told = f"Yahoo refuses with {error.code or status}: {error.description}"
    if error.code == "Unauthorized" or status in (401, 403):
        return CredentialsRejected(told, reason=f"http_{status}")
    if error.code == "Too Many Requests":
        return ProviderRateLimited(told, reason="http_429", retry_after_s=RATE_LIMIT_PAUSE_S)
    if error.code in ("Not Found", "Unprocessable Entity", "Bad Request") or status in (400, 404, 422):
        return RequestRefused(told, reason=(error.code or f"http_{status}").lower().replace(" ", "_"))
    return ProviderUnavailable(told, reason=f"http_{status}")


def _rows(result: _Result, raw: bytes) -> list[ChartRow]:
    quotes = result.indicators.quote[0]
    starts = result.timestamp or []
    columns = (quotes.open, quotes.high, quotes.low, quotes.close)
    if any(len(column) != len(starts) for column in columns):
        raise WireFormatError("ragged_chart", "the columns differ in length", raw)
    volumes = quotes.volume if len(quotes.volume) == len(starts) else [None] * len(starts)
    rows = []
    for start, opened, high, low, close, volume in zip(starts, *columns, volumes, strict=True):
        if opened is None or high is None or low is None or close is None:
            continue
        if not (0.0 < opened < inf and 0.0 < high < inf and 0.0 < low < inf and 0.0 < close < inf):
            continue
        rows.append((start, opened, high, low, close, None if volume is None else int(volume)))
    return rows


def _is_live(rows: list[ChartRow], interval: str, meta: _Meta, regular: _Period | None) -> bool:
    last = rows[-1][0]
    step_s = INTERVAL_S.get(interval)
    if step_s is not None:
        anchor = regular.start if regular is not None else 0
        return (last - anchor) % step_s != 0
    if len(rows) < 2:
        return False
    # Days are told apart where the exchange is: the live row repeats the day of the one before it.
    return (last + meta.gmtoffset) // 86_400 == (rows[-2][0] + meta.gmtoffset) // 86_400
