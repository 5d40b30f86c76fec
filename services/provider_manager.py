"""ProviderManager: which provider serves which instrument, and how every provider is doing.

Stands between the providers and the sequencer. It builds the providers of the mapping snapshot,
tells each what to subscribe, normalises what they deliver, and lets through exactly one source per
instrument. It never touches a socket or a store itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Protocol

import structlog

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.dhan_provider import DhanProvider
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.gaps import GapBook
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_plugins import load_plugins
from services.provider_runtime import ProviderRuntime
from services.yahoo_finance_connection import YahooFinanceConnection

_log = structlog.get_logger(__name__)

ProviderFactory = Callable[[ProviderContext], BaseMarketDataProvider]


def provider_factories() -> dict[str, ProviderFactory]:
    """Return how to build each known provider, by code: ours and those of installed packages.

    Raises `ConfigurationError` when a package's provider cannot be imported.
    """
    return {
        YahooFinanceConnection.code: YahooFinanceConnection,
        DhanProvider.code: DhanProvider,
        **load_plugins(),
    }


class FirstConnectPacing(Protocol):
    """Remembers over restarts when each provider was last connected to first."""

    def wait_s(self, code: str) -> float:
        """How many seconds the first connection of this process is to wait."""
        ...

    async def note(self, code: str) -> None:
        """The first connection is made now."""
        ...


class ProviderManager:
    """Runs the providers of a mapping snapshot and routes each instrument to one of them.

    `calendar` says which markets trade; silence of the others is ordinary.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        settings: Callable[[], Mapping[str, str]],
        publish: Callable[[Record], None],
        supervisor: Supervisor,
        show_reference: Callable[[DataIngestionFormat], None],
        factories: Mapping[str, ProviderFactory] | None = None,
        calendar: MarketCalendar | None = None,
        pacing: FirstConnectPacing | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._publish = publish
        self._supervisor = supervisor
        self._show_reference = show_reference
        self._factories = dict(factories) if factories is not None else None
        self._calendar = calendar or MarketCalendar()
        self._pacing = pacing
        self._runtimes: dict[str, ProviderRuntime] = {}
        self._candidates: dict[str, tuple[InstrumentMapping, ...]] = {}
        self._active: dict[str, str] = {}
        self._interest: frozenset[str] | None = None
        self._pending: dict[str, str] = {}
        self._left: dict[str, tuple[str, str]] = {}
        self._gaps = GapBook()

    # ---- life -----------------------------------------------------------------------------------

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over a mapping snapshot: build its providers and decide the first routes. No I/O."""
        factories = self._factories if self._factories is not None else provider_factories()
        candidates: dict[str, list[InstrumentMapping]] = {}
        by_provider: dict[str, list[InstrumentMapping]] = {entry.code: [] for entry in snapshot.providers}
        for mapping in snapshot.mappings:
            candidates.setdefault(mapping.instrument, []).append(mapping)
            by_provider.setdefault(mapping.provider_code, []).append(mapping)
        self._candidates = {
            key: tuple(sorted(rows, key=lambda row: (not row.is_primary, row.priority, row.provider_code)))
            for key, rows in candidates.items()
        }
        for entry in snapshot.providers:
            runtime = self._runtimes.setdefault(entry.code, ProviderRuntime(entry, self._clock))
            rows = by_provider[entry.code]
            runtime.load(entry, rows)
            if runtime.provider is None:
                factory = factories.get(entry.code)
                if factory is None:
                    _log.error("provider_unknown", provider=entry.code, remedy="install its package")
                    continue
                runtime.provider = factory(self._context(runtime))

    async def apply(self, snapshot: MappingSnapshot) -> None:
        """Go over to a changed mapping snapshot while running; what did not change is not touched.

        What is new is subscribed before what is gone is let go.
        """
        before = set(self._runtimes)
        codes = {entry.code for entry in snapshot.providers}
        flowed = {
            instrument: symbol
            for instrument, code in self._active.items()
            if (symbol := self._runtimes[code].symbol_of.get(instrument)) in self._runtimes[code].flowing
        }
        self.load(snapshot)
        self._leave_gone_routes(flowed, codes)
        for code in codes - before:
            self._keep(code)
        await asyncio.sleep(0)
        await self.reroute()
        for code in before - codes:
            await self._end(code, self._runtimes.pop(code))
        await self._release()

    def _leave_gone_routes(self, flowed: Mapping[str, str | None], codes: set[str]) -> None:
        """Give up the routes whose mapping is gone, and open the gaps of what flowed over them."""
        now_ms = self._clock.now_ms()
        for instrument, code in list(self._active.items()):
            rows = self._candidates.get(instrument, ())
            row = next((row for row in rows if row.provider_code == code), None)
            if row is None:
                reason = "mapping_removed" if code in codes else "provider_deactivated"
                del self._active[instrument]
                self._pending.pop(instrument, None)
                if rows:
                    self._left[instrument] = (code, reason)
                if instrument in flowed:
                    self._gaps.lost(instrument, now_ms, reason)
            elif instrument in flowed and row.provider_symbol not in self._runtimes[code].flowing:
                self._gaps.lost(instrument, now_ms, "remapped")

    async def _release(self) -> None:
        """Let go of every symbol that no instrument is routed by, nor waits for."""
        needed: dict[str, set[str]] = {code: set() for code in self._runtimes}
        for instrument, rows in self._candidates.items():
            serving = {self._active.get(instrument), self._pending.get(instrument), rows[0].provider_code}
            if self._interest is None or instrument in self._interest:
                for row in rows:
                    if row.provider_code in serving:
                        needed[row.provider_code].add(row.provider_symbol)
        for code, runtime in self._runtimes.items():
            if runtime.provider is not None:
                await runtime.let_go([it for it in runtime.provider.wanted if it not in needed[code]])

    def seed(self, newest: Iterable[DataIngestionFormat]) -> None:
        """Recall the newest stored ticks: the same ones are not stored again, and the gap since is known."""
        for record in newest:
            runtime = self._runtimes.get(record.provider_code)
            symbol = runtime.symbol_of.get(record.symbol) if runtime is not None else None
            if runtime is not None and symbol is not None:
                runtime.normaliser.seed(symbol, record)
            self._gaps.lost(record.symbol, record.received_ms, "daemon_down")

    async def start(self) -> None:
        """Start every provider and tell it what to subscribe."""
        for code in self._runtimes:
            self._keep(code)
        # Let each provider find out at once whether it has credentials, before routes depend on it.
        await asyncio.sleep(0)
        await self.reroute()
        self._supervisor.keep("provider_manager", self._watch)

    async def stop(self) -> None:
        """Close every provider's session. They may be started again."""
        await self._supervisor.end("provider_manager")
        for code, runtime in self._runtimes.items():
            await self._end(code, runtime)

    def forget_gaps(self) -> None:
        """Forget what is not delivered now: another daemon delivers, and tells of its own gaps."""
        self._gaps = GapBook()
        for runtime in self._runtimes.values():
            runtime.flowing.clear()

    def _keep(self, code: str) -> None:
        provider = self._runtimes[code].provider
        if provider is not None:
            self._supervisor.keep(f"provider:{code}", lambda: self._run(code, provider), core=False)

    async def _run(self, code: str, provider: BaseMarketDataProvider) -> None:
        pacing = self._pacing
        if pacing is not None:
            wait_s = pacing.wait_s(code)
            if wait_s > 0:
                provider.reason = f"connects in {wait_s:.0f} s, because the daemon crashed before"
                await asyncio.sleep(wait_s)
            await pacing.note(code)
        await provider.run()

    async def _end(self, code: str, runtime: ProviderRuntime) -> None:
        await self._supervisor.end(f"provider:{code}")
        if runtime.provider is not None:
            await runtime.provider.disconnect_websocket()

    def credentials_changed(self) -> None:
        """Tell parked providers that settings may have changed (SIGHUP)."""
        for runtime in self._runtimes.values():
            if runtime.provider is not None:
                runtime.provider.credentials_changed()

    # ---- routing --------------------------------------------------------------------------------

    async def set_interest(self, instruments: frozenset[str]) -> None:
        """Subscribe only `instruments` from now on; without this call all mapped ones are.

        What is new is subscribed before what is no longer wanted is let go, if there is room for both.
        """
        before, self._interest = self._interest, instruments
        if instruments == before:
            return
        gone = (self._candidates.keys() if before is None else before) - instruments
        now_ms = self._clock.now_ms()
        for instrument in gone:
            runtime = self._runtimes.get(self._active.pop(instrument, ""))
            self._pending.pop(instrument, None)
            if runtime is not None and runtime.symbol_of.get(instrument) in runtime.flowing:
                # What is traded until somebody wants it again is not seen.
                self._gaps.lost(instrument, now_ms, "not_subscribed")
        new = instruments if before is None else instruments - before
        crowded = any(
            runtime.provider is not None
            and runtime.provider.capacity is not None
            and len(runtime.provider.wanted) + len(new) > runtime.provider.capacity
            for runtime in self._runtimes.values()
        )
        if crowded:
            # There is no room for both at the same time.
            await self._let_go(gone)
        await self.reroute(new)
        if not crowded:
            await self._let_go(gone)

    async def _let_go(self, instruments: Iterable[str]) -> None:
        """Unsubscribe `instruments` wherever they are subscribed."""
        idle: dict[str, list[str]] = {}
        for instrument in instruments:
            for row in self._candidates.get(instrument, ()):
                idle.setdefault(row.provider_code, []).append(row.provider_symbol)
        for code, symbols in idle.items():
            await self._runtimes[code].let_go(symbols)

    def room(self) -> dict[str, int]:
        """Return how many symbols each provider that has a limit can hold, by code."""
        limits = {
            code: runtime.provider.capacity for code, runtime in self._runtimes.items() if runtime.provider
        }
        return {code: limit for code, limit in limits.items() if limit is not None}

    def places(self) -> Callable[[str], list[str]]:
        """Return a function: at which providers (codes) an instrument would take a subscription just now."""
        usable = {code for code, runtime in self._runtimes.items() if runtime.usable}
        return lambda instrument: [row.provider_code for row in self._serving_rows(instrument, usable)]

    def subscription_state(self, instrument: str) -> str:
        """Return how far the subscription is that serves `instrument`: requested, acked or proven."""
        code = self._active.get(instrument)
        runtime = self._runtimes.get(code) if code is not None else None
        if runtime is None or runtime.provider is None or instrument not in runtime.symbol_of:
            return "requested"
        return runtime.provider.subscription_state(runtime.symbol_of[instrument])

    def _serving_rows(self, instrument: str, usable: Container[str]) -> tuple[InstrumentMapping, ...]:
        """Return the mappings to subscribe: the first in the order, and the best if that is another."""
        rows = self._candidates.get(instrument, ())
        if not rows:
            return ()
        best = next((row for row in rows if row.provider_code in usable), rows[0])
        return (best,) if best is rows[0] else (rows[0], best)

    async def reroute(self, only: Iterable[str] | None = None) -> None:
        """Give every instrument (or `only` these) to its best usable provider; the old one goes when the
        new one ticks.

        The first in the order stays subscribed, or waiting to be, whoever serves in its place.
        """
        wanted: dict[str, list[str]] = {}
        usable = {code for code, runtime in self._runtimes.items() if runtime.usable}
        for instrument in self._candidates if only is None else only:
            if self._interest is not None and instrument not in self._interest:
                continue
            rows = self._serving_rows(instrument, usable)
            if not rows:
                continue
            best = rows[-1]
            for row in rows:
                wanted.setdefault(row.provider_code, []).append(row.provider_symbol)
            current = self._active.get(instrument)
            if best.provider_code == current:
                self._pending.pop(instrument, None)
            elif current is None or current not in usable:
                self._activate(instrument, best.provider_code, "provider_unavailable")
            else:
                self._pending[instrument] = best.provider_code
        for code, symbols in wanted.items():
            provider = self._runtimes[code].provider
            if provider is not None:
                await provider.want(symbols)

    def _activate(self, instrument: str, code: str, reason: str) -> None:
        left, left_reason = self._left.pop(instrument, (None, reason))
        previous = self._active.get(instrument, left)
        self._active[instrument] = code
        self._pending.pop(instrument, None)
        runtime = self._runtimes[code]
        mapping = runtime.instrument_of[runtime.symbol_of[instrument]]
        now_ms = self._clock.now_ms()
        if mapping.provider_symbol in runtime.flowing:
            self._close_gap(mapping, now_ms)
        elif previous is not None:
            self._gaps.lost(instrument, now_ms, left_reason)
        if previous is None or previous == code:
            return
        self._publish_control(
            "switched", mapping, code, {"from_src": previous, "to_src": code, "reason": left_reason}
        )
        old = self._runtimes.get(previous)
        if old is not None and previous != self._candidates[instrument][0].provider_code:
            symbol = old.symbol_of.get(instrument)
            if symbol is not None:
                self._supervisor.spawn(old.let_go([symbol]), f"unsubscribe:{previous}:{instrument}")

    def _deliverer(self, runtime: ProviderRuntime) -> Callable[[ProviderTick, int], None]:
        """Return the function that takes every tick of one provider; the hot path begins here."""
        accept = runtime.normaliser.accept
        active, pending = self._active, self._pending
        code = runtime.entry.code
        publish = self._publish
        last_seen_ms, latencies_ms = runtime.last_seen_ms, runtime.latencies_ms

        def deliver(tick: ProviderTick, received_ms: int) -> None:
            record = accept(tick, received_ms)
            if record is None:
                reference = runtime.normaliser.reference_quote
                if reference is not None:
                    runtime.normaliser.reference_quote = None
                    self._show_reference(reference)
                return
            instrument = record.symbol
            if active.get(instrument) != code:
                if pending.get(instrument) != code:
                    runtime.standby += 1
                    return
                # What was traded between the old source's last tick and this one is unknown.
                record.volume = None
                self._activate(instrument, code, "priority")
            runtime.passed += 1
            runtime.last_tick_ms = received_ms
            last_seen_ms[instrument] = received_ms
            if tick.event_ms is not None:
                latencies_ms.append(received_ms - tick.event_ms)
            publish(record)

        return deliver

    # ---- gaps -----------------------------------------------------------------------------------

    def _lost(self, runtime: ProviderRuntime, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        for symbol in symbols:
            runtime.flowing.discard(symbol)
            mapping = runtime.instrument_of.get(symbol)
            if mapping is not None and self._active.get(mapping.instrument) == runtime.entry.code:
                self._gaps.lost(mapping.instrument, since_ms, reason)

    def _restored(self, runtime: ProviderRuntime, symbols: Iterable[str], at_ms: int) -> None:
        symbols = list(symbols)
        runtime.normaliser.rebase(symbols)
        runtime.flowing.update(symbols)
        for symbol in symbols:
            mapping = runtime.instrument_of.get(symbol)
            if mapping is not None and self._active.get(mapping.instrument) == runtime.entry.code:
                self._close_gap(mapping, at_ms)

    def _close_gap(self, mapping: InstrumentMapping, at_ms: int) -> None:
        record = self._gaps.restored(mapping, at_ms, self._clock.now_ms())
        if record is not None:
            self._publish(record)

    def _publish_control(
        self, kind: Any, mapping: InstrumentMapping, code: str, fields: dict[str, str | int]
    ) -> None:
        now_ms = self._clock.now_ms()
        self._publish(ControlRecord(kind, mapping.instrument, mapping.exchange, now_ms, now_ms, code, fields))

    # ---- status ---------------------------------------------------------------------------------

    def get_provider_status(self) -> dict[str, dict[str, Any]]:
        """Return the state and figures of every provider, by code.

        The fields are those of `/api/providers/status`: `code, name, state, reason, since_ms,
        connections, subscribed, instruments_live, ticks_per_s, last_tick_ms, latency_ms {p50, p99},
        reconnects, last_error, credential_expires_ms, unresolved` (instruments without any answer); times
        in UTC epoch ms, None where unknown.
        """
        return {code: runtime.status() for code, runtime in sorted(self._runtimes.items())}

    def active_provider(self, instrument: str) -> str | None:
        """Return the code of the provider whose ticks of `instrument` are let through."""
        return self._active.get(instrument)

    def streaming_providers(self) -> dict[str, BaseMarketDataProvider]:
        """Return the providers that are installed, by code."""
        return {code: it.provider for code, it in self._runtimes.items() if it.provider is not None}

    def routes(self) -> dict[str, str]:
        """Return the code of the provider that serves each instrument."""
        return dict(self._active)

    def conditions(self) -> list[tuple[str, str, str, int | None]]:
        """Return code, state, reason and expiry of the credentials (UTC epoch ms) of every provider."""
        return [
            (code, found.state.value, found.reason, found.credential_expires_ms)
            for code, runtime in self._runtimes.items()
            if (found := runtime.provider) is not None
        ]

    def route(self, instrument: str) -> dict[str, Any]:
        """Return who serves an instrument, who else could, how each of them is, and the gap that is open.

        `candidates` are in the order of preference; times are UTC epoch ms, None where unknown.
        """
        gap = self._gaps.open_gap(instrument)
        return {
            "active": self._active.get(instrument),
            "pending": self._pending.get(instrument),
            "wanted": self._interest is None or instrument in self._interest,
            "open_gap": None if gap is None else {"from": gap[0], "reason": gap[1]},
            "candidates": [
                self._runtimes[row.provider_code].candidate(row)
                for row in self._candidates.get(instrument, ())
            ],
        }

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return, per provider, what became of every frame and record."""
        return {code: runtime.ledger() for code, runtime in sorted(self._runtimes.items())}

    # ---- inner ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Once a second: take the marks that rates are made of, and reroute around parked providers."""
        usable: dict[str, bool] = {}
        while True:
            await asyncio.sleep(1.0)
            for runtime in self._runtimes.values():
                runtime.look()
            now_usable = {code: runtime.usable for code, runtime in self._runtimes.items()}
            if now_usable != usable:
                usable = now_usable
                await self.reroute()

    def _open_markets(self, runtime: ProviderRuntime) -> frozenset[str]:
        return self._calendar.open_among(runtime.exchanges, self._clock.now_ms())

    def _context(self, runtime: ProviderRuntime) -> ProviderContext:
        return ProviderContext(
            clock=self._clock,
            deliver=self._deliverer(runtime),
            settings=self._settings,
            spawn=self._supervisor.spawn,
            connection_lost=lambda symbols, since_ms, reason: self._lost(runtime, symbols, since_ms, reason),
            connection_restored=lambda symbols, at_ms: self._restored(runtime, symbols, at_ms),
            open_markets=lambda: self._open_markets(runtime),
        )
