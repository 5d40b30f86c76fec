"""How long the series of each exchange keep a sample. Used by the writers of time series."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.market_data.records import PROBE_EXCHANGE

_PROBE_RETENTION_MS = 600_000


class Retention(msgspec.Struct, frozen=True):
    """`usual_ms` for every exchange that `by_exchange` says nothing of, in ms. The probe's is short."""

    usual_ms: int
    by_exchange: Mapping[str, int] = {}

    def of(self, exchange: str) -> int:
        """Return how long the series of an exchange keep a sample, in ms."""
        kept_ms = self.by_exchange.get(exchange, self.usual_ms)
        return min(kept_ms, _PROBE_RETENTION_MS) if exchange == PROBE_EXCHANGE else kept_ms
