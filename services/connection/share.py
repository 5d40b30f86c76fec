"""The share of the symbols that one connection carries: what is assigned to it, and what was asked for.

Stands between the pool, which assigns, and an open link, over which it asks in the vendor's messages.
Outlives single connections, because what the server refused on one it will refuse on the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from services.base_provider import ProviderCounters
from services.connection.link import Link
from services.connection.rules import ConnectionRules, Request
from services.errors import SubscriptionRefused
from services.market_data.clock import Clock

_CAREFUL_SETTLE_S = 0.5
_MOST_LATE = 10
"""So many requests, whose turn came while the event loop was busy, are sent at once; the rest wait anew."""


class ShareHost(Protocol):
    """What a share asks of its provider."""

    counters: ProviderCounters

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """The messages that ask for symbols."""
        ...

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """The messages that stop asking."""
        ...

    def missing(self, symbols: Iterable[str]) -> list[str]:
        """Those symbols for which nothing has come since they were asked for."""
        ...

    def silent_since_asked(self, symbols: Iterable[str]) -> list[str]:
        """Those symbols about which nothing at all has come since they were asked for."""
        ...

    def symbols_forgotten(self, symbols: Iterable[str], since_ms: int) -> None:
        """The server seems not to have taken the requests for these symbols."""

    def connection_asking(self, symbols: Iterable[str]) -> None:
        """These symbols are asked for now."""

    def connection_asked(self, symbols: Iterable[str]) -> None:
        """The server has read the requests for these symbols."""

    def symbol_refused(self, symbol: str, reason: str) -> None:
        """The server ends any connection on which this symbol is asked for."""


class Share:
    """`assigned` are the symbols this connection should carry, `asked` those the server was asked for."""

    def __init__(self, host: ShareHost, rules: ConnectionRules, clock: Clock) -> None:
        self.assigned: dict[str, None] = {}
        self.asked: dict[str, None] = {}
        self._host = host
        self._rules = rules
        self._clock = clock
        self._to_ask: dict[str, None] = {}
        self._to_drop: dict[str, None] = {}
        self._unheard: deque[tuple[float, int, tuple[str, ...]]] = deque()
        self._careful = False
        self._in_doubt: tuple[str, ...] = ()
        self._suspects: list[tuple[str, ...]] = []
        self._next_s = 0.0

    def change(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """Take `added` into the share and `removed` out of it."""
        for symbol in removed:
            self.assigned.pop(symbol, None)
            self._to_ask.pop(symbol, None)
            if symbol in self.asked:
                self._to_drop[symbol] = None
        for symbol in added:
            self.assigned[symbol] = None
            self._to_drop.pop(symbol, None)
            if symbol not in self.asked:
                self._to_ask[symbol] = None

    def connection_lost(self) -> list[str]:
        """Forget what was asked for over a connection that is gone, and return it."""
        asked, self.asked = list(self.asked), {}
        self._to_ask, self._to_drop = dict(self.assigned), {}
        self._unheard.clear()
        return asked

    async def bring_in_line(self, link: Link) -> None:
        """Ask for what is assigned and was not asked for yet, and the other way round."""
        while (self._to_ask or self._to_drop) and not link.over:
            suspects = {symbol for group in self._suspects for symbol in group}
            add = [symbol for symbol in self._to_ask if symbol not in suspects]
            drop = list(self._to_drop)
            self._to_ask, self._to_drop = {}, {}
            # Additions first, so that a re-mapped instrument has no hole; unless there is no room for them.
            crowded = len(self.asked) + len(add) > self._rules.symbols_per_connection
            if crowded:
                await self._stop_asking(link, drop)
            await self._ask(link, add)
            if not crowded:
                await self._stop_asking(link, drop)
        await self._try_suspects(link)

    async def repeat_all(self, link: Link) -> None:
        """Ask again for everything, as some vendors forget."""
        # What is answered from here on may be an answer to this repetition.
        self._take_unheard(self._clock.monotonic_s() + (self._rules.resubscribe_missing_after_s or 0.0) / 2)
        await self._send(link, list(self.asked))

    async def repeat_unheard(self, link: Link) -> None:
        """Ask once more for what has brought nothing in the time the rules give it."""
        missing = self._take_unheard(self._clock.monotonic_s())
        if missing and self._rules.resubscribe_every_s is None and not link.over:
            self._host.counters.resubscribed += len(missing)
            await self._send(link, missing)

    def _take_unheard(self, until_s: float) -> list[str]:
        """Return what was due by `until_s` and brought no price; silence is a lost request."""
        found: list[str] = []
        while self._unheard and self._unheard[0][0] <= until_s:
            _, asked_ms, symbols = self._unheard.popleft()
            missing = self._host.missing(symbol for symbol in symbols if symbol in self.asked)
            self._host.symbols_forgotten(self._host.silent_since_asked(missing), asked_ms)
            found += missing
        return found

    def judge_refusal(self, error: SubscriptionRefused) -> None:
        """Learn from a connection that was ended because of a symbol the server did not name.

        The first time, the next connection waits after every request; then the request in doubt is
        halved until one symbol is left, which is asked for no more.
        """
        known = [group for group in self._suspects if group != self._in_doubt]
        if not self._careful:
            self._careful = True
        elif len(self._in_doubt) > 1:
            half = len(self._in_doubt) // 2
            self._suspects = [self._in_doubt[:half], self._in_doubt[half:], *known]
        elif self._in_doubt:
            self._suspects = known
            self._host.symbol_refused(self._in_doubt[0], error.reason)

    async def _ask(self, link: Link, symbols: list[str]) -> None:
        # What was given up while we were busy is not asked for any more.
        symbols = [symbol for symbol in symbols if symbol in self.assigned]
        if not symbols or link.over:
            return
        self.asked.update(dict.fromkeys(symbols))
        asked_ms = self._clock.now_ms()
        self._host.connection_asking(symbols)
        await self._send(link, symbols)
        await link.hear(self._rules.pong_within_s, self._rules.settle_s)
        if not link.over:
            self._host.connection_asked(symbols)
            if self._rules.resubscribe_missing_after_s is not None:
                due_s = self._clock.monotonic_s() + self._rules.resubscribe_missing_after_s
                self._unheard.append((due_s, asked_ms, tuple(symbols)))

    async def _stop_asking(self, link: Link, symbols: list[str]) -> None:
        # What was wanted again while we were busy is kept: nobody would ask for it a second time.
        symbols = [symbol for symbol in symbols if symbol not in self.assigned]
        for symbol in symbols:
            self.asked.pop(symbol, None)
        if symbols:
            for message in self._host.unsubscribe_requests(symbols):
                link.send(message)
                await self._pace()

    async def _send(self, link: Link, symbols: list[str]) -> None:
        self._next_s = max(self._next_s, self._clock.monotonic_s())
        for request in self._host.subscribe_requests(symbols):
            if link.over:
                return
            self._in_doubt = request.symbols
            link.send(request.payload)
            if self._careful:
                await link.hear(self._rules.pong_within_s, max(self._rules.settle_s, _CAREFUL_SETTLE_S))
            else:
                await self._pace()

    async def _pace(self) -> None:
        """Wait until the next request may go: by the clock, so that a busy loop does not add up."""
        pace_s = self._rules.pace_s
        if pace_s > 0:
            now_s = self._clock.monotonic_s()
            self._next_s = max(self._next_s, now_s - _MOST_LATE * pace_s) + pace_s
            if self._next_s > now_s:
                await asyncio.sleep(self._next_s - now_s)

    async def _try_suspects(self, link: Link) -> None:
        while self._suspects and not link.over:
            self._suspects[0] = tuple(symbol for symbol in self._suspects[0] if symbol in self.assigned)
            await self._ask(link, list(self._suspects[0]))
            if not link.over:
                self._suspects.pop(0)
        if not self._suspects and not link.over:
            self._careful = False
