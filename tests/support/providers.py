"""What tests of providers share: a `ProviderContext` that records, and running a provider to its stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.market_data.clock import SystemClock
from services.market_data.records import ProviderTick
from services.pipeline.backoff import Backoff


class Recorder:
    """A `ProviderContext` and everything a provider told it, in order.

    `settings` may be changed at any time, as an operator edits `.env`. Waits are shortened: `base_s` and
    `cap_s` are the bounds of the back-off, parked providers look at their settings every 20 ms.
    """

    def __init__(
        self, settings: dict[str, str] | None = None, *, base_s: float = 0.02, cap_s: float = 0.2
    ) -> None:
        self.settings = dict(settings or {})
        self.ticks: list[tuple[ProviderTick, int]] = []
        self.lost: list[tuple[list[str], int, str]] = []
        self.restored: list[tuple[list[str], int]] = []
        self.story: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.context = ProviderContext(
            clock=SystemClock(),
            deliver=self._deliver,
            settings=lambda: dict(self.settings),
            spawn=self._spawn,
            connection_lost=self._lost,
            connection_restored=self._restored,
            backoff=lambda: Backoff(base_s=base_s, cap_s=cap_s),
            poll_s=0.02,
        )

    def _deliver(self, tick: ProviderTick, received_ms: int) -> None:
        self.ticks.append((tick, received_ms))
        self.story.append(f"tick {tick.provider_symbol}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _lost(self, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        self.lost.append((list(symbols), since_ms, reason))
        self.story.extend(f"lost {symbol}" for symbol in self.lost[-1][0])

    def _restored(self, symbols: Iterable[str], at_ms: int) -> None:
        self.restored.append((list(symbols), at_ms))
        self.story.extend(f"restored {symbol}" for symbol in self.restored[-1][0])

    def prices(self, symbol: str) -> list[float | None]:
        """Return the prices delivered for a symbol, in order."""
        return [tick.price for tick, _ in self.ticks if tick.provider_symbol == symbol]


@asynccontextmanager
async def running(provider: BaseMarketDataProvider) -> AsyncIterator[None]:
    """Run a provider while the body lasts; its stop must take less than two seconds."""
    task = asyncio.create_task(provider.run())
    try:
        yield
    finally:
        began = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.done(), "run() did not end"
        assert time.monotonic() - began < 2, "stopping took too long"
        assert task.cancelled() or task.exception() is None, task.exception()
