"""The past from a daemon as pandas data frames: candles over HTTP, open interest from Redis.

Needs `pandas`, and `redis` for open interest. Blocking, for notebooks and scripts. The index is the time in
UTC; what is unknown is NaN.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import pandas as pd
from redis import Redis

from marketd_client.errors import HistoryRefused
from marketd_client.frames import Moment, ticks

CANDLE_FIELDS = ("open", "high", "low", "close", "volume")


def get_historical_ohlcv(
    url: str,
    instrument: str,
    interval: str = "1m",
    *,
    count: int | None = None,
    start: int | datetime | None = None,
    end: int | datetime | None = None,
    forming: bool = False,
    adjusted: bool = False,
    token: str | None = None,
    timeout_s: float = 30.0,
) -> pd.DataFrame:
    """Return candles by their start: columns open, high, low, close, volume.

    `interval` is minutes or hours up to 12h (`1m`, `45m`, `2h`), `1d`, `1w` or `1mo`. `count` newest ones
    (500 where neither it nor `start` is given), or those from `start` until before `end`: UTC epoch seconds,
    or times with a zone. `forming` adds the candle that is not finished, `adjusted` asks for prices adjusted
    for dividends. `frame.attrs["complete"]` tells whether nothing is missing, `frame.attrs["missing"]` what
    is: (from, to, reason). Raises `HistoryRefused` with the daemon's code and words, OSError when it does
    not answer.
    """
    query: dict[str, Any] = {"interval": interval}
    if count is not None:
        query["count"] = count
    for name, moment in (("from", start), ("to", end)):
        if moment is not None:
            query[name] = _epoch_s(moment)
    for name, flag in (("forming", forming), ("adjusted", adjusted)):
        if flag:
            query[name] = "true"
    if not url.startswith(("http://", "https://")):
        raise ValueError("url must be the daemon's, as in http://127.0.0.1:8080")
    address = f"{url.rstrip('/')}/api/history/{quote(instrument, safe=':')}?{urlencode(query)}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(address, headers=headers), timeout=timeout_s) as response:  # noqa: S310 - checked
            answer = json.load(response)
    except HTTPError as error:
        raise _refusal(error) from error
    candles = answer["candles"]
    frame = pd.DataFrame(
        {name: [candle[at] for candle in candles] for at, name in enumerate(CANDLE_FIELDS, 1)},
        index=pd.DatetimeIndex(
            pd.to_datetime([candle[0] for candle in candles], unit="s", utc=True), name="time"
        ),
        dtype="float64",
    )
    frame.attrs["complete"] = answer["complete"]
    frame.attrs["missing"] = [tuple(gap) for gap in answer.get("missing", [])]
    return frame


def get_historical_oi(
    client: Redis, instrument: str, start: Moment = "-", end: Moment = "+", *, count: int | None = None
) -> pd.Series:
    """Return the open interest of an instrument at every tick that had one, from Redis.

    `start` and `end` as for `frames.ticks`; it reaches as far back as single ticks are kept.
    """
    return ticks(client, instrument, start, end, count=count)["oi"].dropna()


def _epoch_s(moment: int | datetime) -> int:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError("a time needs its zone, as in datetime(2026, 1, 2, tzinfo=UTC)")
        return int(moment.timestamp())
    return moment


def _refusal(error: HTTPError) -> HistoryRefused:
    try:
        body = json.loads(error.read())["error"]
        return HistoryRefused(error.code, body["code"], body["message"])
    except (ValueError, KeyError, TypeError):
        return HistoryRefused(error.code, f"http_{error.code}", "the daemon gives no reason")
