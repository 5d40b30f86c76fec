"""The daemon as its gateway shows it: readiness, status, instruments, the past, explanations.

Implements the gateway's `GatewayBackend` by reading the stages on demand. It keeps nothing and changes
nothing but what it is asked to: an order to the backfill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from services.catalogue.refresher import RefreshState
from services.compiled import BUILD
from services.daemon.stages import Stages
from services.errors import TemporaryError
from services.gateway.backend import InstrumentView, Readiness
from services.market_data.bars import Interval
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest
from services.operations.troubles import nobody_delivers
from services.pipeline.sink import Sink


class DaemonView:
    """What the gateway reads of the daemon."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    @property
    def demo(self) -> bool:
        """Whether all data is made by the simulators."""
        return self.stages.demo

    @property
    def epoch(self) -> str:
        """The id of the present series of positions."""
        return self.stages.state.epoch

    # ---- providers and instruments --------------------------------------------------------------

    def provider_status(self) -> list[dict[str, Any]]:
        """Return the status of every provider, in the order of their codes."""
        return list(self.stages.routing.providers.get_provider_status().values())

    def instruments(self) -> list[InstrumentView]:
        """Return every instrument that is mapped and active."""
        active = self.stages.routing.providers.active_provider
        return [
            InstrumentView(
                key=mapping.instrument,
                exchange=mapping.exchange,
                symbol=mapping.symbol,
                name=mapping.name,
                asset_class=mapping.asset_class.value,
                currency=mapping.currency,
                tick_size=mapping.tick_size,
                provider=active(mapping.instrument),
            )
            for mapping in self.stages.known.mappings.values()
        ]

    def is_known(self, instrument: str) -> bool:
        """Tell whether an instrument key is mapped and active."""
        return instrument in self.stages.known

    async def why(self, instrument: str) -> dict[str, Any] | None:
        """Explain what an instrument's ticks do and what stands in their way; None when it is unknown."""
        diagnosis = self.stages.diagnosis
        found = None if diagnosis is None else await diagnosis.explain(instrument)
        return None if found is None else {**found, "depth": self.stages.depth.desk.explain(instrument)}

    def similar(self, instrument: str) -> list[str]:
        """Return known instrument keys that look like an unknown one."""
        diagnosis = self.stages.diagnosis
        return [] if diagnosis is None else diagnosis.suggest(instrument)

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:  # noqa: ARG002
        """Hear that clients began or ceased to watch something."""
        if self.stages.subscriptions is not None:
            self.stages.subscriptions.changed()

    # ---- readiness and status -------------------------------------------------------------------

    def readiness(self) -> Readiness:
        """Say whether data can flow, and if not what stands in the way."""
        it = self.stages
        state, leadership = it.state, it.storage.leadership
        if state.phase == "standing_by":
            reasons = [state.obstacle or leadership.reason or "this daemon takes up its work"]
        else:
            reasons = list(it.probe.problems())
            if not state.running:
                reasons.insert(0, f"the daemon is {state.phase}")
            elif leadership.reason:
                reasons.insert(0, leadership.reason)
        if it.mappings.current is not None and not it.known.mappings:
            reasons.append(
                "no instruments are mapped: run python data_migration/populate_instrument_mappings.py"
            )
        mappings = it.mappings.status
        degraded = [f"mappings are not refreshed: {mappings.reason}"] if mappings.reason else []
        degraded += it.ledger.problems()
        if state.running:
            open_markets = it.calendar.open_among(it.known.exchanges, it.clock.now_ms())
            silence = nobody_delivers(it.routing.conditions(), open_markets)
            degraded += [silence] if silence else []
        return Readiness(ready=not reasons, reasons=reasons, degraded=degraded)

    def pipeline_status(self) -> dict[str, Any]:
        """Return the state of sinks, tasks and mappings, and the account of every record."""
        it = self.stages
        return {
            "phase": it.state.phase,
            "started_ms": it.state.started_ms,
            "published": it.flow.bus.published,
            "loop_lag_ms": it.loop_lag.worst_ms,
            "lease": it.storage.leadership.status(),
            "process": it.vitals.figures(),
            "compiled": BUILD.status(),
            "mappings": self._mappings_status(),
            "sinks": [_sink_status(sink) for sink in (*it.sinks, *it.depth.sinks)],
            "hops": {
                "event_loop": it.loop_lag.times.figures(),
                "received_to_accepted": it.flow.accepted_within.figures(),
                **{f"accepted_to_{sink.name}": sink.written_within.figures() for sink in it.storage.writers},
            },
            "subscriptions": it.subscriptions.status() if it.subscriptions else {"mode": "static"},
            "notices": it.notifier.status() if it.notifier else None,
            "spool": [msgspec.to_builtins(channel) for channel in it.storage.spool.status()],
            "bars": it.bars.status(),
            "streams": it.streams.status(),
            "routing": it.routing.summary(),
            "silence": it.routing.judge.alarms(),
            "quality": it.routing.quality_status(),
            "options": it.options.manager.status() | {"stream": it.options.chains.status()},
            "news": it.news.desk.status(),
            "depth": it.depth.status(),
            "ledger": it.routing.providers.ledger(),
            "accounts": it.ledger.status(),
            "backfill": it.past.status(),
            "tasks": [msgspec.to_builtins(census) for census in it.supervisor.census()],
        }

    def _mappings_status(self) -> dict[str, Any]:
        snapshot, mappings = self.stages.mappings.current, self.stages.mappings.status
        return {
            "version": snapshot.version if snapshot else 0,
            "loaded_ms": snapshot.loaded_ms if snapshot else None,
            "from_cache": bool(snapshot and snapshot.from_cache),
            "instruments": len(self.stages.known),
            "state": mappings.state.value,
            "reason": mappings.reason,
            "refused": mappings.reason if mappings.state is RefreshState.REFUSED else "",
            "problems": [msgspec.to_builtins(problem) for problem in mappings.problems],
            "next_date_ms": mappings.next_date_ms,
            "upcoming": len(snapshot.upcoming) if snapshot else 0,
        }

    # ---- the past -------------------------------------------------------------------------------

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """Return the candles of a known instrument, and whether any are missing."""
        return await self.stages.past.read(request)

    async def coverage(self, instrument: str) -> Sequence[CoverageSpan]:
        """Return what is had, missing and not to be had of an instrument's past."""
        return await self.stages.past.coverage(instrument)

    def backfill_status(self) -> dict[str, Any]:
        """Return how the backfill is."""
        return self.stages.past.status()

    async def order_backfill(
        self, instruments: Sequence[str], interval: Interval, from_ms: int, to_ms: int
    ) -> dict[str, Any]:
        """Begin to fetch what is not stored of a span. Raises `TemporaryError` while standing by."""
        if not self.stages.state.running:
            raise TemporaryError("this daemon stands by; ask the one that leads")
        return await self.stages.past.ask(instruments, interval, from_ms, to_ms)


def _sink_status(sink: Sink) -> dict[str, Any]:
    return {
        "name": sink.name,
        "state": sink.state.value,
        "reason": sink.reason,
        "queued": sink.queued,
        "imbalance": sink.counters.imbalance(sink.queued),
        **msgspec.to_builtins(sink.counters),
    }
