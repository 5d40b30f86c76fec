"""Dhan's charts: requests in Indian time, answers in true UTC, every kind of refusal. No I/O."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest

from services.errors import (
    CredentialsRejected,
    ProviderRateLimited,
    ProviderUnavailable,
    RequestRefused,
    UnexpectedAnswer,
    WireFormatError,
)
from services.wire import dhan_charts as charts

NINE_FIFTEEN = int(datetime(2026, 11, 2, 3, 45, tzinfo=UTC).timestamp())


def test_an_intraday_request_names_indian_wall_time_and_is_read_back_the_same() -> None:
    body = charts.intraday_body("2885", "NSE_EQ", "EQUITY", 1, NINE_FIFTEEN, NINE_FIFTEEN + 3600)
    assert body["fromDate"] == "2026-11-02 09:15:00"
    assert body["interval"] == "1"
    read = charts.parse_body(json.dumps(body).encode(), daily=False)
    assert (read.from_s, read.to_s, read.interval) == (NINE_FIFTEEN, NINE_FIFTEEN + 3600, 1)


def test_a_daily_request_excludes_its_last_date() -> None:
    body = charts.daily_body("13", "IDX_I", "INDEX", date(2022, 1, 8), date(2022, 2, 8))
    assert (body["fromDate"], body["toDate"]) == ("2022-01-08", "2022-02-08")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"interval": "7"}, "bad_interval"),
        ({"fromDate": "2026-01-01", "toDate": "2026-11-01"}, "too_long"),
        ({"securityId": "RELIANCE"}, "bad_request"),
        ({"fromDate": "yesterday"}, "bad_request"),
        ({"toDate": None}, "bad_request"),
    ],
)
def test_what_the_vendor_refuses_is_refused(change: dict[str, object], reason: str) -> None:
    body = charts.intraday_body("2885", "NSE_EQ", "EQUITY", 1, NINE_FIFTEEN, NINE_FIFTEEN + 60)
    with pytest.raises(WireFormatError) as caught:
        charts.parse_body(json.dumps(body | change).encode(), daily=False)
    assert caught.value.reason == reason


def test_columns_become_rows_in_order_and_rows_without_a_price_are_left_out() -> None:
    raw = json.dumps(
        {
            "open": [2, 1, 0],
            "high": [2.5, 1.5, 0],
            "low": [1.5, 0.5, 0],
            "close": [2.2, 1.2, 0],
            "volume": [20, 10, 0],
            "timestamp": [1326220260.0, 1326220200.0, 1326220320.0],
        }
    ).encode()
    assert charts.decode_chart(raw) == [
        (1326220200, 1.0, 1.5, 0.5, 1.2, 10),
        (1326220260, 2.0, 2.5, 1.5, 2.2, 20),
    ]


def test_a_daily_bar_is_stamped_with_indian_midnight_in_true_utc() -> None:
    # The documentation's own sample.
    assert charts.day_of(1326220200) == date(2012, 1, 11)


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b'{"open":[1]}', b""])
def test_what_is_no_chart_is_said_so(raw: bytes) -> None:
    with pytest.raises(WireFormatError):
        charts.decode_chart(raw)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(WireFormatError, match="ragged"):
        charts.decode_chart(b'{"open":[1],"high":[],"low":[],"close":[],"volume":[],"timestamp":[]}')


def _trading(code: str, message: str = "m") -> bytes:
    return json.dumps({"errorType": "T", "errorCode": code, "errorMessage": message}).encode()


@pytest.mark.parametrize(
    ("status", "raw", "kind", "reason", "wait_s"),
    [
        (429, _trading("DH-904"), ProviderRateLimited, "DH-904", 2.0),
        (400, b'{"data":{"805":"Too many requests"},"status":"failed"}', ProviderRateLimited, "805", 60.0),
        (429, b"slow down", ProviderRateLimited, "http_429", 60.0),
        (401, _trading("DH-901"), CredentialsRejected, "DH-901", None),
        (400, b'{"data":{"807":"expired"},"status":"failed"}', CredentialsRejected, "807", None),
        (400, _trading("DH-906", "Invalid Token"), CredentialsRejected, "DH-906", None),
        (403, _trading("DH-902"), CredentialsRejected, "DH-902", None),
        (400, _trading("DH-905"), RequestRefused, "DH-905", None),
        (400, _trading("DH-907"), RequestRefused, "DH-907", None),
        (500, _trading("DH-908"), ProviderUnavailable, "DH-908", None),
        (502, b"<html>bad gateway</html>", ProviderUnavailable, "http_502", None),
        (418, b"\xff\xfe", UnexpectedAnswer, "http_418", None),
    ],
)
def test_every_refusal_has_its_verdict(
    status: int, raw: bytes, kind: type[Exception], reason: str, wait_s: float | None
) -> None:
    error = charts.refusal(status, raw)
    assert type(error) is kind
    assert error.reason == reason
    assert error.retry_after_s == wait_s
