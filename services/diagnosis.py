"""`why INSTRUMENT`: one answer to "where is my data", with the next thing to do.

Stands beside the daemon and reads; decides nothing and changes nothing. It follows a tick's way from the
provider to the store and names the first place where it stops.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.base_provider import ProviderState
from services.errors import StorageError
from services.market_data.calendar import HOURS, MarketCalendar
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping
from services.market_data.records import ControlRecord, DataIngestionFormat
from services.pipeline.sink import Sink, SinkState
from services.storage.lookup import StoredNewest

_EVENTS_KEPT = 20_000
_EVENTS_SHOWN = 20
_DAY_MS = 86_400_000
_QUIET_MS = 60_000
_EVENTS = ("gap", "switched", "stale", "resumed", "backfilled")
_CREDENTIAL_WARNING_MS = 2 * 3_600_000


def _undisputed(_: str) -> str | None:
    return None


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Where the answers come from; each is asked when a question comes, never before.

    `route` answers `ProviderManager.route`, `claim` why an instrument is wanted in dynamic mode (None: it
    is not; in static mode `static`), `newest` the broadcast's newest tick, `stored` what Redis holds,
    `dispute` how the prices of its providers have differed for too long (None: they do not).
    """

    instruments: Callable[[], Mapping[str, InstrumentMapping]]
    route: Callable[[str], dict[str, Any]]
    claim: Callable[[str], str | None]
    newest: Callable[[str], DataIngestionFormat | None]
    stored: Callable[[str], Awaitable[StoredNewest]]
    not_ready: Callable[[], Sequence[str]]
    sinks: Sequence[Sink]
    dispute: Callable[[str], str | None] = _undisputed


class Diagnosis:
    """Explains single instruments. `note` takes every control record, so that today's gaps are known."""

    def __init__(self, clock: Clock, calendar: MarketCalendar, sources: Sources) -> None:
        self._clock = clock
        self._calendar = calendar
        self._sources = sources
        # One for all, so that 25 000 instruments that lose a connection often cost no more than a few MiB.
        self._events: deque[ControlRecord] = deque(maxlen=_EVENTS_KEPT)

    def note(self, record: ControlRecord) -> None:
        """Remember what happened to an instrument; the newest events of all of them."""
        if record.type in _EVENTS:
            self._events.append(record)

    async def explain(self, instrument: str) -> dict[str, Any] | None:
        """Return everything about one instrument, the verdict first; None when it is not mapped."""
        mapping = self._sources.instruments().get(instrument)
        if mapping is None:
            return None
        now_ms = self._clock.now_ms()
        route = self._sources.route(instrument)
        claim = self._sources.claim(instrument)
        session = self._session(mapping.exchange, now_ms)
        hops, storage = await self._hops(instrument, route, now_ms)
        dispute = self._sources.dispute(instrument)
        verdict, action = self._judge(instrument, route, claim, session, hops, storage, now_ms)
        return {
            "instrument": instrument,
            "name": mapping.name,
            "time_ms": now_ms,
            "verdict": verdict,
            "next_action": action,
            "dispute": dispute,
            "session": session,
            "interest": claim,
            "route": {
                name: value
                for name, value in route.items()
                if name not in ("candidates", "decisions", "wanted")
            },
            "candidates": route["candidates"],
            "decisions": route.get("decisions", []),
            "hops": hops,
            "storage": storage,
            "events": [
                {"type": record.type, "at_ms": record.timestamp, **record.fields}
                for record in self._events
                if record.symbol == instrument and record.timestamp >= now_ms - _DAY_MS
            ][-_EVENTS_SHOWN:],
        }

    def suggest(self, instrument: str) -> list[str]:
        """Return known keys that look like an unknown one."""
        known = self._sources.instruments()
        symbol = instrument.rpartition(":")[2]
        same = [key for key in known if key.rpartition(":")[2] == symbol]
        return (same + difflib.get_close_matches(instrument, known, n=3))[:3]

    # ---- inner ----------------------------------------------------------------------------------

    def _session(self, exchange: str, now_ms: int) -> dict[str, Any]:
        session = self._calendar.session_at(exchange, now_ms)
        following = self._calendar.next_session(exchange, now_ms)
        return {
            "known": exchange in HOURS,
            "open": self._calendar.in_session(exchange, now_ms),
            "phase": session.phase.value if session else None,
            "closes_ms": session.close_ms if session else None,
            "next_open_ms": following.open_ms if following else None,
            "today": self._calendar.exception(exchange, self._calendar.trading_day(exchange, now_ms)),
        }

    async def _hops(
        self, instrument: str, route: dict[str, Any], now_ms: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        active = next((row for row in route["candidates"] if row["provider"] == route["active"]), None)
        newest = self._sources.newest(instrument)
        storage = [
            {"sink": sink.name, "state": sink.state.value, "reason": sink.reason, "queued": sink.queued}
            for sink in self._sources.sinks
        ]
        stored, trouble = StoredNewest(), ""
        try:
            stored = await self._sources.stored(instrument)
        except StorageError as error:
            trouble = str(error)
        received_ms = active["last_tick_ms"] if active else None
        rows: list[tuple[str, int | None, str]] = [
            ("received from the provider", received_ms, active["provider"] if active else ""),
            ("given to clients", newest.received_ms or newest.timestamp if newest else None, ""),
            ("newest value in Redis", stored.received_ms, trouble),
            ("time series in Redis", stored.sample_ms, trouble),
        ]
        return [
            {"hop": hop, "at_ms": at_ms, "age_ms": None if at_ms is None else now_ms - at_ms, "note": note}
            for hop, at_ms, note in rows
        ], storage

    def _judge(
        self,
        instrument: str,
        route: dict[str, Any],
        claim: str | None,
        session: dict[str, Any],
        hops: list[dict[str, Any]],
        storage: list[dict[str, Any]],
        now_ms: int,
    ) -> tuple[str, str]:
        """Return the first thing that stands in the way, and what to do about it."""
        reasons = list(self._sources.not_ready())
        if claim is None:
            return (
                "nobody wants it: subscriptions follow interest, and there is none",
                f"subscribe to it, ZADD md:interest EXPIRY_MS {instrument}, or pin it (PINNED_INSTRUMENTS)",
            )
        candidates = route["candidates"]
        refused = next((row for row in candidates if row["refused"]), None)
        usable = [row for row in candidates if row["usable"] and not row["refused"]]
        if not usable:
            return _no_provider(candidates, refused)
        active = next((row for row in candidates if row["provider"] == route["active"]), None)
        if active is None:
            return "it is not routed yet", _or_wait(reasons)
        if route.get("trouble"):
            return _in_trouble(route, active, now_ms)
        if active["refused"]:
            return (
                f"{active['provider']} refuses its symbol {active['symbol']}: {active['refused']}",
                "correct the mapping in provider_instrument_mappings",
            )
        if not active["flowing"]:
            why = active["reason"] or active["state"]
            return f"{active['provider']} does not deliver just now ({why})", _or_wait(reasons)
        bad = [row for row in storage if row["state"] != SinkState.READY.value]
        if bad:
            told = "; ".join(f"{row['sink']} {row['state']}: {row['reason']}" for row in bad)
            return (
                f"ticks arrive but are not stored just now ({told})",
                "mend Redis; what waits is kept on disk",
            )
        age_ms = hops[0]["age_ms"]
        if age_ms is None:
            if not session["open"] and session["known"]:
                return "subscribed; its market is closed", _opening(session, now_ms)
            return (
                f"subscribed at {active['provider']}, but no tick has come yet",
                f"check that {active['symbol']} is the right symbol; otherwise it has not been traded",
            )
        if age_ms > _QUIET_MS and not session["open"] and session["known"]:
            return f"its market is closed; the last tick is {_span(age_ms)} old", _opening(session, now_ms)
        if reasons:
            return "ticks arrive, but the daemon is not ready", "; ".join(reasons)
        dispute = self._sources.dispute(instrument)
        if dispute is not None:
            return (
                f"ticks arrive, but its providers do not agree about the price: {dispute}",
                "compare both with the exchange's own page, and correct provider_instrument_mappings",
            )
        expires_ms = active["credential_expires_ms"]
        if expires_ms is not None and expires_ms - now_ms < _CREDENTIAL_WARNING_MS:
            return (
                f"all is well for now: the last tick came {_span(age_ms)} ago",
                f"renew the credentials of {active['provider']}: they end in {_span(expires_ms - now_ms)}",
            )
        if age_ms > _QUIET_MS:
            return (
                f"subscribed and connected, but quiet: the last tick came {_span(age_ms)} ago",
                "compare with the exchange's own page; an instrument may simply not be traded",
            )
        return f"all is well: the last tick came {_span(age_ms)} ago", "nothing to do"


def _in_trouble(route: dict[str, Any], active: dict[str, Any], now_ms: int) -> tuple[str, str]:
    """Return what is the matter with a source that works and does not deliver this instrument."""
    why = active["silence"] or route["trouble"]
    stale = f"; stale for {_span(now_ms - route['stale_since_ms'])}" if route["stale_since_ms"] else ""
    verdict = f"{active['provider']} does not deliver it ({why}){stale}"
    if route["standbys"]:
        tried = "; ".join(
            f"{row['provider']}: {row['fresh_ticks']} fresh ticks"
            + ("" if row["agrees"] else f", its price is {row['off_bps']} bps off")
            for row in route["standbys"]
        )
        return verdict, f"wait: a standby is listened to and takes over when it has proved itself ({tried})"
    barred = [row for row in route["candidates"] if row["usable"] and not row["allowed"]]
    if barred:
        return verdict, (
            f"{barred[0]['provider']} could stand in with {barred[0]['delivery']} data: set allow_delayed in "
            "exchange_provider_mappings where that is acceptable"
        )
    return verdict, "map another provider to it, or mend this one; it is listened to all the time"


def _no_provider(candidates: list[dict[str, Any]], refused: dict[str, Any] | None) -> tuple[str, str]:
    told = "; ".join(f"{row['provider']} is {row['state']}: {row['reason']}" for row in candidates)
    if not candidates:
        return "no active provider is mapped", "map one in provider_instrument_mappings"
    if refused is not None:
        return (
            f"{refused['provider']} refuses its symbol {refused['symbol']}: {refused['refused']}",
            "correct the mapping in provider_instrument_mappings",
        )
    if any(row["state"] == ProviderState.PARKED.value for row in candidates):
        return f"no provider can serve it ({told})", "correct the settings named; the daemon looks by itself"
    return (
        f"no provider can serve it just now ({told})",
        "wait: the connections are tried again by themselves",
    )


def _or_wait(reasons: Sequence[str]) -> str:
    return "; ".join(reasons) if reasons else "wait: it is being tried again by itself"


def _opening(session: dict[str, Any], now_ms: int) -> str:
    opens_ms = session["next_open_ms"]
    if opens_ms is None:
        return "nothing to do: its next session is not known"
    at = datetime.fromtimestamp(opens_ms / 1000, UTC)
    return f"nothing to do: it opens {at:%a %Y-%m-%d %H:%M} UTC, in {_span(opens_ms - now_ms)}"


def _span(milliseconds: int) -> str:
    """Return a duration in the largest unit that fits: 0.4 s, 12 min, 3.5 h, 2.1 days."""
    seconds = max(0, milliseconds) / 1000
    for limit, unit, size in ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"
