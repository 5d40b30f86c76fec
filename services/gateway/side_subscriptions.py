"""What one client watches of the channels beside ticks and charts, and how each is delivered.

Stands between the client's subscriptions and the hub. Trades and news are never conflated, depth and option
chains always, quotes as the client wishes. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from services.data_broadcast import Publication
from services.gateway.channel_hub import ChannelHub, ChannelRefused, Topic
from services.gateway.grants import EVERYTHING
from services.gateway.outbox import Outbox, Pace
from services.gateway.protocol import DEFAULT_EVERY_MS, ClientMessageError, Subscribe
from services.gateway.side_messages import (
    NEVER_CONFLATED,
    NEWEST_ONLY,
    SIDE_CHANNELS,
    Channel,
    SideMessage,
    news_body,
    quote_body,
    trade_body,
)
from services.options.source import DERIVATIVES_OF
from services.wire.option_fields import INDIA, NEW_YORK, expiry_day

ALL_NEWS = "*"
NEWS_AT_FIRST = 20
"""So many articles a watcher of news begins with."""
FROM_TICKS: tuple[Channel, ...] = ("quote", "trade")
"""Channels that are made of the tick flow, and can be resumed by its positions."""


class SideWatch(msgspec.Struct, frozen=True):
    """How one channel of one instrument is watched. `every_ms` None: every message."""

    topic: Topic
    every_ms: int | None


def side_channels_of(channels: Iterable[str]) -> tuple[Channel, ...]:
    """Return those of the channels that are beside ticks and charts."""
    wanted = set(channels)
    return tuple(channel for channel in SIDE_CHANNELS if channel in wanted)


def every_ms_of(channel: Channel, wish: Subscribe) -> int | None:
    """Return the pace a channel is delivered at, None for every message."""
    if channel in NEVER_CONFLATED or (channel == "quote" and wish.delivery == "all"):
        return None
    return wish.every_ms if wish.delivery == "latest" else DEFAULT_EVERY_MS


class SideSubscriptions:
    """The channels beside ticks and charts of one client. An outlet of the hub.

    `pace_of(every_ms)` gives the client's pace; `in_flow(instrument)` tells whether it hears control records
    of an instrument (or `EXCHANGE:*`) already, with its ticks or charts.
    """

    def __init__(
        self,
        hub: ChannelHub,
        outbox: Outbox,
        pace_of: Callable[[int], Pace],
        in_flow: Callable[[str], bool],
    ) -> None:
        self._hub = hub
        self._outbox = outbox
        self._pace_of = pace_of
        self._in_flow = in_flow
        self._watches: dict[tuple[Channel, str], SideWatch] = {}
        self.grant = EVERYTHING

    # ---- outlet ---------------------------------------------------------------------------------

    def take_side(self, message: SideMessage) -> None:
        """Queue one message; of an article only the instruments that the token covers."""
        if message.channel == "news" and self.grant.instruments is not None:
            article = message.record
            covered = tuple(key for key in article.instruments if self.grant.covers(key))
            if not covered:
                return
            message = SideMessage(
                "news", message.symbol, msgspec.structs.replace(article, instruments=covered)
            )
        self._outbox.take_side(message)

    def take_flow_control(self, publication: Publication) -> None:
        """Queue one control record, unless the client hears it with its ticks."""
        record = publication.record
        if not self._in_flow(record.symbol or f"{record.exchange}:*"):
            self._outbox.take_control(publication)

    # ---- what is watched ------------------------------------------------------------------------

    def symbols(self) -> set[str]:
        """Return every instrument that is watched; all news is none."""
        return {symbol for _, symbol in self._watches if symbol != ALL_NEWS}

    def positioned(self) -> set[str]:
        """Return the exchanges whose positions this client follows here."""
        return {symbol.partition(":")[0] for channel, symbol in self._watches if channel in FROM_TICKS}

    def paces(self) -> set[int]:
        """Return the paces in use, in ms."""
        return {watch.every_ms for watch in self._watches.values() if watch.every_ms is not None}

    def has(self, channel: Channel, symbol: str) -> bool:
        """Tell whether a channel of an instrument is watched."""
        return (channel, symbol) in self._watches

    def listed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return what is watched and how, by channel and instrument."""
        shown: dict[str, dict[str, dict[str, Any]]] = {}
        for (channel, symbol), watch in self._watches.items():
            how: dict[str, Any] = {} if watch.every_ms is None else {"every_ms": watch.every_ms}
            if channel == "depth":
                how["levels"] = int(watch.topic[1])
            elif channel == "options":
                how["expiry"] = watch.topic[1] or None
            shown.setdefault(channel, {})[symbol] = how
        return shown

    def check(self, wish: Subscribe, found: Iterable[str], most_chains: int) -> None:
        """Raise `ClientMessageError` for a channel that is not there, or too many chains."""
        for channel in side_channels_of(wish.channels):
            if not self._hub.has(channel):
                raise ClientMessageError("channel_unavailable", f"this process has no {channel}")
        if "options" in wish.channels:
            if any(key.endswith(":*") for key in wish.instruments):
                raise ClientMessageError("invalid_message", "options are subscribed by underlying, not by *")
            chains = {symbol for channel, symbol in self._watches if channel == "options"} | set(found)
            if len(chains) > most_chains:
                raise ClientMessageError(
                    "too_many",
                    f"a client may watch {most_chains} option chains; this would make {len(chains)}; "
                    "nothing was changed",
                )

    def watch(
        self, symbols: Iterable[str], wish: Subscribe, *, snapshot: bool = True
    ) -> dict[str, dict[str, str]]:
        """Watch the wished channels of `symbols`; return what was refused and why, by channel and instrument.

        Depth and chains begin with the newest there is, as their first message. Without `snapshot` quotes do
        so too, as the answer does not say them.
        """
        refused: dict[str, dict[str, str]] = {}
        for channel in side_channels_of(wish.channels):
            every_ms = every_ms_of(channel, wish)
            waiting = None if every_ms is None else self._pace_of(every_ms).sides.of(channel)
            for symbol in symbols:
                topic = (symbol, _detail(channel, symbol, wish))
                known = self._watches.get((channel, symbol))
                try:
                    self._hub.attach(channel, topic, self, waiting)
                except ChannelRefused as refusal:
                    refused.setdefault(channel, {})[symbol] = refusal.code
                    continue
                if known is not None:
                    self._forget(channel, known)
                    if known.topic != topic:
                        self._hub.detach(channel, known.topic, self)
                self._watches[channel, symbol] = SideWatch(topic, every_ms)
                begins = channel in NEWEST_ONLY or (channel == "quote" and not snapshot)
                newest = self._hub.newest(channel, topic) if begins and waiting is not None else None
                if newest is not None and waiting is not None:
                    waiting[topic] = newest
        return refused

    def unwatch(self, symbols: Iterable[str], channels: Iterable[Channel] = SIDE_CHANNELS) -> list[str]:
        """End channels of `symbols`; return those of which something was watched."""
        ended: dict[str, None] = {}
        for symbol in symbols:
            for channel in channels:
                watch = self._watches.pop((channel, symbol), None)
                if watch is not None:
                    self._hub.detach(channel, watch.topic, self)
                    self._forget(channel, watch)
                    ended[symbol] = None
        return list(ended)

    def clear(self) -> None:
        """End everything."""
        for (channel, _), watch in self._watches.items():
            self._hub.detach(channel, watch.topic, self)
        self._watches.clear()

    def snapshots(self, symbols: Iterable[str], wish: Subscribe) -> dict[str, Any]:
        """Return what stands in the answer of the wished channels: newest quotes and trades, newest news."""
        shown: dict[str, Any] = {}
        for channel in side_channels_of(wish.channels):
            if channel == "news":
                articles = self._hub.latest_news(symbols, NEWS_AT_FIRST)
                shown["news"] = [body for article in articles if (body := self._article(article))]
            elif channel in FROM_TICKS:
                newest = {
                    symbol: message.record
                    for symbol in symbols
                    if (message := self._hub.newest(channel, (symbol, ""))) is not None
                }
                body_of: Callable[[Any], dict[str, Any]] = quote_body if channel == "quote" else trade_body
                shown[channel] = {symbol: body_of(record) for symbol, record in newest.items()}
        return shown

    def _article(self, article: Any) -> dict[str, Any] | None:
        body = news_body(article)
        if self.grant.instruments is not None:
            body["instruments"] = [key for key in body["instruments"] if self.grant.covers(key)]
            if not body["instruments"]:
                return None
        return body

    def _forget(self, channel: Channel, watch: SideWatch) -> None:
        for pace in self._outbox.paces.values():
            pace.sides.forget(channel, watch.topic)


def _detail(channel: Channel, symbol: str, wish: Subscribe) -> str:
    if channel == "depth":
        return str(wish.levels)
    if channel == "options":
        return _expiry_date(symbol, wish.expiry)
    return ""


def _expiry_date(symbol: str, expiry: str) -> str:
    """Return the day an expiry ends on where the contracts are listed; empty for the next one."""
    if not expiry or "-" in expiry:
        return expiry
    zone = INDIA if symbol.partition(":")[0] in DERIVATIVES_OF else NEW_YORK
    return expiry_day(int(expiry), zone).isoformat()
