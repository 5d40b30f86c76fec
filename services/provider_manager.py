"""ProviderManager: which provider serves which instrument, and how every provider is doing.

Stands between the providers and the sequencer. It builds the providers of the mapping snapshot,
tells each what to subscribe, normalises what they deliver, and lets through what the router says: exactly
one source per instrument. It never touches a socket or a store itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import structlog

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.compiled import load
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.instruments import (
    Candidates,
    InstrumentMapping,
    MappingSnapshot,
    ProviderEntry,
    candidates_of,
)
from services.market_data.records import DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_registry import ProviderFactory, ProviderRegistry
from services.provider_runtime import PreparedRows, ProviderRuntime
from services.routing.book import Forced, changed_between
from services.routing.router import Router
from services.routing.rules import RoutingRules
from services.silence.judge import SilenceJudge

_log = structlog.get_logger(__name__)
_lane = load("lane")

_CLOSES_WITHIN_S = 4.0
"""A provider takes leave of its peer, and then ends what listens: each in its time."""

ORDERS_WITHIN_S = 1.0
"""So long a subscription may take before the routes are looked at again without it."""


class FirstConnectPacing(Protocol):
    """Remembers over restarts when each provider was last connected to first."""

    def wait_s(self, code: str) -> float:
        """How many seconds the first connection of this process is to wait."""
        ...

    async def note(self, code: str) -> None:
        """The first connection is made now."""
        ...


class _Prepared(NamedTuple):
    """A mapping snapshot with all that was worked out before it is taken over."""

    snapshot: MappingSnapshot
    by_provider: dict[str, list[InstrumentMapping]]
    candidates: Candidates
    rows: dict[str, PreparedRows]
    changed: list[str]


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
        judge: SilenceJudge | None = None,
        rules: RoutingRules | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._publish = publish
        self._supervisor = supervisor
        self._show_reference = show_reference
        self._changing = asyncio.Lock()
        self.registry = ProviderRegistry(dict(factories) if factories is not None else None)
        self.registry.bind(self)
        self._calendar = calendar or MarketCalendar()
        self._pacing = pacing
        self._judge = judge
        self._runtimes: dict[str, ProviderRuntime] = {}
        self._snapshot: MappingSnapshot | None = None
        self._running = False
        self.crowded: Callable[[], bool] = bool
        """Whether so much waits to be stored that providers should read no further just now."""
        self._usable: dict[str, bool] = {}
        self._couriers: dict[str, asyncio.Task[None]] = {}
        self._orders: dict[str, dict[str, bool]] = {}
        self.router = Router(
            self._runtimes,
            clock=clock,
            publish=publish,
            calendar=self._calendar,
            judge=judge,
            rules=rules,
        )

    # ---- life -----------------------------------------------------------------------------------

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over a mapping snapshot: build its providers and decide the first routes. No I/O."""
        self._take_over(self._prepare(snapshot))

    def _prepare(self, snapshot: MappingSnapshot) -> _Prepared:
        """Work out what a snapshot changes; changes nothing itself, so it may run in a thread."""
        by_provider: dict[str, list[InstrumentMapping]] = {entry.code: [] for entry in snapshot.providers}
        for mapping in snapshot.mappings:
            by_provider.setdefault(mapping.provider_code, []).append(mapping)
        candidates = candidates_of(snapshot.mappings)
        rows = {
            entry.code: runtime.prepare(entry, by_provider[entry.code])
            for entry in snapshot.providers
            if (runtime := self._runtimes.get(entry.code)) is not None and runtime.provider is not None
        }
        changed = changed_between(self.router.book.candidates, candidates)
        return _Prepared(snapshot, by_provider, candidates, rows, changed)

    def _take_over(self, prepared: _Prepared) -> None:
        snapshot = self._snapshot = prepared.snapshot
        factories = self.registry.factories()
        self.router.book.load(prepared.candidates)
        for entry in snapshot.providers:
            runtime = self._runtimes.setdefault(entry.code, ProviderRuntime(entry, self._clock))
            if runtime.provider is None:
                factory = factories.get(entry.code)
                if factory is None:
                    _log.error("provider_unknown", provider=entry.code, remedy="install its package")
                else:
                    runtime.provider = factory(self._context(runtime))
            rows = prepared.rows.get(entry.code)
            if rows is None:
                # New here, or a provider of another kind than when the snapshot was prepared.
                rows = runtime.prepare(entry, prepared.by_provider[entry.code])
            self.router.flows.disarm_gone(runtime, rows.gone)
            runtime.take_over(rows)
            self.router.flows.arm_renamed(runtime, rows.gone)

    async def apply(self, snapshot: MappingSnapshot) -> None:
        """Go over to a changed mapping snapshot while running; what did not change is not touched.

        What is new is subscribed before what is gone is let go.
        """
        async with self._changing:
            # In a thread, because a long table takes longer than the event loop may stand still.
            prepared = await asyncio.to_thread(self._prepare, snapshot)
            await self._apply(prepared)

    async def _apply(self, prepared: _Prepared) -> None:
        before = set(self._runtimes)
        codes = {entry.code for entry in prepared.snapshot.providers}
        flowed = self.router.flows.flowed(prepared.changed)
        self._take_over(prepared)
        self.router.flows.leave_gone(prepared.changed, flowed, codes)
        for code in codes - before:
            self._keep(code)
        await asyncio.sleep(0)
        await self.reroute()
        for code in before - codes:
            await self._end(code, self._runtimes.pop(code))
        await self._release()

    async def _release(self) -> None:
        """Let go of every symbol that no instrument is routed by, nor waits for."""
        needed = await self.router.wishes.needed()
        for code, runtime in self._runtimes.items():
            if runtime.provider is not None:
                for symbol in runtime.provider.wanted:
                    if symbol not in needed.get(code, ()) and not self._needs(runtime, symbol):
                        self._orders.setdefault(code, {})[symbol] = False
        await self._send_orders()

    def _needs(self, runtime: ProviderRuntime, symbol: str) -> bool:
        """Tell whether a symbol has come to be needed while all were being looked through."""
        row = runtime.instrument_of.get(symbol)
        return row is not None and self.router.wishes.needs(row)

    def seed(self, newest: Iterable[DataIngestionFormat]) -> None:
        """Recall the newest stored ticks: the same ones are not stored again, and the gap since is known."""
        for record in newest:
            runtime = self._runtimes.get(record.provider_code)
            symbol = runtime.symbol_of.get(record.symbol) if runtime is not None else None
            if runtime is not None and symbol is not None:
                runtime.normaliser.seed(symbol, record)
            self.router.book.gaps.lost(record.symbol, record.received_ms, "daemon_down")

    async def start(self) -> None:
        """Start every provider and tell it what to subscribe."""
        self._running = True
        for code in self._runtimes:
            self._keep(code)
        # Let each provider find out at once whether it has credentials, before routes depend on it.
        await asyncio.sleep(0)
        self._usable = self._usable_now()
        await self.reroute()
        self._supervisor.keep("provider_manager", self._watch)

    async def stop(self) -> None:
        """Close every provider's session. They may be started again."""
        self._running = False
        await self._supervisor.end("provider_manager")
        for code, runtime in self._runtimes.items():
            await self._end(code, runtime)

    def forget_gaps(self) -> None:
        """Forget what is not delivered now: another daemon delivers, and tells of its own gaps."""
        self.router.forget()
        for runtime in self._runtimes.values():
            runtime.flowing.clear()

    def _keep(self, code: str) -> None:
        provider = self._runtimes[code].provider
        if provider is not None:
            self._supervisor.keep(
                f"provider:{code}", lambda: self._run(code, provider), core=False, cleanup_s=_CLOSES_WITHIN_S
            )

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

    async def providers_changed(self) -> None:
        """Build and start what is registered now, and end what is not any more."""
        async with self._changing:
            await self._change_providers()

    async def _change_providers(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        factories = self.registry.factories()
        for code, runtime in self._runtimes.items():
            if runtime.provider is not None and code not in factories:
                await self._end(code, runtime)
                self.router.flows.gone(runtime)
                runtime.provider = None
        before = {code for code, runtime in self._runtimes.items() if runtime.provider is not None}
        self.load(snapshot)
        if self._running:
            for code, runtime in self._runtimes.items():
                if runtime.provider is not None and code not in before:
                    self._keep(code)
            await asyncio.sleep(0)
        if self.router.book.active:
            await self.reroute()

    # ---- what the registry asks -----------------------------------------------------------------

    def entries(self) -> tuple[ProviderEntry, ...]:
        """Return the active providers of the mapping snapshot."""
        return self._snapshot.providers if self._snapshot is not None else ()

    def rows(self, instrument: str) -> tuple[InstrumentMapping, ...]:
        """Return the mappings of an instrument in the order of preference; none where it is unknown."""
        return self.router.book.candidates.get(instrument, ())

    def places_of(self, code: str) -> dict[str, int]:
        """Return the exchanges a provider is mapped for, and its best place in the order there."""
        places: dict[str, int] = {}
        for rows in self.router.book.candidates.values():
            for place, row in enumerate(rows, start=1):
                if row.provider_code == code:
                    places[row.exchange] = min(place, places.get(row.exchange, place))
        return places

    def provider(self, code: str) -> BaseMarketDataProvider | None:
        """Return the running provider of a code, None where there is none."""
        runtime = self._runtimes.get(code)
        return runtime.provider if runtime is not None else None

    def routed(self) -> dict[str, int]:
        """Return how many instruments each provider serves."""
        return dict(Counter(self.router.book.active.values()))

    def force(self, instrument: str, to: str, for_s: float, by: str, why: str) -> None:
        """Prefer a source of an instrument for a while."""
        until_ms = self._clock.now_ms() + round(for_s * 1000)
        self.router.force(instrument, Forced(to, until_ms, self._clock.monotonic_s() + for_s, by, why))

    def release(self, instrument: str, by: str) -> bool:
        """Go back to the order of the mappings; returns whether there was a choice to end."""
        return self.router.release(instrument, by)

    # ---- routing --------------------------------------------------------------------------------

    async def set_interest(self, instruments: frozenset[str]) -> None:
        """Subscribe only `instruments` from now on; without this call all mapped ones are.

        What is new is subscribed before what is no longer wanted is let go, if there is room for both.
        """
        book = self.router.book
        before, book.interest = book.interest, instruments
        if instruments == before:
            return
        gone = (book.candidates.keys() if before is None else before) - instruments
        self.router.flows.uninterested(gone)
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
        for instrument in instruments:
            for row in self.router.book.candidates.get(instrument, ()):
                self._orders.setdefault(row.provider_code, {})[row.provider_symbol] = False
        await self._send_orders()

    def room(self) -> dict[str, int]:
        """Return how many symbols each provider that has a limit can hold, by code."""
        limits = {
            code: runtime.provider.capacity for code, runtime in self._runtimes.items() if runtime.provider
        }
        return {code: limit for code, limit in limits.items() if limit is not None}

    def places(self) -> Callable[[str], list[str]]:
        """Return a function: at which providers (codes) an instrument would take a subscription just now."""
        self.router.conditions.refresh()
        return self.router.conditions.places

    def subscription_state(self, instrument: str) -> str:
        """Return how far the subscription is that serves `instrument`: requested, acked or proven."""
        code = self.router.book.active.get(instrument)
        runtime = self._runtimes.get(code) if code is not None else None
        if runtime is None or runtime.provider is None or instrument not in runtime.symbol_of:
            return "requested"
        return runtime.provider.subscription_state(runtime.symbol_of[instrument])

    async def reroute(self, only: Iterable[str] | None = None) -> None:
        """Look at the route of every instrument (or `only` these), and subscribe what they need.

        The first in the order stays subscribed, or waiting to be, whoever serves in its place.
        """
        router = self.router
        router.conditions.refresh()
        instruments = list(router.book.candidates if only is None else only)
        for _ in router.look_at(instruments):
            await asyncio.sleep(0)
        for count, instrument in enumerate(instruments, start=1):
            router.wishes.subscribe(instrument)
            if count % 2_000 == 0:
                await asyncio.sleep(0)
        router.say_switched()
        await self._send_orders()

    async def _send_orders(self) -> None:
        """Hand what is to be subscribed or let go to the providers, in batches.

        A provider that takes its time does so by itself; nobody waits for it longer than a moment.
        """
        for code, wishes in self.router.wishes.take().items():
            self._orders.setdefault(code, {}).update(wishes)
        for code in self._orders:
            courier = self._couriers.get(code)
            if courier is None or courier.done():
                self._couriers[code] = self._supervisor.spawn(self._deliver_orders(code), f"orders:{code}")
        busy = [courier for courier in self._couriers.values() if not courier.done()]
        if busy:
            await asyncio.wait(busy, timeout=ORDERS_WITHIN_S)

    async def _deliver_orders(self, code: str) -> None:
        while orders := self._orders.pop(code, None):
            runtime = self._runtimes.get(code)
            if runtime is None or runtime.provider is None:
                return
            new = [symbol for symbol, want in orders.items() if want]
            gone = [symbol for symbol, want in orders.items() if not want]
            if new:
                await runtime.provider.want(new)
            if gone:
                self.router.flows.let_go(runtime, gone)
                await runtime.let_go(gone)

    def _deliverer(self, runtime: ProviderRuntime) -> Callable[[ProviderTick, int], None]:
        """Return the function that takes every tick of one provider; the hot path begins here."""
        accept = runtime.normaliser.accept
        passing, beside = self.router.passing, self.router.beside
        code = runtime.entry.code
        publish = self._publish
        pulses, latencies_ms = runtime.pulses, runtime.latencies_ms

        def deliver(tick: ProviderTick, received_ms: int) -> None:
            record = accept(tick, received_ms)
            if record is None:
                reference = runtime.normaliser.reference_quote
                if reference is not None:
                    runtime.normaliser.reference_quote = None
                    self._show_reference(reference)
                return
            event_ms = tick.event_ms
            pulse = pulses[tick.provider_symbol]
            pulse.ticks += 1
            pulse.received_ms = received_ms
            pulse.price = record.price
            if event_ms is not None and event_ms > pulse.event_ms:
                pulse.event_ms = event_ms
            if passing.get(record.symbol) != code and not beside(runtime, record):
                return
            runtime.passed += 1
            if event_ms is not None:
                latencies_ms.append(received_ms - event_ms)
            publish(record)

        if _lane is not None:
            return cast(
                "Callable[[ProviderTick, int], None]",
                _lane.TickLane(deliver, runtime, passing, beside, publish),
            )
        return deliver

    def _lost(self, runtime: ProviderRuntime, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        self.router.flows.lost(runtime, symbols, since_ms, reason)

    def _restored(self, runtime: ProviderRuntime, symbols: Iterable[str], at_ms: int) -> None:
        self.router.flows.restored(runtime, symbols, at_ms)

    # ---- status ---------------------------------------------------------------------------------

    def get_provider_status(self) -> dict[str, dict[str, Any]]:
        """Return the state and figures of every provider, by code.

        The fields are those of `/api/providers/status`: `code, name, state, reason, since_ms,
        connections, subscribed, instruments_live, ticks_per_s, last_tick_ms, latency_ms {p50, p99},
        reconnects, last_error, credential_expires_ms, unresolved` (instruments without any answer); times
        in UTC epoch ms, None where unknown.
        """
        return {code: runtime.status() for code, runtime in sorted(self._runtimes.items())}

    @property
    def runtimes(self) -> Mapping[str, ProviderRuntime]:
        """Every provider with its normaliser, instruments and figures, by code; to be read only."""
        return self._runtimes

    def active_provider(self, instrument: str) -> str | None:
        """Return the code of the provider whose ticks of `instrument` are let through."""
        return self.router.book.active.get(instrument)

    def delivers(self, instrument: str) -> bool:
        """Tell whether data of an instrument comes just now, as far as is known: a quiet one's, too."""
        book = self.router.book
        code = book.active.get(instrument)
        return code is not None and instrument not in book.gaps and book.flows(instrument, code)

    def running(self) -> list[BaseMarketDataProvider]:
        """Return every provider there is."""
        return [runtime.provider for runtime in self._runtimes.values() if runtime.provider is not None]

    def exchanges_of(self, code: str) -> frozenset[str]:
        """Return the exchanges whose instruments are mapped to a provider; none for an unknown one."""
        runtime = self._runtimes.get(code)
        return frozenset() if runtime is None else runtime.exchanges

    def streaming_providers(self) -> dict[str, BaseMarketDataProvider]:
        """Return the providers that are installed, by code."""
        return {code: it.provider for code, it in self._runtimes.items() if it.provider is not None}

    def serving(self) -> dict[str, str]:
        """Return the code of the provider that serves each instrument."""
        return dict(self.router.book.active)

    def conditions(self) -> list[tuple[str, str, str, int | None]]:
        """Return code, state, reason and expiry of the credentials (UTC epoch ms) of every provider."""
        return [
            (code, found.state.value, found.reason, found.credential_expires_ms)
            for code, runtime in self._runtimes.items()
            if (found := runtime.provider) is not None
        ]

    def route(self, instrument: str) -> dict[str, Any]:
        """Return who serves an instrument, who else could, how each of them is, and the gap that is open.

        `candidates` are in the order of preference, `decisions` the newest of routing, oldest first; times
        are UTC epoch ms, None where unknown.
        """
        router = self.router
        return {
            **router.describe(instrument),
            "candidates": [
                {
                    **self._runtimes[row.provider_code].candidate(row),
                    **router.standing(row),
                }
                for row in router.book.candidates.get(instrument, ())
            ],
            "decisions": [event.as_dict() for event in router.journal.newest(instrument)],
        }

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return, per provider, what became of every frame and record."""
        return {code: runtime.ledger() for code, runtime in sorted(self._runtimes.items())}

    # ---- inner ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Once a second: take the marks that rates are made of, and look at what may be the matter."""
        while True:
            await asyncio.sleep(1.0)
            await self.look()
            usable = self._usable_now()
            if usable != self._usable:
                self._usable = usable
                await self.reroute()

    def _usable_now(self) -> dict[str, bool]:
        return {code: runtime.usable for code, runtime in self._runtimes.items()}

    async def look(self) -> None:
        """Take the marks of every provider, and look at every route that something may be the matter with."""
        for runtime in self._runtimes.values():
            runtime.look()
        for _ in self.router.look():
            await asyncio.sleep(0)
        await self._send_orders()

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
            crowded=lambda: self.crowded(),  # noqa: PLW0108 - it is set later
        )
