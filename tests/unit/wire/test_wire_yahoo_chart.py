"""Yahoo's charts: addresses, nulls, the live row, adjusted prices, refusals. No I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.errors import ProviderRateLimited, ProviderUnavailable, RequestRefused, WireFormatError
from services.wire import yahoo_chart as charts

OPEN_S = 1_793_626_200
"""A session's start, on the minute."""


def body(starts: list[int], *, close: list[float | None] | None = None, **more: Any) -> bytes:
    prices = close or [float(100 + at) for at in range(len(starts))]
    result = {
        "meta": {
            "symbol": "AAPL",
            "gmtoffset": -18000,
            "exchangeTimezoneName": "America/New_York",
            "currentTradingPeriod": {"regular": {"start": OPEN_S, "end": OPEN_S + 23_400}},
        },
        "timestamp": starts,
        "indicators": {
            "quote": [
                {
                    "open": prices,
                    "high": [None if p is None else p + 1 for p in prices],
                    "low": [None if p is None else p - 1 for p in prices],
                    "close": prices,
                    "volume": [None if p is None else 10 for p in prices],
                }
            ],
            **more,
        },
    }
    return json.dumps({"chart": {"result": [result], "error": None}}).encode()


def test_the_address_encodes_what_symbols_may_hold() -> None:
    path = charts.chart_path("^NSEI", "1h", 10, 20)
    assert path.startswith("/v8/finance/chart/%5ENSEI?period1=10&period2=20&interval=60m&")
    assert "M%26M.NS" in charts.chart_path("M&M.NS", "1d", 0, 1)


def test_rows_of_nulls_are_left_out() -> None:
    answer = charts.decode_chart(body([OPEN_S, OPEN_S + 60], close=[None, 5.0]), "1m")
    assert [row[0] for row in answer.rows] == [OPEN_S + 60]
    assert answer.live is None


def test_a_last_row_off_the_grid_is_the_live_price_and_no_bar() -> None:
    answer = charts.decode_chart(body([OPEN_S, OPEN_S + 60, OPEN_S + 97]), "1m")
    assert [row[0] for row in answer.rows] == [OPEN_S, OPEN_S + 60]
    assert answer.live is not None
    assert answer.live[0] == OPEN_S + 97


def test_a_second_row_of_one_day_is_the_live_price_and_no_bar() -> None:
    answer = charts.decode_chart(body([OPEN_S - 86_400, OPEN_S, OPEN_S + 5000]), "1d")
    assert [row[0] for row in answer.rows] == [OPEN_S - 86_400, OPEN_S]
    assert answer.live is not None


def test_adjusting_scales_all_four_prices_as_the_close() -> None:
    answer = charts.decode_chart(
        body([OPEN_S - 86_400, OPEN_S], adjclose=[{"adjclose": [50.0, 101.0]}]), "1d"
    )
    first, second = charts.adjust(answer)
    assert first[1:5] == (50.0, 50.5, 49.5, 50.0)
    assert second[1:5] == (101.0, 102.0, 100.0, 101.0)
    assert answer.rows[0][1:5] == (100.0, 101.0, 99.0, 100.0)


def test_an_answer_without_bars_is_empty() -> None:
    raw = b'{"chart":{"result":[{"meta":{},"indicators":{"quote":[{}]}}],"error":null}}'
    assert charts.decode_chart(raw, "1m").rows == ()


@pytest.mark.parametrize("raw", [b"<html>", b"{}", b'{"chart":1}'])
def test_what_is_no_chart_is_said_so(raw: bytes) -> None:
    with pytest.raises(WireFormatError):
        charts.decode_chart(raw, "1m")


def _error(code: str, words: str) -> bytes:
    return json.dumps({"chart": {"result": None, "error": {"code": code, "description": words}}}).encode()


@pytest.mark.parametrize(
    ("status", "raw", "kind", "reason"),
    [
        (429, b"Too Many Requests\r\n", ProviderRateLimited, "http_429"),
        (404, _error("Not Found", "No data found, symbol may be delisted"), RequestRefused, "not_found"),
        (
            422,
            _error("Unprocessable Entity", "1m data not available"),
            RequestRefused,
            "unprocessable_entity",
        ),
        (500, b"oops", ProviderUnavailable, "http_500"),
    ],
)
def test_every_refusal_has_its_verdict(status: int, raw: bytes, kind: type[Exception], reason: str) -> None:
    error = charts.refusal(status, raw)
    assert type(error) is kind
    assert error.reason == reason


def test_an_error_inside_a_good_status_is_an_error() -> None:
    with pytest.raises(RequestRefused, match="delisted"):
        charts.decode_chart(_error("Not Found", "symbol may be delisted"), "1d")
