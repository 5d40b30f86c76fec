"""The names of everything the daemon keeps in Redis.

The one place where a key is spelled. All keys of one instrument share a Redis Cluster slot through
the hash tag `{EXCHANGE:SYMBOL}`. Instrument keys are taken as they are (`NSE:M&M`, `INDEX:^GSPC`,
`CRYPTO:BTC-USD`, `NSE:BAJAJ-AUTO`): Redis keys are binary-safe and so is the protocol we write.
"""

from __future__ import annotations

import re
from typing import Literal

PREFIX = "md:"
REPLAY_PREFIX = "md:replay:"
"""What `replay` writes begins with this and the replay's name; nothing live does."""
_REPLAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
INTEREST = "md:interest"
"""Sorted set: member = instrument key, score = lease expiry in UTC epoch ms."""
EPOCH = "md:epoch"
"""Random text made with an empty key space; another value means that the history was lost."""

LEASE = "md:lease"
"""JSON of the daemon that may write this key space; ends by itself when it is not renewed."""
LEADER = "md:leader"
"""The newest lease for as long as it was not released, so that a lapsed one is told from a free one."""
FENCE = "md:fence"
"""How often the lease changed hands: the epoch of the newest leader."""
SHARDS = "md:shards"
"""Hash: the shards of ingestion that ever led, so that those with an exchange in common see each other."""
STATUS = "md:status"
"""Hash: what each leading ingest daemon says of itself once a second, in JSON; field: its shard, or `*`."""

NEWS = "md:news"
"""Stream of articles, in the order they were heard of; an article that is told of again replaces itself."""

OPTIONS_INTEREST = "md:options_interest"
"""Sorted set: member = underlying and expiry (`NSE:NIFTY 2026-12-29`), or the underlying alone for its next
expiry; score = lease expiry in ms."""
DEPTH_INTEREST = "md:depth_interest"
"""Sorted set: member = instrument key and levels (`NSE:RELIANCE 20`), score = expiry in UTC epoch ms."""

TickField = Literal["price", "volume", "bid", "ask", "oi"]
TICK_FIELDS: tuple[TickField, ...] = ("price", "volume", "bid", "ask", "oi")
"""The fields of a tick that are kept as series, in the order they are written."""

BarField = Literal["open", "high", "low", "close", "volume"]


def tick_series(instrument: str, field: TickField) -> str:
    """Return the key of one series of single ticks, `md:ts:{NSE:RELIANCE}:price`."""
    return f"md:ts:{{{instrument}}}:{field}"


def bar_series(instrument: str, interval: str, field: BarField) -> str:
    """Return the key of one series of bars, `md:ts:{NSE:RELIANCE}:1m:open`."""
    return f"md:ts:{{{instrument}}}:{interval}:{field}"


def last_tick(instrument: str) -> str:
    """Return the key of the hash with the newest tick, `md:last:{NSE:RELIANCE}`."""
    return f"md:last:{{{instrument}}}"


def tick_stream(exchange: str) -> str:
    """Return the key of an exchange's stream, `md:ticks:NSE`."""
    return f"md:ticks:{exchange}"


def option_stream(underlying: str) -> str:
    """Return the key of an underlying's stream of option chains, `md:options:{NSE:NIFTY}`."""
    return f"md:options:{{{underlying}}}"


def depth_stream(exchange: str) -> str:
    """Return the key of an exchange's stream of order books, `md:depth:NSE`."""
    return f"md:depth:{exchange}"


def tick_labels(instrument: str, exchange: str, field: TickField, kind: str = "tick") -> dict[str, str]:
    """Return the labels of a series of single ticks, in the order they are stored."""
    return {
        "instrument": instrument,
        "exchange": exchange,
        "symbol": instrument.partition(":")[2] or instrument,
        "field": field,
        "kind": kind,
    }


class KeySpace:
    """Where ticks are kept: the live keys, or those of a replay, which no live key is one of.

    A replay's series carry labels of their own, so that no live query finds them.
    """

    __slots__ = ("prefix", "replay")

    def __init__(self, replay: str = "") -> None:
        """Name the replay; empty for the live keys. Raises ValueError for a name that is none."""
        if replay and not _REPLAY_NAME.fullmatch(replay):
            raise ValueError(f"not a name for a replay: {replay!r}")
        self.replay = replay
        self.prefix = f"{REPLAY_PREFIX}{replay}:" if replay else PREFIX

    def tick_series(self, instrument: str, field: TickField) -> str:
        """Return the key of one series of single ticks."""
        return f"{self.prefix}ts:{{{instrument}}}:{field}"

    def last_tick(self, instrument: str) -> str:
        """Return the key of the hash with the newest tick."""
        return f"{self.prefix}last:{{{instrument}}}"

    def tick_stream(self, exchange: str) -> str:
        """Return the key of an exchange's stream."""
        return f"{self.prefix}ticks:{exchange}"

    def tick_labels(
        self, instrument: str, exchange: str, field: TickField, kind: str = "tick"
    ) -> dict[str, str]:
        """Return the labels of a series of single ticks, in the order they are stored."""
        if self.replay:
            return {"replay": self.replay, "replayed": instrument, "replayed_field": field, "kind": "replay"}
        return tick_labels(instrument, exchange, field, kind)


LIVE = KeySpace()


BAR_FIELDS: tuple[BarField, ...] = ("open", "high", "low", "close", "volume")
"""The fields of a bar that are kept as series, in the order they are written."""


def bar_labels(instrument: str, exchange: str, interval: str, field: BarField) -> dict[str, str]:
    """Return the labels of a series of bars, in the order they are stored."""
    return {
        "instrument": instrument,
        "exchange": exchange,
        "symbol": instrument.partition(":")[2] or instrument,
        "field": field,
        "kind": "bar",
        "interval": interval,
    }
