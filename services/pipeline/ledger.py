"""The conservation ledger: what came in is what went out, was refused, or still waits; watched all the time.

    provider  frames  = decoded + wire errors + waiting
              records = accepted + merged + rejected
    sink      offered = written + collapsed + dropped + rejected + spooled + queued

A difference that lasts is a defect of ours: it is logged once, shown in `status`, in `/metrics` and among
what `/readyz` calls degraded. It does not make the daemon unready: data flows, and taking it away from
every client would not bring back a record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog

from services.market_data.clock import Clock
from services.pipeline.sink import Sink

_log = structlog.get_logger(__name__)

LASTING_S = 5.0
_LOOK_EVERY_S = 1.0


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One equation of the ledger: what came in, and what of it is accounted for."""

    name: str
    came_in: int
    accounted: int

    @property
    def imbalance(self) -> int:
        """Return how many are unaccounted for; negative when some were counted twice."""
        return self.came_in - self.accounted


def sink_account(sink: Sink) -> Account:
    """Return the account of a sink's records."""
    offered = sink.counters.offered
    return Account(
        name=f"sink {sink.name}",
        came_in=offered,
        accounted=offered - sink.counters.imbalance(sink.queued),
    )


def provider_accounts(code: str, figures: Mapping[str, Any]) -> tuple[Account, Account]:
    """Return the accounts of a provider's frames and records; `figures` are those of its ledger."""
    return (
        Account(
            name=f"frames {code}",
            came_in=figures["frames"],
            accounted=figures["decoded"] + sum(figures["wire_errors"].values()) + figures.get("waiting", 0),
        ),
        Account(
            name=f"records {code}",
            came_in=figures["records"],
            accounted=figures["accepted"] + figures["merged"] + sum(figures["rejected"].values()),
        ),
    )


class LedgerAudit:
    """Looks at the accounts once a second and tells a lasting difference from one of the moment."""

    def __init__(self, clock: Clock, accounts: Callable[[], Iterable[Account]]) -> None:
        self._clock = clock
        self._accounts = accounts
        self._since_s: dict[str, float] = {}
        self._faults: dict[str, int] = {}

    async def run(self) -> None:
        """Look once a second until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Compare every account once."""
        now_s = self._clock.monotonic_s()
        for account in self._accounts():
            name, missing = account.name, account.imbalance
            if not missing:
                self._since_s.pop(name, None)
                if self._faults.pop(name, None) is not None:
                    _log.info("ledger_balanced", account=name)
                continue
            since_s = self._since_s.setdefault(name, now_s)
            if now_s - since_s < LASTING_S:
                continue
            if name not in self._faults:
                _log.error("ledger_unbalanced", account=name, missing=missing, came_in=account.came_in)
            self._faults[name] = missing

    def problems(self) -> list[str]:
        """Return one sentence for each account that has not balanced for a while."""
        return [
            f"the account of {name} does not balance: {abs(missing)} "
            f"{'unaccounted for' if missing > 0 else 'counted twice'}; report this as a defect"
            for name, missing in self._faults.items()
        ]

    def status(self) -> list[dict[str, Any]]:
        """Return every account: `account`, `in`, `accounted`, `imbalance`, and whether it is a `fault`."""
        return [
            {
                "account": account.name,
                "in": account.came_in,
                "accounted": account.accounted,
                "imbalance": account.imbalance,
                "fault": account.name in self._faults,
            }
            for account in self._accounts()
        ]
