"""DhanDepth: one of Dhan's depth feeds as a source of the desk: who may be asked for, and whose book it is.

Stands between the desk, which knows instruments, and the feed, which knows the vendor's symbols.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from typing import Any

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from services.connection.rules import ConnectionRules
from services.connection.transport import Connector
from services.credential_state import DEAD, CredentialState
from services.depth.dhan_feed import SEGMENTS, DhanDepthFeed
from services.depth.source import BookTaker
from services.errors import CredentialsRejected, ProviderError, RequestRefused
from services.market_data.clock import Clock
from services.market_data.instruments import Candidates, InstrumentMapping, candidates_of
from services.market_data.records import ProviderTick
from services.market_data.updates import Level
from services.pipeline.backoff import Backoff

CODE = "DHAN"
_IN_TROUBLE = (ProviderState.PARKED, ProviderState.STALE)
_PROVEN = (CredentialState.VALID, CredentialState.EXPIRING)


class DhanDepth:
    """The source of as many levels as `feed_class` has. Keep `feed.run` running while data flows.

    `account()` is the provider of the live feed, whose credentials these are; None where there is none.
    """

    def __init__(
        self,
        feed_class: type[DhanDepthFeed],
        desk: BookTaker,
        clock: Clock,
        *,
        account: Callable[[], BaseMarketDataProvider | None],
        settings: Callable[[], Mapping[str, str]],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        open_markets: Callable[[], frozenset[str]],
        backoff: Callable[[], Backoff] = Backoff,
        rules: ConnectionRules | None = None,
        connector: Connector | None = None,
    ) -> None:
        self.levels = feed_class.levels
        self._desk = desk
        self._account = account
        self._rows: Candidates = {}
        self._instrument_of: dict[str, str] = {}
        """Whose books are wanted, by the vendor's symbol; among very many these are few."""
        self.ticks_refused = 0
        self.feed = feed_class(
            ProviderContext(
                clock=clock,
                deliver=self._no_tick,
                settings=settings,
                spawn=spawn,
                connection_lost=self._lost,
                connection_restored=self._restored,
                backoff=backoff,
                open_markets=open_markets,
            ),
            book=self._book,
            account_refusal=self._account_refusal,
            account_proven=self._account_proven,
            rules=rules,
            connector=connector,
        )

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Take over which instruments Dhan has, and under what name."""
        self._rows = candidates_of(tuple(mappings))
        wanted = set(self.feed.wanted)
        self._instrument_of = (
            {
                row.provider_symbol: key
                for key in self._rows
                if (row := self._row(key)) is not None and row.provider_symbol in wanted
            }
            if wanted
            else {}
        )
        self._desk.look_soon()

    def _row(self, instrument: str) -> InstrumentMapping | None:
        for row in self._rows.get(instrument, ()):
            if row.provider_code == CODE and row.segment in SEGMENTS:
                return row
        return None

    def _names(self, instruments: Sequence[str]) -> dict[str, str]:
        """Return the instruments that Dhan has, by its symbols."""
        rows = filter(None, map(self._row, instruments))
        return {row.provider_symbol: row.instrument for row in rows}

    # ---- what the desk asks -------------------------------------------------------------------------

    @property
    def capacity(self) -> int | None:
        """How many instruments all connections together carry."""
        return self.feed.capacity

    def stand(self) -> Hashable:
        """Return what refusals depend on besides the mappings."""
        return self._account() is None

    def refusal(self, instrument: str) -> RequestRefused | None:
        """Return why the depth of an instrument cannot be had here; None when it can."""
        if self._row(instrument) is None:
            segments = " and ".join(SEGMENTS)
            return RequestRefused(
                f"{self.levels} levels of {instrument} cannot be had: only Dhan has as many, for {segments}",
                reason="no_depth",
            )
        account = self._account()
        if account is None:
            return RequestRefused("the provider DHAN is not active", reason="depth_unavailable")
        problem = self.feed.token_refusal() or self._account_refusal()
        if problem is None and self.feed.credential_state in DEAD:
            problem = CredentialsRejected(
                f"Dhan takes no token for {self.levels} levels: {self.feed.last_error or 'none is set'}"
            )
        return None if problem is None else RequestRefused(str(problem), reason="depth_credentials")

    async def carry(self, instruments: Sequence[str]) -> None:
        """Bring the books of these and of no others."""
        wanted = self._names(instruments)
        gone = set(self.feed.wanted).difference(wanted)
        if gone:
            await self.feed.unwant(gone)
        self._instrument_of.update(wanted)
        await self.feed.want(list(wanted))
        self._forget_unwanted()

    async def change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Bring the books of `added` as well, and of `removed` no longer."""
        if gone := self._names(removed):
            await self.feed.unwant(list(gone))
        wanted = self._names(added)
        self._instrument_of.update(wanted)
        await self.feed.want(list(wanted))
        self._forget_unwanted()

    def _forget_unwanted(self) -> None:
        for symbol in self._instrument_of.keys() - set(self.feed.wanted):
            del self._instrument_of[symbol]

    def trouble(self) -> str:
        """Return what keeps the books from coming that somebody wants; empty where nothing does.

        Of a token that the live feed cannot use either, the live feed tells.
        """
        feed = self.feed
        if not feed.wanted or feed.state not in _IN_TROUBLE or self._account_refusal() is not None:
            return ""
        return f"Dhan's feed of {self.levels} levels is {feed.state.value}: {feed.reason}"

    def status(self) -> dict[str, Any]:
        """Return the feed's state, its connections and what they carry; times in UTC epoch ms."""
        own, counters = self.feed.status(), self.feed.counters
        return {
            "name": own.code,
            "capacity": self.capacity,
            "carried": own.subscribed,
            "state": own.state.value,
            "reason": own.reason,
            "since_ms": own.since_ms,
            "connections": own.connections,
            "unanswered": own.unanswered,
            "reconnects": own.reconnects,
            "last_error": own.last_error or None,
            "last_frame_ms": own.last_frame_ms,
            "credential_state": own.credential_state.value if own.credential_state else None,
            "frames": counters.frames,
            "wire_errors": dict(counters.wire_errors),
            "ignored": dict(counters.ignored),
            "refused": self.feed.refused,
        }

    # ---- what the feed tells ------------------------------------------------------------------------

    def _book(
        self, symbol: str, bids: tuple[Level, ...], asks: tuple[Level, ...], received_ms: int, flags: int
    ) -> None:
        instrument = self._instrument_of.get(symbol)
        if instrument is not None:
            self._desk.take(
                instrument,
                bids,
                asks,
                levels=self.levels,
                provider_code=CODE,
                received_ms=received_ms,
                flags=flags,
            )

    def _lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:  # noqa: ARG002
        names = self._instrument_of
        self._desk.lost([names[symbol] for symbol in symbols if symbol in names], self.levels)

    def _restored(self, symbols: Iterable[str], at_ms: int) -> None:
        """The next book says it better."""

    def _no_tick(self, tick: ProviderTick, received_ms: int) -> None:  # noqa: ARG002
        self.ticks_refused += 1

    def _account_refusal(self) -> ProviderError | None:
        account = self._account()
        if account is None or account.credential_state not in DEAD:
            return None
        state = account.credential_state
        return CredentialsRejected(
            f"the Dhan access token is {state.value if state else 'unknown'}, as the live feed knows: put "
            "another DHAN_ACCESS_TOKEN in .env",
            reason="account_refused",
        )

    def _account_proven(self) -> bool:
        account = self._account()
        return account is not None and account.credential_state in _PROVEN
