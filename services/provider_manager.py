"""ProviderManager: which provider serves which instrument, and how every provider is doing.

Stands between the providers and the sequencer. It builds the providers of the mapping snapshot,
tells each what to subscribe, normalises what they deliver, and lets through exactly one source per
instrument. It never touches a socket or a store itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from services.connection.websocket_provider import WebSocketProvider
from services.dhan_provider import DhanProvider
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.normaliser import Normaliser
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_plugins import load_plugins
from services.yahoo_finance_connection import YahooFinanceConnection

_log = structlog.get_logger(__name__)

LIVE_WITHIN_MS = 60_000
"""An instrument counts as live while its newest tick is younger than this."""
_RATE_WINDOW_S = 5
_LATENCY_SAMPLES = 1_024

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


class _ProviderRuntime:
    """One provider with its normaliser, its instruments and its figures."""

    def __init__(self, entry: ProviderEntry, clock: Clock) -> None:
        self.entry = entry
        self.provider: BaseMarketDataProvider | None = None
        self.normaliser = Normaliser(entry.code)
        self.clock = clock
        self.passed = 0
        self.standby = 0
        self.last_tick_ms = 0
        self.last_seen_ms: dict[str, int] = {}
        self.latencies_ms: deque[int] = deque(maxlen=_LATENCY_SAMPLES)
        self.rate_marks: deque[int] = deque([0], maxlen=_RATE_WINDOW_S + 1)
        self.open_gaps: dict[str, tuple[int, str]] = {}
        self.symbol_of: dict[str, str] = {}
        self.instrument_of: dict[str, InstrumentMapping] = {}

    @property
    def usable(self) -> bool:
        """Whether instruments may be routed here: it exists and does not wait for an operator."""
        provider = self.provider
        if provider is None or provider.state in (ProviderState.PARKED, ProviderState.CLOSED):
            return False
        return provider.state is not ProviderState.IDLE or all(
            provider.setting(name) for name in provider.credential_names
        )

    def ticks_per_s(self) -> float:
        marks = self.rate_marks
        return round((self.passed - marks[0]) / max(1, len(marks)), 1)

    def latency_ms(self) -> dict[str, int | None]:
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return {"p50": None, "p99": None}
        last = len(ordered) - 1
        return {"p50": ordered[last // 2], "p99": ordered[(last * 99) // 100]}


class ProviderManager:
    """Runs the providers of a mapping snapshot and routes each instrument to one of them.

    `mute_after_s` is after how many seconds without data a connection is given up, None where a closed
    market makes silence ordinary.
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
        mute_after_s: float | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._publish = publish
        self._supervisor = supervisor
        self._show_reference = show_reference
        self._factories = dict(factories) if factories is not None else None
        self._mute_after_s = mute_after_s
        self._runtimes: dict[str, _ProviderRuntime] = {}
        self._candidates: dict[str, tuple[InstrumentMapping, ...]] = {}
        self._active: dict[str, str] = {}
        self._interest: frozenset[str] | None = None
        self._pending: dict[str, str] = {}

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
            runtime = self._runtimes.setdefault(entry.code, _ProviderRuntime(entry, self._clock))
            rows = by_provider[entry.code]
            runtime.entry = entry
            runtime.normaliser.load(rows)
            runtime.symbol_of = {row.instrument: row.provider_symbol for row in rows}
            runtime.instrument_of = {row.provider_symbol: row for row in rows}
            if runtime.provider is None:
                factory = factories.get(entry.code)
                if factory is None:
                    _log.error("provider_unknown", provider=entry.code, remedy="install its package")
                    continue
                runtime.provider = factory(self._context(runtime))
                if isinstance(runtime.provider, WebSocketProvider):
                    runtime.provider.mute_after_s = self._mute_after_s

    async def apply(self, snapshot: MappingSnapshot) -> None:
        """Go over to a changed mapping snapshot while running; what did not change is not touched.

        What is new is subscribed before what is gone is let go.
        """
        before = set(self._runtimes)
        codes = {entry.code for entry in snapshot.providers}
        self.load(snapshot)
        for instrument, code in list(self._active.items()):
            rows = self._candidates.get(instrument, ())
            if all(row.provider_code != code for row in rows):
                del self._active[instrument]
                self._pending.pop(instrument, None)
        for code in codes - before:
            self._keep(code)
        await asyncio.sleep(0)
        await self.reroute()
        for code in before - codes:
            await self._end(code, self._runtimes.pop(code))
        await self._release()

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
                idle = [symbol for symbol in runtime.provider.wanted if symbol not in needed[code]]
                await runtime.provider.unwant(idle)

    def seed(self, newest: Iterable[DataIngestionFormat]) -> None:
        """Recall the newest stored ticks: the same ones are not stored again, and the gap since is known."""
        for record in newest:
            runtime = self._runtimes.get(record.provider_code)
            symbol = runtime.symbol_of.get(record.symbol) if runtime is not None else None
            if runtime is not None and symbol is not None:
                runtime.normaliser.seed(symbol, record)
                runtime.open_gaps[symbol] = (record.received_ms, "daemon_down")

    async def start(self) -> None:
        """Start every provider and tell it what to subscribe."""
        for code in self._runtimes:
            self._keep(code)
        # Let each provider find out at once whether it has credentials, before routes depend on it.
        await asyncio.sleep(0)
        await self.reroute()
        self._supervisor.keep("provider_manager", self._watch)

    async def stop(self) -> None:
        """Close every provider's session; the supervisor ends their tasks."""
        for code, runtime in self._runtimes.items():
            await self._end(code, runtime)

    def _keep(self, code: str) -> None:
        provider = self._runtimes[code].provider
        if provider is not None:
            self._supervisor.keep(f"provider:{code}", provider.run)

    async def _end(self, code: str, runtime: _ProviderRuntime) -> None:
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

        What is new is subscribed before what is no longer wanted is let go.
        """
        if instruments == self._interest:
            return
        self._interest = instruments
        for instrument in [key for key in self._active if key not in instruments]:
            del self._active[instrument]
            self._pending.pop(instrument, None)
        await self.reroute()
        await self._release()

    async def reroute(self) -> None:
        """Give every instrument to its best usable provider; the old one goes when the new one ticks.

        The first in the order stays subscribed, or waiting to be, whoever serves in its place.
        """
        wanted: dict[str, list[str]] = {}
        usable = {code: runtime.usable for code, runtime in self._runtimes.items()}
        for instrument, rows in self._candidates.items():
            if self._interest is not None and instrument not in self._interest:
                continue
            home = rows[0]
            best = next((row for row in rows if usable.get(row.provider_code)), home)
            for row in (home,) if best is home else (home, best):
                wanted.setdefault(row.provider_code, []).append(row.provider_symbol)
            current = self._active.get(instrument)
            if best.provider_code == current:
                self._pending.pop(instrument, None)
            elif current is None or not usable.get(current):
                self._activate(instrument, best.provider_code, "provider_unavailable")
            else:
                self._pending[instrument] = best.provider_code
        for code, symbols in wanted.items():
            provider = self._runtimes[code].provider
            if provider is not None:
                await provider.want(symbols)

    def _activate(self, instrument: str, code: str, reason: str) -> None:
        previous = self._active.get(instrument)
        self._active[instrument] = code
        self._pending.pop(instrument, None)
        if previous is None:
            return
        runtime = self._runtimes[code]
        mapping = runtime.instrument_of[runtime.symbol_of[instrument]]
        self._publish_control(
            "switched", mapping, code, {"from_src": previous, "to_src": code, "reason": reason}
        )
        old = self._runtimes[previous]
        if previous != self._candidates[instrument][0].provider_code and old.provider is not None:
            self._supervisor.spawn(
                old.provider.unwant([old.symbol_of[instrument]]), f"unsubscribe:{previous}:{instrument}"
            )

    def _deliverer(self, runtime: _ProviderRuntime) -> Callable[[ProviderTick, int], None]:
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

    def _lost(self, runtime: _ProviderRuntime, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        for symbol in symbols:
            runtime.open_gaps.setdefault(symbol, (since_ms, reason))

    def _restored(self, runtime: _ProviderRuntime, symbols: Iterable[str], at_ms: int) -> None:
        symbols = list(symbols)
        runtime.normaliser.rebase(symbols)
        for symbol in symbols:
            gap = runtime.open_gaps.pop(symbol, None)
            mapping = runtime.instrument_of.get(symbol)
            if gap is None or mapping is None or self._active.get(mapping.instrument) != runtime.entry.code:
                continue
            since_ms, reason = gap
            self._publish_control(
                "gap", mapping, runtime.entry.code, {"from": since_ms, "to": at_ms, "reason": reason}
            )

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
        reconnects, last_error, credential_expires_ms`; times in UTC epoch ms, None where unknown.
        """
        return {code: self._status(runtime) for code, runtime in sorted(self._runtimes.items())}

    def active_provider(self, instrument: str) -> str | None:
        """Return the code of the provider whose ticks of `instrument` are let through."""
        return self._active.get(instrument)

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return, per provider, what became of every frame and record."""
        return {
            code: {
                "frames": runtime.provider.counters.frames if runtime.provider else 0,
                "decoded": runtime.provider.counters.decoded if runtime.provider else 0,
                "wire_errors": dict(runtime.provider.counters.wire_errors) if runtime.provider else {},
                "ignored": dict(runtime.provider.counters.ignored) if runtime.provider else {},
                "records": runtime.normaliser.counters.records,
                "accepted": runtime.normaliser.counters.accepted,
                "merged": runtime.normaliser.counters.merged,
                "rejected": dict(runtime.normaliser.counters.rejected),
                "noted": dict(runtime.normaliser.counters.noted),
                "standby": runtime.standby,
                "passed": runtime.passed,
            }
            for code, runtime in sorted(self._runtimes.items())
        }

    def _status(self, runtime: _ProviderRuntime) -> dict[str, Any]:
        now_ms = self._clock.now_ms()
        figures = {
            "instruments_live": sum(
                1 for seen_ms in runtime.last_seen_ms.values() if now_ms - seen_ms <= LIVE_WITHIN_MS
            ),
            "ticks_per_s": runtime.ticks_per_s(),
            "last_tick_ms": runtime.last_tick_ms or None,
            "latency_ms": runtime.latency_ms(),
        }
        if runtime.provider is None:
            return {
                "code": runtime.entry.code,
                "name": runtime.entry.name,
                "state": ProviderState.CLOSED.value,
                "reason": "no provider of this code is installed",
                "since_ms": None,
                "connections": 0,
                "subscribed": 0,
                **figures,
                "reconnects": 0,
                "last_error": None,
                "credential_expires_ms": None,
            }
        own = runtime.provider.status()
        return {
            "code": runtime.entry.code,
            "name": runtime.entry.name,
            "state": own.state.value,
            "reason": own.reason,
            "since_ms": own.since_ms,
            "connections": own.connections,
            "subscribed": own.subscribed,
            **figures,
            "reconnects": own.reconnects,
            "last_error": own.last_error or None,
            "credential_expires_ms": own.credential_expires_ms,
        }

    # ---- inner ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Once a second: take the marks that rates are made of, and reroute around parked providers."""
        usable: dict[str, bool] = {}
        while True:
            await asyncio.sleep(1.0)
            for runtime in self._runtimes.values():
                runtime.rate_marks.append(runtime.passed)
            now_usable = {code: runtime.usable for code, runtime in self._runtimes.items()}
            if now_usable != usable:
                usable = now_usable
                await self.reroute()

    def _context(self, runtime: _ProviderRuntime) -> ProviderContext:
        return ProviderContext(
            clock=self._clock,
            deliver=self._deliverer(runtime),
            settings=self._settings,
            spawn=self._supervisor.spawn,
            connection_lost=lambda symbols, since_ms, reason: self._lost(runtime, symbols, since_ms, reason),
            connection_restored=lambda symbols, at_ms: self._restored(runtime, symbols, at_ms),
        )
