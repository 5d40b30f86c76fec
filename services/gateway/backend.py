"""What the gateway needs from the daemon behind it, and nothing more.

The composition root implements `GatewayBackend`; the gateway reads it on demand, on the event loop,
and keeps no copy. Nothing here blocks, and nothing here is called per tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from services.market_data.bars import Interval
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest


class InstrumentView(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument as `/api/instruments` shows it.

    `tick_size` is in the currency of the price, None where the exchange has none. `provider` is the
    code of the provider that serves it now, None while none does.
    """

    key: str
    exchange: str
    symbol: str
    name: str
    asset_class: str
    currency: str
    tick_size: float | None = None
    provider: str | None = None


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether data can flow; `reasons` says in words what stands in the way, empty when nothing does.

    `degraded` says what does not work although data flows.
    """

    ready: bool
    reasons: Sequence[str] = ()
    degraded: Sequence[str] = ()


class GatewayBackend(Protocol):
    """The daemon as the gateway sees it."""

    @property
    def demo(self) -> bool:
        """Whether all data is made by the simulators."""
        ...

    @property
    def epoch(self) -> str:
        """The id of the present series of positions; positions of another epoch mean nothing."""
        ...

    def provider_status(self) -> list[dict[str, Any]]:
        """Return every provider's status with the fields of `/api/providers/status`.

        `code, name, state, reason, since_ms, connections, subscribed, instruments_live, ticks_per_s,
        last_tick_ms, latency_ms {p50, p99}, reconnects, last_error, credential_expires_ms`.
        """
        ...

    def instruments(self) -> Sequence[InstrumentView]:
        """Return every instrument that is mapped and active."""
        ...

    def is_known(self, instrument: str) -> bool:
        """Tell whether an instrument key is mapped and active."""
        ...

    def readiness(self) -> Readiness:
        """Say whether a record travels the whole path just now."""
        ...

    def pipeline_status(self) -> dict[str, Any]:
        """Return the state of everything between the providers and the clients.

        `sinks`: a list of `{name, state, reason, queued, imbalance, offered, written, collapsed,
        already_written, batches, errors, dropped {reason: n}, rejected {reason: n}}`; `ledger`: per
        provider code the account of its records (whole numbers, or `{reason: n}`); `tasks`: a list of
        `{name, restarts, alive, last_error}`. Further keys are shown as they are.
        """
        ...

    async def why(self, instrument: str) -> dict[str, Any] | None:
        """Explain where an instrument's ticks are: `verdict` and `next_action`, then what they rest on.

        None when no such instrument is mapped.
        """
        ...

    def similar(self, instrument: str) -> Sequence[str]:
        """Return known instrument keys that look like an unknown one."""
        ...

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """Return the candles of a known instrument, and whether any are missing.

        Raises `StorageError` while Redis does not answer, ValueError for what no source has.
        """
        ...

    async def coverage(self, instrument: str) -> Sequence[CoverageSpan]:
        """Return what is had, missing and not to be had of an instrument's past, by type and time.

        Raises `TemporaryError` while PostgreSQL does not serve.
        """
        ...

    def backfill_status(self) -> dict[str, Any]:
        """Return how the backfill is: `jobs`, `counters`, `sources` with their quotas."""
        ...

    async def order_backfill(
        self, instruments: Sequence[str], interval: Interval, from_ms: int, to_ms: int
    ) -> dict[str, Any]:
        """Begin to fetch what is not stored of a span; return the job.

        Raises `TemporaryError` when this daemon cannot do it now, ValueError when it is too much.
        """
        ...

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:
        """Hear which instruments gained their first, or lost their last, client of this gateway."""
        ...
