"""One provider as its manager keeps it: the provider, its normaliser, its instruments and its figures.

Stands between the manager, which routes, and the status page. Decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog

from services.base_provider import BaseMarketDataProvider, Delivery, ProviderState
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping, ProviderEntry
from services.market_data.normaliser import Normaliser, PreparedInstruments
from services.market_data.records import DataIngestionFormat
from services.silence.pulse import Pulse

_log = structlog.get_logger(__name__)

LIVE_WITHIN_MS = 60_000
"""An instrument counts as live while its newest tick is younger than this."""
UNUSABLE_AFTER_S = 30.0
"""So long without a working connection, and the next provider in an instrument's order takes over."""
UNRESOLVED_SHOWN = 100
"""So many instruments without an answer are named; more are an outage, not mistakes in the mappings."""
_RATE_WINDOW_S = 5
_LATENCY_SAMPLES = 1_024
_AWAY = (
    ProviderState.CONNECTING,
    ProviderState.AUTHENTICATING,
    ProviderState.BACKING_OFF,
    ProviderState.STALE,
)


class PreparedRows(NamedTuple):
    """A provider's rows of a snapshot, to be taken over; `gone` are symbols with what they stood for."""

    entry: ProviderEntry
    instruments: PreparedInstruments
    pulses: dict[str, Pulse]
    symbol_of: dict[str, str]
    instrument_of: dict[str, InstrumentMapping]
    exchanges: frozenset[str]
    gone: list[tuple[str, str]]


class ProviderRuntime:
    """One provider with its normaliser, its instruments and its figures.

    `flowing` are the provider symbols whose data flows, whether it is let through or not; `pulses` what is
    known of the data of each provider symbol, `armed` those that the judge of silence watches.
    """

    __slots__ = ("__dict__", "__weakref__", "passed")

    def __init__(self, entry: ProviderEntry, clock: Clock) -> None:
        self.entry = entry
        self.provider: BaseMarketDataProvider | None = None
        self.normaliser = Normaliser(entry.code, clock.wall_step_ms)
        self.clock = clock
        self.passed = 0
        self.standby = 0
        self.pulses: dict[str, Pulse] = {}
        # A dictionary takes half of the memory of a set.
        self.armed: dict[str, None] = {}
        self.latencies_ms: deque[int] = deque(maxlen=_LATENCY_SAMPLES)
        self.symbol_of: dict[str, str] = {}
        self.instrument_of: dict[str, InstrumentMapping] = {}
        self.exchanges: frozenset[str] = frozenset()
        self.flowing: set[str] = set()
        self._rate_marks: deque[int] = deque([0], maxlen=_RATE_WINDOW_S + 1)
        self._away_since_s: float | None = None
        self._unresolved: dict[str, str] = {}

    def load(self, entry: ProviderEntry, rows: Sequence[InstrumentMapping]) -> None:
        """Take over the provider's rows of a mapping snapshot."""
        self.take_over(self.prepare(entry, rows))

    def prepare(self, entry: ProviderEntry, rows: Sequence[InstrumentMapping]) -> PreparedRows:
        """Return what `take_over` is to be given; changes nothing, so it may run in a thread."""
        before, pulses = self.instrument_of, {}
        symbols = [row.provider_symbol for row in rows]
        for symbol, row in zip(symbols, rows, strict=True):
            known = before.get(symbol)
            kept = known is not None and known.instrument == row.instrument
            pulses[symbol] = self.pulses[symbol] if kept else Pulse()
        instrument_of = dict(zip(symbols, rows, strict=True))
        gone = [
            (symbol, row.instrument)
            for symbol, row in before.items()
            if symbol not in instrument_of or instrument_of[symbol].instrument != row.instrument
        ]
        return PreparedRows(
            entry,
            self.normaliser.prepare(rows, delayed=self.delivery != Delivery.REAL_TIME.value),
            pulses,
            {row.instrument: symbol for symbol, row in instrument_of.items()},
            instrument_of,
            frozenset(row.exchange for row in rows),
            gone,
        )

    def take_over(self, prepared: PreparedRows) -> None:
        """Go over to prepared rows, all at once."""
        self.entry = prepared.entry
        self.normaliser.take_over(prepared.instruments)
        # The hot path holds on to this dictionary.
        self.pulses.clear()
        self.pulses.update(prepared.pulses)
        for symbol, _ in prepared.gone:
            self.armed.pop(symbol, None)
        self.symbol_of, self.instrument_of = prepared.symbol_of, prepared.instrument_of
        self.exchanges = prepared.exchanges

    @property
    def delivery(self) -> str:
        """How fresh its data is promised to be, where a mapping does not say otherwise."""
        return (self.provider.capabilities.delivery if self.provider else Delivery.REAL_TIME).value

    @property
    def last_tick_ms(self) -> int:
        """When its newest tick arrived, let through or not; UTC epoch ms, 0 before the first."""
        return max((pulse.received_ms for pulse in self.pulses.values()), default=0)

    def arm(self, symbol: str) -> Pulse:
        """Take note that the judge of silence watches a symbol; returns the pulse it is to read."""
        self.armed[symbol] = None
        return self.pulses[symbol]

    def disarm(self, symbol: str) -> bool:
        """Take note that the judge watches a symbol no longer; returns whether it did."""
        if symbol not in self.armed:
            return False
        del self.armed[symbol]
        return True

    def is_armed(self, symbol: str) -> bool:
        """Tell whether the judge of silence watches a symbol."""
        return symbol in self.armed

    def let_through(self, record: DataIngestionFormat) -> None:
        """Count a tick that was held as a standby's and is let through after all."""
        self.standby -= 1
        self.passed += 1
        self.latencies_ms.append(record.received_ms - record.timestamp)

    async def let_go(self, symbols: Sequence[str]) -> None:
        """Stop asking for these provider symbols."""
        self.flowing.difference_update(symbols)
        if self.provider is not None:
            await self.provider.unwant(symbols)

    def look(self) -> None:
        """Take the marks that figures are made of; once a second."""
        self._rate_marks.append(self.passed)
        if self.provider is None or self.provider.state not in _AWAY:
            self._away_since_s = None
        elif self._away_since_s is None:
            self._away_since_s = self.clock.monotonic_s()
        self._look_for_unresolved()

    def _look_for_unresolved(self) -> None:
        """Say once of each instrument that the vendor does not answer for it."""
        symbols = self.provider.unresolved if self.provider is not None else {}
        found = {
            mapping.instrument: why
            for symbol, why in symbols.items()
            if (mapping := self.instrument_of.get(symbol)) is not None
        }
        new = sorted(found.keys() - self._unresolved.keys())
        self._unresolved = found
        if new:
            _log.warning(
                "instruments_unresolved",
                provider=self.entry.code,
                count=len(new),
                instruments=new[:20],
                reason=found[new[0]],
                remedy="check their symbols in provider_instrument_mappings",
            )

    @property
    def usable(self) -> bool:
        """Whether instruments may be routed here: it exists, works, and does not wait for an operator."""
        provider = self.provider
        if provider is None or provider.state in (ProviderState.PARKED, ProviderState.CLOSED):
            return False
        away_since_s = self._away_since_s
        if away_since_s is not None and self.clock.monotonic_s() - away_since_s >= UNUSABLE_AFTER_S:
            return False
        return provider.state is not ProviderState.IDLE or all(
            provider.setting(name) for name in provider.credential_names
        )

    def candidate(self, mapping: InstrumentMapping) -> dict[str, Any]:
        """Return how this provider stands to one of its instruments; times in UTC epoch ms."""
        provider, symbol = self.provider, mapping.provider_symbol
        return {
            "provider": self.entry.code,
            "symbol": symbol,
            "search_code": mapping.search_code,
            "primary": mapping.is_primary,
            "priority": mapping.priority,
            "usable": self.usable,
            "state": provider.state.value if provider else ProviderState.CLOSED.value,
            "reason": provider.reason if provider else "no provider of this code is installed",
            "last_error": provider.last_error or None if provider else None,
            "subscription": provider.subscription_state(symbol) if provider else "requested",
            "refused": provider.refused.get(symbol) if provider else None,
            "flowing": symbol in self.flowing,
            "last_tick_ms": pulse.received_ms or None if (pulse := self.pulses.get(symbol)) else None,
            "provider_last_tick_ms": self.last_tick_ms or None,
            "credential_expires_ms": provider.credential_expires_ms if provider else None,
        }

    def ledger(self) -> dict[str, Any]:
        """Return what became of every frame and record."""
        provider, counters = self.provider, self.normaliser.counters
        return {
            "frames": provider.counters.frames if provider else 0,
            "decoded": provider.counters.decoded if provider else 0,
            "wire_errors": dict(provider.counters.wire_errors) if provider else {},
            "waiting": provider.counters.waiting if provider else 0,
            "ignored": dict(provider.counters.ignored) if provider else {},
            "records": counters.records,
            "accepted": counters.accepted,
            "merged": counters.merged,
            "rejected": dict(counters.rejected),
            "noted": dict(counters.noted),
            "standby": self.standby,
            "passed": self.passed,
        }

    def status(self) -> dict[str, Any]:
        """Return the fields of `/api/providers/status`; times in UTC epoch ms, None where unknown."""
        # In one pass each, for there may be very many.
        received_ms = [pulse.received_ms for pulse in self.pulses.values()]
        live_from_ms = self.clock.now_ms() - LIVE_WITHIN_MS
        figures = {
            "instruments_live": sum([at_ms >= live_from_ms for at_ms in received_ms]),
            "ticks_per_s": self._ticks_per_s(),
            "last_tick_ms": max(received_ms, default=0) or None,
            "latency_ms": self._latency_ms(),
        }
        if self.provider is None:
            return {
                "code": self.entry.code,
                "name": self.entry.name,
                "state": ProviderState.CLOSED.value,
                "reason": "no provider of this code is installed",
                "since_ms": None,
                "connections": 0,
                "subscribed": 0,
                **figures,
                "reconnects": 0,
                "last_error": None,
                "credential_expires_ms": None,
                "credential_state": None,
                "unresolved": [],
            }
        own = self.provider.status()
        return {
            "code": self.entry.code,
            "name": self.entry.name,
            "state": own.state.value,
            "reason": own.reason,
            "since_ms": own.since_ms,
            "connections": own.connections,
            "subscribed": own.subscribed,
            **figures,
            "reconnects": own.reconnects,
            "last_error": own.last_error or None,
            "credential_expires_ms": own.credential_expires_ms,
            "credential_state": own.credential_state.value if own.credential_state else None,
            "unresolved": sorted(self._unresolved)[:UNRESOLVED_SHOWN],
        }

    def _ticks_per_s(self) -> float:
        marks = self._rate_marks
        return round((self.passed - marks[0]) / max(1, len(marks)), 1)

    def _latency_ms(self) -> dict[str, int | None]:
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return {"p50": None, "p99": None}
        last = len(ordered) - 1
        return {"p50": ordered[last // 2], "p99": ordered[(last * 99) // 100]}
