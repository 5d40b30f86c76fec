"""Dhan's chart requests and answers: past bars, daily and intraday.

Stands under the history provider and the simulator's REST side. Pure: no I/O, no clock.
REST times are true UTC, unlike the live feed's, which are Indian wall time counted as epoch: the two
never share a converter. Request dates are Indian wall time as text.
Source: DhanHQ v2 historical data documentation, annexure of error codes.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from math import inf
from typing import Any

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

INTRADAY_MINUTES = {"1m": 1, "5m": 5, "15m": 15, "25m": 25, "1h": 60}
WINDOW_DAYS = 90
"""Days one intraday request may span. Source: DhanHQ v2 intraday historical data."""
DEPTH_DAYS = 5 * 365
"""How far back intraday bars go; daily bars go back to the listing."""
DATA_REQUESTS_PER_S = 5.0
DATA_REQUESTS_PER_DAY = 7_000
"""Documented as 100 000 on one page and 7 000 on another: the smaller one is safe."""
_IST = timezone(timedelta(hours=5, minutes=30))
_INTRADAY_FORMAT = "%Y-%m-%d %H:%M:%S"

ChartRow = tuple[int, float, float, float, float, int | None]
"""`(start, open, high, low, close, volume)`, start in UTC epoch seconds."""


class DhanChart(msgspec.Struct, gc=False):
    """The columns of an answer; all of one length. `open_interest` is empty unless asked for."""

    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]
    timestamp: list[float]
    open_interest: list[float] = []


class ChartRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as the server reads it; `interval` None means daily. Times are UTC epoch seconds."""

    security_id: str
    segment: str
    instrument: str
    interval: int | None
    from_s: int
    to_s: int


_decode_chart = msgspec.json.Decoder(DhanChart, strict=False).decode
_TOKEN_CODES = {"DH-901", "DH-902", "DH-903", "806", "807", "808", "809", "810"}
_INPUT_CODES = {"DH-905", "DH-907", "811", "812", "813", "814", "804"}
_RATE_CODES = {"DH-904": 2.0, "805": 60.0}
"""How long to stay away, in seconds: 805 may block the whole account when it is ignored."""


def intraday_body(
    security_id: str, segment: str, instrument: str, minutes: int, from_s: int, to_s: int
) -> dict[str, Any]:
    """Return the body for `POST /charts/intraday`: bars of `minutes` from `from_s` until before `to_s`."""
    return {
        "securityId": security_id,
        "exchangeSegment": segment,
        "instrument": instrument,
        "interval": str(minutes),
        "expiryCode": 0,
        "oi": False,
        "fromDate": _wall(from_s).strftime(_INTRADAY_FORMAT),
        "toDate": _wall(to_s).strftime(_INTRADAY_FORMAT),
    }


def daily_body(
    security_id: str, segment: str, instrument: str, first: date, after_last: date
) -> dict[str, Any]:
    """Return the body for `POST /charts/historical`: the days from `first` until before `after_last`."""
    return {
        "securityId": security_id,
        "exchangeSegment": segment,
        "instrument": instrument,
        "expiryCode": 0,
        "oi": False,
        "fromDate": first.isoformat(),
        "toDate": after_last.isoformat(),
    }


def parse_body(raw: bytes, *, daily: bool) -> ChartRequest:
    """Read a request as the server does. Raises `WireFormatError` for one it would refuse (`DH-905`)."""
    try:
        body = msgspec.json.decode(raw)
        interval = None if daily else int(body.get("interval", 1))
        request = ChartRequest(
            security_id=str(body["securityId"]),
            segment=str(body["exchangeSegment"]),
            instrument=str(body["instrument"]),
            interval=interval,
            from_s=_epoch(str(body["fromDate"])),
            to_s=_epoch(str(body["toDate"])),
        )
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise WireFormatError("bad_request", str(error), raw) from error
    if interval is not None and interval not in INTRADAY_MINUTES.values():
        raise WireFormatError("bad_interval", f"{interval} minutes", raw)
    if request.from_s > request.to_s or not request.security_id.isdigit():
        raise WireFormatError("bad_request", "dates or security id", raw)
    if interval is not None and request.to_s - request.from_s > WINDOW_DAYS * 86_400:
        raise WireFormatError("too_long", f"more than {WINDOW_DAYS} days", raw)
    return request


def decode_chart(raw: bytes) -> list[ChartRow]:
    """Return the bars of an answer with status 2xx, oldest first; rows without a price are left out.

    Raises `WireFormatError` when it is not JSON or not columns of one length.
    """
    try:
        chart = _decode_chart(raw)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise WireFormatError("bad_chart", str(error), raw) from error
    columns = (chart.timestamp, chart.open, chart.high, chart.low, chart.close, chart.volume)
    if len({len(column) for column in columns}) != 1:
        raise WireFormatError("ragged_chart", "the columns differ in length", raw)
    rows: dict[int, ChartRow] = {}
    for start, opened, high, low, close, volume in zip(*columns, strict=True):
        if 0.0 < opened < inf and 0.0 < high < inf and 0.0 < low < inf and 0.0 < close < inf:
            rows[int(start)] = (int(start), opened, high, low, close, max(0, int(volume)))
    return [rows[start] for start in sorted(rows)]


def day_of(start_s: int) -> date:
    """Return the trading day of a daily bar, which is stamped with Indian midnight in true UTC."""
    return _wall(start_s).date()


def refusal(status: int, raw: bytes, retry_after: str | None = None) -> ProviderError:
    """Return what an answer with a status other than 2xx means.

    Two shapes are known, `{"errorType","errorCode","errorMessage"}` and `{"data":{"805":"..."}}`;
    bodies that are neither occur and are judged by the status.
    """
    code, message = _error_of(raw)
    told = f"Dhan refuses with {code or f'HTTP {status}'}: {message or 'no reason given'}"
    reason = code or f"http_{status}"
    if code in _RATE_CODES or status == 429:
        wait_s = _seconds(retry_after) or _RATE_CODES.get(code, 60.0 if not code else 2.0)
        return ProviderRateLimited(told, reason=reason, retry_after_s=wait_s)
    if code in _TOKEN_CODES or status == 401 or (code == "DH-906" and "token" in message.lower()):
        return CredentialsRejected(f"{told}. Check DHAN_ACCESS_TOKEN and the data plan.", reason=reason)
    if code in _INPUT_CODES:
        return RequestRefused(told, reason=reason)
    if status >= 500 or code in ("DH-908", "DH-909", "DH-910", "800"):
        return ProviderUnavailable(told, reason=reason)
    return UnexpectedAnswer(told, reason=reason)


def _error_of(raw: bytes) -> tuple[str, str]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError):
        return "", ""
    if not isinstance(body, dict):
        return "", ""
    if isinstance(body.get("errorCode"), str):
        return body["errorCode"], str(body.get("errorMessage", ""))
    data = body.get("data")
    if isinstance(data, dict) and len(data) == 1:
        code, message = next(iter(data.items()))
        return str(code), str(message)
    return "", ""


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None


def _wall(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC).astimezone(_IST)


def _epoch(text: str) -> int:
    """Return the UTC epoch seconds of Indian wall time, `2024-09-11` or `2024-09-11 09:30:00`."""
    moment = datetime.fromisoformat(text.strip())
    return int(moment.replace(tzinfo=_IST).timestamp())
