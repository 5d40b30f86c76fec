"""SilenceJudge: tells a broken feed from a quiet market.

Stands beside the router: reads the pulses that the providers' runtimes write, says what it finds, and never
touches a route, a connection or a record. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.market_data.calendar import MarketCalendar
from services.silence.findings import FAULTS, Change, Finding, Judgement
from services.silence.pulse import Pulse

__all__ = ["FAULTS", "Change", "Finding", "Judgement", "Pulse", "SilenceJudge"]


class SilenceJudge:
    """Judges every armed instrument of every provider, and the feed of each provider's exchange.

    Call `arm` whenever an instrument is subscribed (again: after a reconnect evidence starts afresh, what was
    learned stays), `look` once a second.
    """

    def __init__(self, calendar: MarketCalendar) -> None:
        self._calendar = calendar

    def arm(self, provider: str, instrument: str, exchange: str, pulse: Pulse, now_ms: int) -> None:
        """Expect data of an instrument from now on; again: forget evidence, keep what was learned."""

    def disarm(self, provider: str, instrument: str) -> None:
        """Expect nothing more; what was learned is remembered."""

    def look(self, now_ms: int, now_s: float) -> list[Change]:
        """Look at the pulses that are due (wall clock UTC epoch ms, monotonic s); call once a second."""
        return []

    def judgement(self, provider: str, instrument: str) -> Judgement:
        """Return what is found of one instrument; of a feed's fault where its own pulse says nothing."""
        raise NotImplementedError

    def provider_judgement(self, provider: str, exchange: str) -> Judgement:
        """Return what is found of the whole feed of an exchange."""
        raise NotImplementedError

    def alarms(self) -> dict[str, str]:
        """Return what is wrong with a market as a whole, by a stable key, in words for an operator."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what was learned, fit for JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier run learned; what cannot be understood is ignored."""
