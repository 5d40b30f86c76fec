"""What was learned of rates, kept over a disarm and, in a file of the caller's, over a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from services.silence.feed import Feed
from services.silence.pulse import Pulse
from services.silence.watch import Watch

VERSION = 1
KEPT_MS = 14 * 86_400_000
"""What was learned longer ago says little."""
LIMIT = 200_000
"""So many instruments are remembered at most; the longest unused go first."""


class FeedMemory(msgspec.Struct):
    """What is remembered of a feed."""

    profile: list[float] = []
    days: int = 0
    dispersion: float = 4.0
    longest_s: float = 0.0


class JudgeMemory(msgspec.Struct):
    """What is remembered of all: feeds by `PROVIDER EXCHANGE`, instruments by provider and key."""

    version: int
    saved_ms: int
    feeds: dict[str, FeedMemory] = {}
    rates: dict[
        str, dict[str, tuple[float, float, float, float, float, float, float, float, float, float]]
    ] = {}


class Memory:
    """The learned figures of what is not armed now."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], list[float]] = {}
        self._rested: dict[tuple[str, str], Watch] = {}
        self._feeds: dict[str, FeedMemory] = {}
        self._saved_ms = 0

    def keep(self, watch: Watch) -> None:
        """Remember an instrument that is no longer armed."""
        watch.others = ()
        self._rested[watch.provider, watch.instrument] = watch
        while len(self._rested) > LIMIT:
            del self._rested[next(iter(self._rested))]

    def recall(self, provider: str, instrument: str, exchange: str, pulse: Pulse) -> Watch:
        """Return the watch of an instrument, with what was learned of it."""
        watch = self._rested.pop((provider, instrument), None)
        if watch is None or watch.exchange != exchange:
            watch = Watch(provider, instrument, exchange, pulse)
            learned = self._rates.pop((provider, instrument), None)
            if learned is not None:
                watch.restore(learned)
        return watch

    def recall_feed(self, feed: Feed) -> None:
        """Give a feed back what was learned of it."""
        learned = self._feeds.pop(f"{feed.provider} {feed.exchange}", None)
        if learned is not None:
            feed.profile.restore(learned.profile, learned.days)
            feed.dispersion, feed.longest_s = learned.dispersion, learned.longest_s

    def state(self, now_ms: int, watches: Iterable[Watch], feeds: Iterable[Feed]) -> dict[str, Any]:
        """Return everything, fit for JSON."""
        rates: dict[str, dict[str, list[float]]] = {}
        for (provider, instrument), learned in self._rates.items():
            rates.setdefault(provider, {})[instrument] = learned
        for watch in (*self._rested.values(), *watches):
            if watch.span_s > 0.0:
                rates.setdefault(watch.provider, {})[watch.instrument] = watch.state()
        kept: dict[str, Any] = {key: msgspec.to_builtins(feed) for key, feed in self._feeds.items()}
        for feed in feeds:
            kept[f"{feed.provider} {feed.exchange}"] = {
                "profile": feed.profile.state(),
                "days": feed.profile.days,
                "dispersion": round(feed.dispersion, 2),
                "longest_s": round(feed.longest_s, 1),
            }
        return {"version": VERSION, "saved_ms": now_ms or self._saved_ms, "feeds": kept, "rates": rates}

    def restore(self, state: Mapping[str, Any]) -> int:
        """Take over a state and return its time, UTC epoch ms; 0 where it cannot be understood."""
        try:
            memory = msgspec.convert(dict(state), JudgeMemory)
        except (msgspec.ValidationError, TypeError):
            return 0
        if memory.version != VERSION:
            return 0
        self._saved_ms = memory.saved_ms
        self._feeds = memory.feeds
        self._rates = {
            (provider, instrument): list(learned)
            for provider, by_key in memory.rates.items()
            for instrument, learned in by_key.items()
        }
        return memory.saved_ms

    def forget_if_old(self, now_ms: int) -> None:
        """Forget what was restored when it is too old to mean anything."""
        if self._saved_ms and now_ms - self._saved_ms > KEPT_MS:
            self._rates, self._feeds = {}, {}
