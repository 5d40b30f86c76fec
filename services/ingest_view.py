"""The ingest daemons as a gateway process sees them: whether they deliver, and how their providers are.

Stands between the reports in Redis, the follower of the streams and what the gateway shows. That something is
delivered is proven by the probe records in the streams, never by a report; reports only explain. Pure: reads
memory, decides nothing about data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from services.base_provider import ProviderState
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping
from services.market_data.records import PROBE_EXCHANGE, DataIngestionFormat
from services.storage.ingest_reports import IngestReport, ReportBook
from services.storage.shard import EVERYTHING, Shard

PROBE_MAX_AGE_S = 4.0
LAG_MAX_MS = 4_000
_SUMMED = ("connections", "subscribed", "instruments_live", "reconnects")
_WORST_FIRST = ("closed", "parked", "stale", "backing_off", "connecting", "authenticating", "subscribing")


class Follower(Protocol):
    """What is asked of the `StreamFollower`."""

    probes: dict[str, float]
    reason: str

    def lag_ms(self, exchange: str, probe_exchange: str) -> int:
        """How far the reader is behind."""
        ...


class IngestView:
    """Judges from memory; `newest` answers the newest tick of an instrument."""

    def __init__(
        self,
        clock: Clock,
        book: ReportBook,
        follower: Follower,
        newest: Callable[[str], DataIngestionFormat | None],
    ) -> None:
        self._clock = clock
        self._book = book
        self._follower = follower
        self._newest = newest

    def problem(self, exchange: str) -> str:
        """Return why nothing of an exchange is delivered just now, empty when it is."""
        report = self._book.covering(exchange)
        if report is not None and report.phase == "stopped":
            return f"{report} was stopped"
        probes = Shard.named(EVERYTHING if report is None else report.shard).probe_exchange
        heard_s = self._follower.probes.get(probes)
        age_s = None if heard_s is None else self._clock.monotonic_s() - heard_s
        if age_s is not None and age_s <= PROBE_MAX_AGE_S:
            lag_ms = self._follower.lag_ms(exchange, probes)
            if lag_ms <= LAG_MAX_MS:
                return ""
            return f"this gateway reads {lag_ms / 1000:.0f} s behind the stream of {exchange}"
        if self._follower.reason:
            return self._follower.reason
        if report is None:
            return f"no ingest daemon for {exchange} has reported to this Redis"
        told = "nothing delivered yet" if age_s is None else f"nothing delivered for {age_s:.0f} s"
        why = "; ".join(report.reasons) if self._book.fresh(report) else f"silent for {self._age(report)}"
        return f"{report}: {told}{f' ({why})' if why else ''}"

    def remarks(self) -> list[str]:
        """Return what the ingest daemons that deliver say does not work."""
        found = []
        for report in self._book.reports():
            if self._book.fresh(report):
                said = (*report.reasons, *report.degraded)
                found += [f"{report}: {text}" for text in said]
        return found

    @property
    def demo(self) -> bool:
        """Whether any of the data is made by simulators."""
        return any(report.demo for report in self._book.reports())

    @property
    def dynamic(self) -> bool:
        """Whether any ingest daemon subscribes only what somebody wants."""
        return any(report.dynamic for report in self._book.reports())

    def reports(self) -> list[dict[str, Any]]:
        """Return who ingests what, and how long ago each was heard, for the status page."""
        return [
            {
                "shard": report.shard,
                "host": report.host,
                "pid": report.pid,
                "phase": report.phase,
                "fresh": self._book.fresh(report),
                "age_ms": round(self._book.age_s(report) * 1000),
                "ready": report.ready,
                "reasons": report.reasons,
                "degraded": report.degraded,
                "dynamic": report.dynamic,
            }
            for report in self._book.reports()
        ]

    def probe_exchanges(self) -> frozenset[str]:
        """Return the probe streams that prove delivery, one for each ingest daemon there is."""
        return frozenset(
            {PROBE_EXCHANGE, *(Shard.named(it.shard).probe_exchange for it in self._book.reports())}
        )

    # ---- providers ------------------------------------------------------------------------------

    def provider_rows(self) -> list[dict[str, Any]]:
        """Return the status of every provider, as its ingest daemons reported it `age_ms` ago.

        What comes from a daemon that is silent is shown as `stale` and without anything that sounds live.
        Where several shards use a provider its figures are added up and the worst state is shown.
        """
        rows: dict[str, list[dict[str, Any]]] = {}
        for report in self._book.reports():
            for row in report.providers:
                rows.setdefault(str(row["code"]), []).append(self._aged(row, report))
        return [_merged(rows[code]) for code in sorted(rows)]

    def route(self, rows: Sequence[InstrumentMapping]) -> dict[str, Any]:
        """Return who serves an instrument, as far as it shows here; `rows` are its mappings, in order."""
        newest = self._newest(rows[0].instrument) if rows else None
        report = self._book.covering(rows[0].exchange) if rows else None
        told = (
            {} if report is None else {str(row["code"]): self._aged(row, report) for row in report.providers}
        )
        active = newest.provider_code if newest is not None else None
        if active is None and rows:
            active = rows[0].provider_code
        return {
            "active": active,
            "pending": None,
            "wanted": True,
            "open_gap": None,
            "candidates": [_candidate(row, told.get(row.provider_code), newest) for row in rows],
        }

    def _aged(self, row: Mapping[str, Any], report: IngestReport) -> dict[str, Any]:
        aged = {**row, "age_ms": round(self._book.age_s(report) * 1000)}
        if self._book.fresh(report):
            return aged
        gone = f"{report} was stopped" if report.phase == "stopped" else f"{report} is silent"
        return aged | {
            "state": ProviderState.STALE.value,
            "reason": f"{gone}; this was {self._age(report)} ago: {row['state']}",
            "connections": 0,
            "instruments_live": 0,
            "ticks_per_s": 0.0,
        }

    def _age(self, report: IngestReport) -> str:
        return f"{self._book.age_s(report):.0f} s"


def _merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    # A shard that has none of a provider's instruments has no say in how it is.
    rows = [row for row in rows if row["subscribed"]] or rows
    if len(rows) == 1:
        return rows[0]
    worst = min(rows, key=lambda row: _rank(str(row["state"])))
    merged = dict(worst)
    for name in _SUMMED:
        merged[name] = sum(row[name] or 0 for row in rows)
    merged["ticks_per_s"] = round(sum(row["ticks_per_s"] or 0.0 for row in rows), 1)
    merged["age_ms"] = max(row["age_ms"] for row in rows)
    seen = [row["last_tick_ms"] for row in rows if row["last_tick_ms"]]
    merged["last_tick_ms"] = max(seen, default=None)
    merged["unresolved"] = sorted({name for row in rows for name in row.get("unresolved", ())})
    return merged


def _rank(state: str) -> int:
    return _WORST_FIRST.index(state) if state in _WORST_FIRST else len(_WORST_FIRST)


def _candidate(
    row: InstrumentMapping, told: Mapping[str, Any] | None, newest: DataIngestionFormat | None
) -> dict[str, Any]:
    serves = newest is not None and newest.provider_code == row.provider_code
    state = str(told["state"]) if told is not None else ProviderState.STALE.value
    return {
        "provider": row.provider_code,
        "symbol": row.provider_symbol,
        "search_code": row.search_code,
        "primary": row.is_primary,
        "priority": row.priority,
        "usable": state not in (ProviderState.PARKED.value, ProviderState.CLOSED.value),
        "state": state,
        "reason": told["reason"] if told is not None else "no ingest daemon has reported on it",
        "last_error": told["last_error"] if told is not None else None,
        "subscription": "proven" if serves else "unknown here",
        "refused": None,
        "flowing": state == ProviderState.STREAMING.value,
        "last_tick_ms": newest.received_ms if newest is not None and serves else None,
        "provider_last_tick_ms": told["last_tick_ms"] if told is not None else None,
        "credential_expires_ms": told["credential_expires_ms"] if told is not None else None,
    }
