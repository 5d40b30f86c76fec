"""Bars: what a bar is, which intervals there are, and the `bar` record that says one in the stream.

Beneath everything that makes, stores, sends or reads bars. Pure; it never looks at a clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args

import msgspec

from services.market_data.calendar import Phase
from services.market_data.records import ControlRecord

_encode = msgspec.json.Encoder().encode

Interval = Literal["1m", "5m", "15m", "1h", "1d"]
INTERVALS: tuple[Interval, ...] = get_args(Interval)
"""The intervals that are stored, shortest first; any other is made of these when it is read."""

MINUTE_MS = 60_000
INTERVAL_MS: dict[Interval, int] = {
    "1m": MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "1h": 60 * MINUTE_MS,
    "1d": 24 * 60 * MINUTE_MS,
}
"""How long a bar of each interval is at most, in ms; the last bar of a session may be shorter."""


class BarStatus(str, Enum):
    """How far a bar has come."""

    FORMING = "forming"
    FINAL = "final"
    REVISED = "revised"


class Bar(msgspec.Struct, kw_only=True):
    """One bar of one instrument. Times are UTC epoch ms, prices in the instrument's currency.

    `start_ms` is the bar's first moment: the whole minute, or where the session's grid puts a longer one
    (its session's open for `1d`). `volume` is the traded quantity, None when no tick of the bar knew it.
    `ticks` is how many trades were seen, 0 where the source has bars only. `revision` is 0 for the first
    final bar and grows with each change after it. `covered_ms` is how much of the bar's span data was
    flowing, that is, no gap was open. `sources` are the provider codes in the order of their first tick.
    """

    instrument: str
    exchange: str
    interval: Interval
    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: int | None = None
    ticks: int = 0
    status: BarStatus = BarStatus.FORMING
    revision: int = 0
    covered_ms: int = 0
    sources: tuple[str, ...] = ()
    phase: Phase = Phase.REGULAR


def bar_record(bar: Bar, now_ms: int) -> ControlRecord:
    """Return a finished or revised bar as the control record of the streams; `now_ms` is UTC epoch ms.

    `i` interval, `s` start ms, `o h l c` prices as text, `v` volume (absent when unknown), `n` trades,
    `st` `final` or `revised`, `rev`, `cov` covered ms; `ph` `pre` or `post` outside regular sessions. `src`
    is the last source, `srcs` all of them where a bar has several.
    """
    fields: dict[str, str | int] = {
        "i": bar.interval,
        "s": bar.start_ms,
        "o": price_text(bar.open),
        "h": price_text(bar.high),
        "l": price_text(bar.low),
        "c": price_text(bar.close),
    }
    if bar.volume is not None:
        fields["v"] = bar.volume
    fields |= {"n": bar.ticks, "st": bar.status.value, "rev": bar.revision, "cov": bar.covered_ms}
    if bar.phase is not Phase.REGULAR:
        fields["ph"] = bar.phase.value
    if len(bar.sources) > 1:
        fields["srcs"] = ",".join(bar.sources)
    source = bar.sources[-1] if bar.sources else ""
    return ControlRecord("bar", bar.instrument, bar.exchange, now_ms, now_ms, source, fields)


def parse_bar(record: ControlRecord) -> Bar | None:
    """Return the bar that a `bar` record says, None when it says none that we know."""
    fields = record.fields
    interval = fields.get("i")
    if interval not in INTERVALS:
        return None
    try:
        volume = fields.get("v")
        return Bar(
            instrument=record.symbol,
            exchange=record.exchange,
            interval=interval,
            start_ms=int(fields["s"]),
            open=float(fields["o"]),
            high=float(fields["h"]),
            low=float(fields["l"]),
            close=float(fields["c"]),
            volume=None if volume is None else int(volume),
            ticks=int(fields["n"]),
            status=BarStatus(fields["st"]),
            revision=int(fields["rev"]),
            covered_ms=int(fields.get("cov", 0)),
            sources=tuple(text.split(","))
            if (text := str(fields.get("srcs") or record.provider_code))
            else (),
            phase=Phase(fields.get("ph", "regular")),
        )
    except (KeyError, ValueError):
        return None


def price_text(price: float) -> str:
    """Return the shortest decimal that reads back as the same number, as everywhere in the streams."""
    return _encode(price).decode()
