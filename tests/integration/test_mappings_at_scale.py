"""Fifty thousand mappings of which one in a hundred changes: a real PostgreSQL, a provider that counts.

Only what changed is touched, ticks of the rest flow on, and nothing keeps the event loop from running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest

from data_migration.setup_providers import setup
from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.catalogue.loader import Catalogue
from services.catalogue.refresher import MappingRefresher, RefreshState
from services.catalogue.watch import MappingWatch
from services.market_data.clock import SystemClock
from services.market_data.instruments import MappingSnapshot
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from tests.support.eventually import eventually
from tests.support.loop_lag import LoopLag

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNT = 50_000
CHANGED = COUNT // 100


class CountingProvider(BaseMarketDataProvider):
    """Notes what it is asked to do, in order."""

    code: ClassVar[str] = "YF"
    made: ClassVar[CountingProvider]

    def __init__(self, context: ProviderContext) -> None:
        super().__init__(context)
        self.asked: list[tuple[str, list[str]]] = []
        CountingProvider.made = self

    async def connect_websocket(self) -> None:
        self.spawn(asyncio.sleep(3600), "reader")

    async def disconnect_websocket(self) -> None:
        return None

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        self.asked.append(("subscribe", list(symbols)))

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        self.asked.append(("unsubscribe", list(symbols)))

    def message_handler(self, raw: str | bytes) -> None:
        symbol, _, price = str(raw).partition(" ")
        now_ms = time.time_ns() // 1_000_000
        self.emit(ProviderTick(provider_symbol=symbol, price=float(price), event_ms=now_ms))


@pytest.fixture
async def sql(migrated_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    await setup(migrated_database_url)
    connection = await asyncpg.connect(migrated_database_url)
    await connection.execute(f"""
        insert into instruments (exchange_id, symbol, name, asset_class, currency, tick_size)
            select e.id, 'S' || number, 'Share ' || number, 'equity', 'USD', 0.01
            from exchanges e, generate_series(1, {COUNT}) number where e.code = 'NASDAQ';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code)
            select p.id, i.id, i.symbol from providers p, instruments i where p.code = 'YF';
    """)
    await connection.execute("analyze")
    yield connection
    await connection.close()


async def test_one_in_a_hundred_of_fifty_thousand_changes_and_only_that_is_touched(
    migrated_database_url: str, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    published: list[Record] = []
    supervisor = Supervisor()
    manager = ProviderManager(
        clock=SystemClock(),
        settings=dict,
        publish=published.append,
        supervisor=supervisor,
        show_reference=lambda record: None,
        factories={"YF": CountingProvider, "DHAN": CountingProvider},
    )
    await sql.execute("update providers set is_active = code = 'YF'")
    catalogue = Catalogue(migrated_database_url, tmp_path / "mappings.json", SystemClock())
    refresher = MappingRefresher(catalogue, MappingWatch(migrated_database_url))
    first = await refresher.first()
    assert len(first.mappings) == COUNT
    manager.load(first)
    await manager.start()
    provider = CountingProvider.made
    await eventually(lambda: sum(len(symbols) for _, symbols in provider.asked) == COUNT, within_s=60)
    provider.asked.clear()

    lags = {"reading, judging and keeping": LoopLag(), "applying": LoopLag()}
    applied_s: list[float] = []
    seen_s: list[float] = []

    async def apply(snapshot: MappingSnapshot) -> None:
        seen_s.append(time.monotonic())
        lags["reading, judging and keeping"].resting = True
        lags["applying"].resting = False
        await manager.apply(snapshot)
        await asyncio.sleep(0.02)
        lags["applying"].resting = True
        await asyncio.sleep(0.02)
        lags["reading, judging and keeping"].resting = False
        applied_s.append(time.monotonic())

    flowing = [f"S{number}" for number in range(COUNT - 200, COUNT)]
    sent = 0

    async def market() -> None:
        nonlocal sent
        while True:
            for symbol in flowing:
                sent += 1
                provider.handle(f"{symbol} {1 + sent % 1000 / 100:.2f}")
            await asyncio.sleep(0.005)

    lags["applying"].resting = True
    tasks = [
        asyncio.create_task(market()),
        *(asyncio.create_task(lag.run()) for lag in lags.values()),
        asyncio.create_task(refresher.run(apply)),
    ]
    try:
        await asyncio.sleep(2.0)
        started_s = time.monotonic()
        await sql.execute(
            "update provider_instrument_mappings set provider_instrument_search_code = "
            "provider_instrument_search_code || 'X' where instrument_id in "
            f"(select id from instruments order by id limit {CHANGED})"
        )
        await eventually(lambda: applied_s, within_s=60)
        await eventually(
            lambda: sum(len(symbols) for _, symbols in provider.asked) >= 2 * CHANGED, within_s=30
        )
        await asyncio.sleep(1.0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.stop()
        await supervisor.stop()
        await catalogue.close()
    for name, lag in lags.items():
        print(f"\nloop lag while {name}: {lag.worst_ms:.0f} ms")
    print(f"seen after {seen_s[0] - started_s:.2f} s, applied after {applied_s[0] - started_s:.2f} s")
    assert refresher.status.state is RefreshState.CURRENT

    asked: dict[str, list[str]] = {"subscribe": [], "unsubscribe": []}
    order = [kind for kind, _ in provider.asked]
    for kind, symbols in provider.asked:
        asked[kind] += symbols
    assert sorted(asked["subscribe"]) == sorted(f"S{number}X" for number in range(1, CHANGED + 1))
    assert sorted(asked["unsubscribe"]) == sorted(f"S{number}" for number in range(1, CHANGED + 1))
    assert order == sorted(order), "what is new is subscribed before what is gone is let go"

    ticks = [record for record in published if isinstance(record, DataIngestionFormat)]
    rejected: dict[str, Any] = manager.ledger()["YF"]["rejected"]
    assert sent > 1_000
    assert len(ticks) == sent, rejected
    gaps = {
        record.symbol for record in published if isinstance(record, ControlRecord) and record.type == "gap"
    }
    assert not gaps & {f"NASDAQ:{symbol}" for symbol in flowing}
    lags["reading, judging and keeping"].check()
    lags["applying"].check()
