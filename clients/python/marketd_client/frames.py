"""Redis TimeSeries and streams of a daemon as pandas data frames. Needs `redis` and `pandas`.

The functions take a `redis.Redis` (the blocking kind, for notebooks and scripts). The index is the time in
UTC with millisecond precision; what is unknown is NaN.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd
from redis import Redis

from marketd_client.entries import record_of
from marketd_client.records import Tick
from marketd_client.streams import stream_key

TICK_FIELDS = ("price", "volume", "bid", "ask", "oi")
BAR_FIELDS = ("open", "high", "low", "close", "volume")

Moment = int | str | datetime


def ticks(
    client: Redis, instrument: str, start: Moment = "-", end: Moment = "+", *, count: int | None = None
) -> pd.DataFrame:
    """Return the ticks of an instrument: columns price, volume, bid, ask, oi.

    `start` and `end` (both included) are UTC epoch ms, `-` and `+`, or times with a zone. `volume` is the
    quantity traded since the previous tick. `count` limits each series, from `start` on.
    """
    return _frame(client, {name: f"md:ts:{{{instrument}}}:{name}" for name in TICK_FIELDS}, start, end, count)


def bars(
    client: Redis,
    instrument: str,
    interval: str = "1m",
    start: Moment = "-",
    end: Moment = "+",
    *,
    count: int | None = None,
) -> pd.DataFrame:
    """Return the bars of an instrument by their start: columns open, high, low, close, volume."""
    prefix = f"md:ts:{{{instrument}}}:{interval}"
    return _frame(client, {name: f"{prefix}:{name}" for name in BAR_FIELDS}, start, end, count)


def stream(
    client: Redis, exchange: str, start: str = "-", end: str = "+", count: int = 10_000
) -> pd.DataFrame:
    """Return up to `count` ticks of an exchange's stream: everything a tick says, one row each."""
    reply: Any = client.xrange(stream_key(exchange), start, end, count)
    rows: list[Tick] = []
    for position, fields in reply:
        record = record_of(exchange, _text(position), {_text(k): _text(v) for k, v in fields.items()})
        if isinstance(record, Tick):
            rows.append(record)
    names = list(Tick.__dataclass_fields__)
    frame = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in names})
    frame.index = _index(frame["ts_ms"].astype("int64")).rename("time")
    return frame


def _frame(
    client: Redis, keys: dict[str, str], start: Moment, end: Moment, count: int | None
) -> pd.DataFrame:
    pipeline: Any = client.pipeline(transaction=False)
    for key in keys.values():
        limit = () if count is None else ("COUNT", count)
        pipeline.execute_command("TS.RANGE", key, _moment(start), _moment(end), *limit)
    columns = {}
    for name, reply in zip(keys, pipeline.execute(raise_on_error=False), strict=True):
        if isinstance(reply, Exception):
            # A field that the provider never gave has no series.
            if "does not exist" not in str(reply):
                raise reply
            reply = []
        times = _index([int(sample[0]) for sample in reply])
        columns[name] = pd.Series([float(_text(sample[1])) for sample in reply], times, dtype="float64")
    return pd.DataFrame(columns, columns=list(keys)).rename_axis("time")


def _index(epoch_ms: Any) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(pd.to_datetime(epoch_ms, unit="ms", utc=True)).as_unit("ms")


def _moment(moment: Moment) -> int | str:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError("a time needs its zone, as in datetime(2026, 1, 2, tzinfo=UTC)")
        return round(moment.timestamp() * 1000)
    return moment


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
