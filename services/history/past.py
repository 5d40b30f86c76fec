"""Past: everything of the daemon that deals with what was, put together; the daemon holds one of these.

    control records -> ledger -> backfill -> filler -> sources (Dhan, Yahoo)
                         |                     '-> bars in Redis, `backfilled` records
                         '--- history service -> gateway

Reading works in every role, with the ledger and without. Filling happens only while this daemon leads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from services.history.backfill import Backfill, BackfillDepth
from services.history.coverage_ledger import FILE, CoverageLedger
from services.history.coverage_store import CoverageStore
from services.history.dhan_history import DhanHistory
from services.history.filler import Filler
from services.history.service import Forming, HistoryService
from services.history.source import HistorySource
from services.history.yahoo_history import YahooHistory
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, Interval
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest
from services.market_data.clock import Clock
from services.market_data.instruments import Candidates, InstrumentMapping, MappingSnapshot, candidates_of
from services.market_data.records import ControlRecord
from services.market_data.trading_time import TradingTime
from services.pipeline.giving_way import GivingWay
from services.pipeline.supervisor import end_together
from services.rest.quota import Quota
from services.storage.client import make_client
from services.storage.retention import Retention

_log = structlog.get_logger(__name__)

SOURCES: tuple[type[HistorySource], ...] = (DhanHistory, YahooHistory)
FOLDER = "history"
UNANNOUNCED = "backfilled.jsonl"
_EPOCH_FILE = "epoch"


class PastConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` keeps the quotas and what PostgreSQL could not take; None keeps nothing on disk."""

    database_url: str
    redis_url: str
    folder: Path | None = None
    depth: BackfillDepth = BackfillDepth()
    retention_ms: int = 365 * 86_400_000
    retention_by_exchange: Mapping[str, int] = {}


class Past:
    """The past of every instrument. `open`, keep `run` running while leading, `close`."""

    def __init__(
        self,
        config: PastConfig,
        *,
        clock: Clock,
        calendar: MarketCalendar,
        settings: Callable[[], Mapping[str, str]],
        publish: Callable[[ControlRecord], None],
        forming: Forming = lambda _instrument, _interval: None,
        refill: Callable[[Mapping[str, list[Bar]]], None] = lambda _: None,
        planned: Callable[[], Sequence[str]] | None = None,
        sources: Mapping[str, HistorySource] | None = None,
        giving_way: GivingWay | None = None,
    ) -> None:
        self.config = config
        self._clock = clock
        self._publish = publish
        self._candidates: Candidates = {}
        self._mappings: tuple[InstrumentMapping, ...] = ()
        self._by_symbol: dict[str, dict[str, InstrumentMapping]] = {}
        folder = config.folder
        self.redis = make_client(config.redis_url, name="marketd:history")
        self.ledger = CoverageLedger(
            CoverageStore(config.database_url), clock, folder / FILE if folder is not None else None
        )
        self.ledger.instruments_of = lambda exchange: [
            key for key in self._candidates if key.partition(":")[0] == exchange
        ]
        self.sources: dict[str, HistorySource] = (
            dict(sources)
            if sources is not None
            else {source.code: self._source(source, settings) for source in SOURCES}
        )
        trading, grid = TradingTime(calendar), BarGrid(calendar)
        self._retention = Retention(config.retention_ms, config.retention_by_exchange)
        self.filler = Filler(
            redis=self.redis,
            ledger=self.ledger,
            sources=self.sources,
            trading=trading,
            clock=clock,
            candidates=lambda instrument: self._candidates.get(instrument, ()),
            announce=self._announce,
            retention=self._retention,
            grid=grid,
            refill=refill,
        )
        self.backfill = Backfill(
            self.filler,
            self.ledger,
            clock,
            planned=planned or (lambda: list(self._candidates)),
            known=lambda: list(self._candidates),
            depth=config.depth,
            giving_way=giving_way,
        )
        self.service = HistoryService(
            self.redis,
            self.ledger,
            trading,
            grid,
            clock,
            filler=self.filler,
            forming=forming,
            retention_ms=self._retention.of,
        )
        self.leading = False
        self.service.may_fill = lambda: self.leading

    @property
    def quotas(self) -> dict[str, Quota]:
        """The budget of every vendor's account, by code; whoever else asks the vendor takes from it too."""
        return {code: source.quota for code, source in self.sources.items()}

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over the mappings: which providers an instrument has, the best first."""
        self._mappings = snapshot.mappings
        self._candidates = candidates_of(snapshot.mappings)
        self._by_symbol = {}

    # ---- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what a former run left on disk."""
        if self.config.folder is not None:
            await asyncio.to_thread(self.config.folder.mkdir, parents=True, exist_ok=True)
        await self.ledger.open()

    async def lead(self, epoch: str) -> None:
        """Begin to fill. `epoch` tells this Redis from one that has lost what the ledger says it has."""
        await self._check_epoch(epoch)
        for record in await self._unannounced():
            self._publish(record)
        self.leading = True

    async def run(self) -> None:
        """Keep the ledger and fill what is missing, until cancelled."""
        self.service.hand_over = self.backfill.fetch
        try:
            await end_together(("coverage", self.ledger.run()), ("backfill", self.backfill.run()))
        finally:
            self.service.hand_over = None

    async def close(self) -> None:
        """Write what is known, close every connection; harmless when repeated."""
        self.leading = False
        await self.ledger.close()
        for source in self.sources.values():
            source.quota.save()
            await source.close()
        await self.redis.aclose()

    # ---- used by the daemon ---------------------------------------------------------------------

    def note(self, record: ControlRecord) -> None:
        """Learn from a control record of the live flow."""
        self.ledger.note_record(record)

    async def history_lost(self, epoch: str) -> None:
        """Believe nothing of what was stored: Redis lost it."""
        await self._check_epoch(epoch)

    async def read(self, request: HistoryRequest) -> HistoryAnswer:
        """Answer a request for candles."""
        return await self.service.read(request)

    async def coverage(self, instrument: str) -> list[CoverageSpan]:
        """Return what is known of an instrument's past."""
        return await self.service.coverage(instrument)

    async def ask(
        self, instruments: Sequence[str], interval: Interval, from_ms: int, to_ms: int
    ) -> dict[str, Any]:
        """Fetch a span now, as far as it is not stored; return the job. Raises as `Backfill.ask` does."""
        job = await self.backfill.ask(instruments, interval, from_ms, to_ms)
        built: dict[str, Any] = msgspec.to_builtins(job)
        return built

    def status(self) -> dict[str, Any]:
        """Return how backfill, ledger and readers are."""
        return {
            **self.backfill.status(),
            "ledger": self.ledger.status(),
            "reads": dict(self.service.figures),
        }

    # ---- inner ----------------------------------------------------------------------------------

    def _source(
        self, source: type[HistorySource], settings: Callable[[], Mapping[str, str]]
    ) -> HistorySource:
        folder = self.config.folder
        file = folder / f"quota-{source.code.lower()}.json" if folder is not None else None
        return source(
            clock=self._clock,
            settings=settings,
            quota=Quota(source.code, source.limits, self._clock, file),
            mapping_of=lambda symbol: self._symbols_of(source.code).get(symbol),
        )

    def _symbols_of(self, code: str) -> Mapping[str, InstrumentMapping]:
        """Return a provider's mappings by its symbols; most providers are never asked for the past."""
        found = self._by_symbol.get(code)
        if found is None:
            found = self._by_symbol[code] = {
                mapping.provider_symbol: mapping
                for mapping in self._mappings
                if mapping.provider_code == code
            }
        return found

    def _announce(
        self, instrument: str, exchange: str, code: str, interval: Interval, from_ms: int, to_ms: int
    ) -> None:
        now_ms = self._clock.now_ms()
        fields: dict[str, str | int] = {"from": from_ms, "to": to_ms, "i": interval}
        self._publish(ControlRecord("backfilled", instrument, exchange, now_ms, now_ms, code, fields))

    async def _check_epoch(self, epoch: str) -> None:
        folder = self.config.folder
        if folder is None or not epoch:
            return
        file = folder / _EPOCH_FILE
        known = await asyncio.to_thread(_read_text, file)
        if known == epoch:
            return
        if known:
            _log.warning("coverage_forgotten", reason="Redis has lost what was stored")
            self.ledger.forget()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(file.write_text, epoch, encoding="utf-8")

    async def _unannounced(self) -> list[ControlRecord]:
        """Return, once, what a command stored while no daemon ran."""
        if self.config.folder is None:
            return []
        file = self.config.folder / UNANNOUNCED
        text = await asyncio.to_thread(_read_text, file)
        records = []
        for line in text.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                records.append(msgspec.json.decode(line, type=ControlRecord))
        await asyncio.to_thread(file.unlink, missing_ok=True)
        return records


def keep_for_the_daemon(folder: Path) -> Callable[[ControlRecord], None]:
    """Return a `publish` for a command: the next daemon publishes the records, in its own order."""

    def publish(record: ControlRecord) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / UNANNOUNCED).open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")

    return publish


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
