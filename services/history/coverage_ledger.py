"""The coverage ledger of the running daemon: takes notes at once, writes them to PostgreSQL in batches.

Fed by the control records (gaps, finished bars) and by the backfill; read by the history service. While
PostgreSQL is away the notes wait in memory, up to a bound. A gap is also written to a file under `STATE_DIR`
at once and stays there until PostgreSQL has it: neither an outage nor a kill loses one. What else is noted
can be found out again. A gap of a whole exchange is worked through some instruments at a time; what is told
meanwhile waits behind it, so everything counts in the order in which it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from services.errors import MarketdError, TemporaryError
from services.history.coverage_store import CoverageStore
from services.market_data.bars import MINUTE_MS
from services.market_data.candles import CoverageSpan
from services.market_data.clock import Clock
from services.market_data.coverage import HAVE, LIVE, MINUTES, MISSING, TICKS, Note, apply
from services.market_data.records import ControlRecord
from services.market_data.spans import Span, widened
from services.pipeline.giving_way import slices

_log = structlog.get_logger(__name__)

FILE = "coverage-pending.jsonl"
MOST_PENDING = 100_000
FLUSH_EVERY_S = 2.0
_LONGEST_REST_S = 0.5
LIVE_EVERY_S = 60.0
KNOWN_FOR_S = 30.0
"""How long what was read of an instrument is believed: another process may write the table, too."""
_MOST_KNOWN = 2_000
_BATCH = 5_000
_AT_ONCE = 200
_AWAY_FOR_S = 3.0
_WAIT_S = (1.0, 2.0, 5.0, 10.0)


_TOLD = b'{"told":'
_encode_lines = msgspec.json.Encoder().encode_lines


class _Told(msgspec.Struct, tag=True, tag_field="told"):
    """A control record as the file keeps it, for one that concerns too many to note it for each at once."""

    symbol: str
    exchange: str
    at_ms: int
    source: str
    fields: dict[str, str | int]

    @classmethod
    def of(cls, record: ControlRecord) -> _Told:
        """Return what is kept of a gap."""
        return cls(record.symbol, record.exchange, record.timestamp, record.provider_code, record.fields)

    def record(self) -> ControlRecord:
        """Return the gap again."""
        return ControlRecord(
            "gap", self.symbol, self.exchange, self.at_ms, self.at_ms, self.source, self.fields
        )


class CoverageLedger:
    """What is known of the past. `open` once, keep `run` running, `close`."""

    def __init__(self, store: CoverageStore, clock: Clock, file: Path | None = None) -> None:
        self.store = store
        self.reason = ""
        """Why notes are not written just now; empty while they are."""
        self.dropped = 0
        self.written = 0
        self._clock = clock
        self._file = file
        self._pending: deque[Note] = deque()
        self._told: deque[ControlRecord] = deque()
        self._learning = asyncio.Lock()
        self._journal: BinaryIO | None = None
        self._journal_failed = False
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self.flowing: Callable[[str], bool] = lambda _: False
        """Whether data of an instrument flows now: a quiet minute is then no missing one."""
        self.instruments_of: Callable[[str], Iterable[str]] = lambda _: ()
        """The instruments of an exchange, for what concerns all of them."""
        self._forget = False
        self._away = ""
        self._away_until_s = 0.0
        self._live: dict[str, list[int]] = {}
        self._live_noted: dict[str, int] = {}
        self._known: OrderedDict[str, tuple[float, list[CoverageSpan]]] = OrderedDict()

    @property
    def pending(self) -> int:
        """How many notes are not in PostgreSQL yet."""
        return len(self._pending) + len(self._told)

    async def open(self) -> None:
        """Take up the notes that a former run could not write."""
        if self._file is None:
            return
        for line in await asyncio.to_thread(_lines, self._file):
            try:
                if line.startswith(_TOLD):
                    self._told.append(msgspec.json.decode(line, type=_Told).record())
                else:
                    self._pending.append(msgspec.json.decode(line, type=Note))
            except msgspec.DecodeError:
                # A torn last line, of a process that was killed.
                _log.warning("coverage_note_unreadable", bytes=len(line))
        try:
            self._journal = await asyncio.to_thread(self._file.open, "ab", 0)
        except OSError as error:
            _log.warning("coverage_not_kept", path=str(self._file), error=str(error))

    # ---- being told -----------------------------------------------------------------------------

    def note(self, *notes: Note) -> None:
        """Take notes; they count for readers at once."""
        for note in notes:
            if note.from_ms >= note.to_ms:
                continue
            if len(self._pending) >= MOST_PENDING:
                self.dropped += 1
                continue
            self._pending.append(note)
        self._news.set()

    def note_record(self, record: ControlRecord) -> None:
        """Learn from a control record: a gap breaks what was had, a finished bar says that data flowed."""
        if "epoch" in record.fields:
            return
        wide = _is_wide(record)
        if not wide and not self._told:
            self._learn(record, kept=False)
        elif record.type == "gap":
            self._keep(_Told.of(record))
            self._told.append(record)
            self._news.set()
        elif len(self._told) < MOST_PENDING:
            self._told.append(record)
        else:
            self.dropped += 1

    async def _catch_up(self) -> None:
        """Learn from what had to wait, in order; whatever else is due runs in between."""
        async with self._learning:
            while self._told:
                record = self._told[0]
                if _is_wide(record):
                    async for part in slices(self.instruments_of(record.exchange), _AT_ONCE):
                        for instrument in part:
                            self._note_gap(instrument, record, kept=True)
                else:
                    self._learn(record, kept=True)
                    if len(self._told) % _AT_ONCE == 0:
                        await asyncio.sleep(0)
                # While it was worked through, everything may have been forgotten.
                if self._told and self._told[0] is record:
                    self._told.popleft()

    def _learn(self, record: ControlRecord, *, kept: bool) -> None:
        symbol = record.symbol
        if record.type == "gap":
            self._note_gap(symbol, record, kept=kept)
        elif record.type == "bar" and symbol and record.fields.get("i") == MINUTES:
            start_ms = int(record.fields["s"])
            span = self._live.setdefault(record.symbol, [start_ms, start_ms])
            if start_ms >= span[0]:
                span[1] = max(span[1], start_ms + MINUTE_MS)

    def _note_gap(self, instrument: str, record: ControlRecord, *, kept: bool) -> None:
        begin, end = int(record.fields["from"]), int(record.fields["to"])
        if begin >= end:
            return
        reason, source = str(record.fields.get("reason", "")), record.provider_code
        store = record.fields.get("store")
        if store is not None:
            # The data flowed; one of the stores lost it. The stream's loss is none of the bars.
            kinds = {"time_series": TICKS, "bar_series": MINUTES}
            if store in kinds:
                step_ms = MINUTE_MS if store == "bar_series" else 1
                spans = {kinds[str(store)]: widened((begin, end), step_ms)}
                self._missing(instrument, spans, source, reason, kept=kept)
            return
        self._note_live(instrument, until_ms=begin)
        # What flows again begins with the first whole minute behind the gap.
        first_minute, last_minute = widened((begin, end), MINUTE_MS)
        self._live[instrument] = [last_minute, last_minute]
        missing = {TICKS: (begin, end), MINUTES: (first_minute, last_minute)}
        self._missing(instrument, missing, source, reason, kept=kept)

    def _missing(
        self, instrument: str, spans: Mapping[str, Span], source: str, reason: str, *, kept: bool
    ) -> None:
        notes = [
            Note(
                instrument=instrument,
                type=kind,
                state=MISSING,
                from_ms=span[0],
                to_ms=span[1],
                source=source,
                reason=reason,
                broken=True,
            )
            for kind, span in spans.items()
        ]
        if not kept and len(self._pending) < MOST_PENDING:
            self._keep(*notes)
        self.note(*notes)

    def _keep(self, *told: Note | _Told) -> None:
        """Write something to the file, in case that the process ends before PostgreSQL has it."""
        if self._journal is None:
            return
        try:
            # In one call: a start tells of a gap of every instrument.
            self._journal.write(_encode_lines(told))
        except OSError as error:
            if not self._journal_failed:
                _log.warning("coverage_not_kept", path=str(self._file), error=str(error))
            self._journal_failed = True

    def forget(self) -> None:
        """Believe nothing of what was had: the store that held it is empty."""
        self._forget = True
        self._live.clear()
        self._live_noted.clear()
        self._known.clear()
        gaps = [record for record in self._told if record.type == "gap"]
        self._told.clear()
        self._told.extend(gaps)
        # What was noted and is not written yet was in that store, too.
        self._pending = deque(note for note in self._pending if note.state != HAVE)
        self._news.set()

    def _note_flow(self, instrument: str) -> None:
        span = self._live.get(instrument)
        if span is not None and self.flowing(instrument):
            now_ms = self._clock.now_ms()
            span[1] = max(span[1], now_ms - now_ms % MINUTE_MS)
        self._note_live(instrument)

    def _note_live(self, instrument: str, until_ms: int | None = None) -> None:
        span = self._live.get(instrument)
        if span is None:
            return
        begin, end = span
        if until_ms is not None:
            end = min(end, until_ms - until_ms % MINUTE_MS)
        if end <= begin or self._live_noted.get(instrument) == end:
            return
        self._live_noted[instrument] = end
        for kind in (TICKS, MINUTES):
            self.note(
                Note(instrument=instrument, type=kind, state=HAVE, source=LIVE, from_ms=begin, to_ms=end)
            )

    # ---- being asked ----------------------------------------------------------------------------

    async def of(self, instrument: str, *, fresh: bool = False) -> list[CoverageSpan]:
        """Return everything that is known of an instrument, with the notes that are not written yet.

        Raises what `CoverageStore.of` raises. `fresh` reads anew.
        """
        await self._catch_up()
        now_s = self._clock.monotonic_s()
        kept = self._known.get(instrument)
        if kept is None or fresh or now_s - kept[0] > KNOWN_FOR_S:
            if now_s < self._away_until_s:
                # No reader waits again for what was not there a moment ago.
                raise TemporaryError(self._away)
            try:
                rows = await self.store.of(instrument)
            except MarketdError as error:
                self._away, self._away_until_s = str(error), now_s + _AWAY_FOR_S
                raise
            self._known[instrument] = (now_s, rows)
            self._known.move_to_end(instrument)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        else:
            rows = kept[1]
        self._note_flow(instrument)
        notes = [note for note in self._pending if note.instrument == instrument]
        if not notes:
            return rows
        kinds = dict.fromkeys([row.type for row in rows] + [note.type for note in notes])
        return [
            row
            for kind in kinds
            for row in apply(
                [row for row in rows if row.type == kind], [note for note in notes if note.type == kind]
            )
        ]

    # ---- writing --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        live_s, failures = self._clock.monotonic_s(), 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_EVERY_S):
                    await self._news.wait()
            self._news.clear()
            now_s = self._clock.monotonic_s()
            # While nothing can be written, how far the streams have come waits: it needs no notes until then.
            if now_s - live_s >= LIVE_EVERY_S and not self.reason:
                live_s = now_s
                async for part in slices(list(self._live), _AT_ONCE):
                    for instrument in part:
                        self._note_flow(instrument)
            try:
                await self.flush(give_way=True)
                failures = 0
            except MarketdError as error:
                if not failures:
                    _log.warning("coverage_not_written", reason=str(error), pending=len(self._pending))
                self.reason = str(error)
                await asyncio.sleep(_WAIT_S[min(failures, len(_WAIT_S) - 1)])
                failures += 1
                self._news.set()
            else:
                await asyncio.sleep(0.2)

    async def flush(self, *, give_way: bool = False) -> None:
        """Write all notes to PostgreSQL. Raises what `CoverageStore.note` raises; the notes stay then.

        With `give_way` at least half of the time is left to others: a start notes a gap of every instrument.
        """
        async with self._writing:
            await self._flush(give_way=give_way)

    async def _flush(self, *, give_way: bool) -> None:
        await self._catch_up()
        while self._forget or self._pending:
            if self._forget:
                await self.store.forget()
                self._forget = False
                self._known.clear()
                continue
            batch = list(islice(self._pending, _BATCH))
            began_s = self._clock.monotonic_s()
            await self.store.note(batch)
            took_s = self._clock.monotonic_s() - began_s
            written = set(map(id, batch))
            # Some of them may have been taken away meanwhile, never any put before them.
            while self._pending and id(self._pending[0]) in written:
                self._pending.popleft()
            for note in batch:
                self._known.pop(note.instrument, None)
            self.written += len(batch)
            await asyncio.sleep(min(_LONGEST_REST_S, took_s) if give_way else 0)
        if self.reason:
            _log.info("coverage_written_again", notes=self.written)
        self.reason = ""
        if self._journal is not None and not self._told:
            with contextlib.suppress(OSError):
                self._journal.truncate(0)
                self._journal_failed = False

    async def close(self) -> None:
        """Note how far the streams came and write what can be written; gaps that cannot stay on disk."""
        await self._catch_up()
        for instrument in list(self._live):
            self._note_live(instrument)
        with contextlib.suppress(MarketdError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self.flush()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        await self.store.close()

    def status(self) -> dict[str, object]:
        """Return how the ledger is, for the status page."""
        return {
            "pending": self.pending,
            "written": self.written,
            "dropped": self.dropped,
            "reason": self.reason,
        }


def _is_wide(record: ControlRecord) -> bool:
    """Tell whether a record is a gap of a whole exchange."""
    return record.type == "gap" and record.symbol.partition(":")[2] in ("", "*")


def _lines(file: Path) -> list[bytes]:
    try:
        return [line for line in file.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []
