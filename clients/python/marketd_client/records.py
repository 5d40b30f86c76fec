"""What the clients hand out. Times are UTC epoch milliseconds; None means unknown, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from marketd_client.updates import Level2Update, NewsUpdate, OptionChainUpdate, QuoteUpdate, TradeUpdate


@dataclass(frozen=True, slots=True)
class Tick:
    """One trade or quote. `quantity` is what was traded since the previous tick, never cumulative.

    `open` to `previous_close` are those of the day. `flags` are among `snapshot`, `suspect`, `late`,
    `delayed`, `skewed`. From a Redis stream `position` is the entry's id and `received_ms`, `bid_size`
    and `ask_size` are filled; over the WebSocket the position belongs to the frame (`Client.resume_point`).
    """

    instrument: str
    price: float
    ts_ms: int
    quantity: int | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: int | None = None
    ask_size: int | None = None
    cumulative_volume: int | None = None
    oi: int | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    previous_close: float | None = None
    src: str = ""
    flags: tuple[str, ...] = ()
    received_ms: int | None = None
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """An event in order with the ticks: `gap stale resumed switched backfilled session bar`, or a later one.

    `instrument` may be `EXCHANGE:*`. `fields` holds what the type brings (`from`, `to`, `reason`, …).
    """

    type: str
    instrument: str
    ts_ms: int | None = None
    src: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One candle of the chart channel; the last one of an interval may come again with newer values."""

    instrument: str
    interval: str
    start_s: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """This client was too slow: the daemon dropped `n` of its messages, by instrument.

    `channels` says of which kind they were where some were not ticks.
    """

    n: int
    instruments: Mapping[str, int]
    channels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A reader of a Redis stream fell behind the trimming: entries after `after` and before `first` are gone.

    `lost` is how many, None where Redis cannot tell; `recreated` when the stream was deleted and begun anew.
    """

    stream: str
    after: str
    first: str
    lost: int | None = None
    recreated: bool = False


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The daemon has begun to send `accepted`.

    `recovered` is None at the first connection. After a reconnection, or where a `resume` was given, True
    means that everything missed follows, and False that it does not: `snapshot` then has the newest
    values, and `reason` says why. `refused` says by channel and instrument what cannot be had (depth of an
    instrument that has none). `quotes`, `trades` and `news` are the newest of these channels.
    """

    accepted: tuple[str, ...]
    rejected: Mapping[str, str]
    epoch: str
    position: Mapping[str, str]
    snapshot: Mapping[str, Tick]
    recovered: bool | None = None
    reason: str = ""
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    quotes: Mapping[str, QuoteUpdate] = field(default_factory=dict)
    trades: Mapping[str, TradeUpdate] = field(default_factory=dict)
    news: tuple[NewsUpdate, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone (1006: without a word); the next attempt begins in `retry_in_s` seconds."""

    code: int
    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class ServerNotice:
    """An error the daemon reports that concerns no subscription and does not end anything."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a client is: keep it with your results, give it to the next `Client(resume=…)`."""

    epoch: str
    position: Mapping[str, str]


Update = TradeUpdate | QuoteUpdate | Level2Update | OptionChainUpdate | NewsUpdate
Record = Tick | Control | Bar | Update | Skipped | Subscribed | Disconnected | ServerNotice
