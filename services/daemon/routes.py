"""The routes as the gateway shows and switches them: `/api/routes` in front of the router and its journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from services.daemon.instruments import KnownInstruments
from services.daemon.routing import Routing
from services.daemon.state import DaemonState
from services.errors import ConfigurationError, MarketdError
from services.market_data.clock import Clock


class RoutesView:
    """Implements the gateway's `RoutesBackend`. `suggest(key)` returns known keys that look like one."""

    def __init__(
        self,
        clock: Clock,
        state: DaemonState,
        routing: Routing,
        known: KnownInstruments,
        suggest: Callable[[str], Sequence[str]],
    ) -> None:
        self._clock = clock
        self._state = state
        self._routing = routing
        self._providers = routing.providers
        self._known = known
        self._suggest = suggest

    def routes(self) -> dict[str, Any]:
        """Return every provider, what it can do and serves, and what is not as it should be."""
        return {
            "providers": [msgspec.to_builtins(info) for info in self._providers.registry.list()],
            "routing": self._routing.summary(),
        }

    async def route(self, instrument: str, events: int) -> dict[str, Any] | None:
        """Return the route of an instrument and its newest events; None when it is not mapped.

        Events that are not written yet are among them; while PostgreSQL is away only what this process
        remembers.
        """
        if instrument not in self._known:
            return None
        found = self._providers.route(instrument)
        recent = found.pop("decisions")
        stored, note = [], ""
        try:
            stored = await self._routing.events.newest(instrument, events)
        except MarketdError as error:
            note = f"only what this process remembers: {error}"
        known = {(event["at_ms"], event["action"], event["to"]) for event in stored}
        stored += [event for event in recent if (event["at_ms"], event["action"], event["to"]) not in known]
        stored.sort(key=lambda event: int(event["at_ms"]))
        return {
            "instrument": instrument,
            "time_ms": self._clock.now_ms(),
            **found,
            "backup": self._providers.registry.backup(instrument),
            "events": stored[-events:],
            "note": note,
        }

    def switch_route(
        self, instrument: str, to: str | None, *, for_s: float, by: str, why: str
    ) -> dict[str, Any]:
        """Prefer a source for a while, or (None) the order of the mappings again.

        Raises `ConfigurationError` for what cannot be, and while this daemon routes nothing.
        """
        if not self._state.running:
            raise ConfigurationError("this daemon stands by: ask the one that leads")
        registry = self._providers.registry
        if to is None:
            registry.release(instrument, by=by)
        else:
            registry.switch(instrument, to.strip().upper(), for_s=for_s, by=by, why=why)
        found = self._providers.route(instrument)
        return {"instrument": instrument, "events": found.pop("decisions"), **found}

    def similar(self, instrument: str) -> Sequence[str]:
        """Return known instrument keys that look like an unknown one."""
        return self._suggest(instrument)
