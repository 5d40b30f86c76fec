"""The backfill: works off what is missing, newest first, and before that what somebody asked for.

The ledger is the queue, so a kill at any moment costs at most the requests under way. What the streams
missed comes into it as gap records, what was never there by `plan_depth`, what is asked for by `ask`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import structlog

from services.errors import MarketdError, StorageError, TemporaryError
from services.history.coverage_ledger import CoverageLedger
from services.history.filler import SETTLE_MS, Filler, FillOutcome
from services.history.planner import Window, newest_first, plan, windows_of
from services.history.source import FOUND_LEAVES, ORDERED_LEAVES
from services.market_data.bars import MINUTE_MS, Interval
from services.market_data.calendar import trading_day
from services.market_data.candles import CoverageSpan
from services.market_data.clock import Clock
from services.market_data.coverage import HAVE, MISSING, Note, spans_of
from services.market_data.spans import without
from services.market_data.trading_time import midnight_ms
from services.pipeline.giving_way import GivingWay, slices
from services.pipeline.supervisor import end_together

_log = structlog.get_logger(__name__)

WORKERS = 4
LOOK_EVERY_S = 5.0
PLAN_EVERY_S = 3_600.0
PLAN_AGAIN_S = 300.0
_MOST_SPANS = 2_000
_FOUND_WORKERS = 2
_FOUND_PAUSE_S = 0.3
_MOST_TRIES = 6
_LATER_S = 30.0
_LATEST_S = 1_800.0
"""What nobody answers now is found again after so long; twice as long with every time in a row."""
_KEPT_JOBS = 20
_READER = 0
"""The number of every job of a reader, who waits for it."""
_AT_ONCE = 50
"""Instruments that are planned between two looks at what else is due: about two milliseconds."""
MOST_WINDOWS = 200_000
DAY_MS = 86_400_000


class BackfillDepth(msgspec.Struct, frozen=True):
    """How many days back bars are fetched without being asked for; 0: none."""

    minute_days: int = 0
    daily_days: int = 0


class BackfillJob(msgspec.Struct, kw_only=True):
    """Something that was asked for, and how far it is. Times are UTC epoch ms.

    `windows` counts requests to be made, `done` those settled, `bars` what was stored. `refused` counts by
    `PROVIDER reason`; `failed` windows are left to the backfill, which tries them again later.
    """

    id: int
    interval: Interval
    instruments: int
    from_ms: int
    to_ms: int
    started_ms: int
    windows: int = 0
    done: int = 0
    failed: int = 0
    bars: int = 0
    finished_ms: int | None = None
    refused: dict[str, int] = {}
    waiting: str = ""
    answered: list[str] = []


class _Task(msgspec.Struct):
    window: Window
    job: BackfillJob | None = None
    tries: int = 0
    not_before_s: float = 0.0


class Backfill:
    """The running backfill. `planned()` are the instruments whose past is kept without being asked for.

    `known()` are all instruments, whose gaps are filled. With a depth of 0 days nothing is fetched but
    what is asked for.
    """

    def __init__(
        self,
        filler: Filler,
        ledger: CoverageLedger,
        clock: Clock,
        *,
        planned: Callable[[], Sequence[str]],
        known: Callable[[], Sequence[str]],
        depth: BackfillDepth,
        workers: int = WORKERS,
        giving_way: GivingWay | None = None,
    ) -> None:
        self.filler = filler
        self.depth = depth
        self._ledger = ledger
        self._clock = clock
        self._planned = planned
        self._known = known
        self._workers = workers
        self.giving_way = giving_way or GivingWay()
        self._ids = itertools.count(1)
        self._asked: deque[_Task] = deque()
        self._found: OrderedDict[Window, _Task] = OrderedDict()
        self._busy: set[Window] = set()
        self._later: dict[tuple[str, Interval], float] = {}
        self._put_off: dict[tuple[str, Interval], int] = {}
        self._news = asyncio.Event()
        self._settlement = asyncio.Event()
        self.jobs: OrderedDict[int, BackfillJob] = OrderedDict()
        self.reason = ""
        """Why nothing is planned just now; empty while it is."""

    # ---- being asked ----------------------------------------------------------------------------

    async def ask(
        self, instruments: Iterable[str], interval: Interval, from_ms: int, to_ms: int
    ) -> BackfillJob:
        """Fetch what is not stored of a span before anything else; what is stored is not fetched again.

        Raises what the ledger raises while PostgreSQL is away, ValueError when it is too much at once.
        """
        keys = list(instruments)
        now_ms = self._clock.now_ms()
        from_ms -= from_ms % MINUTE_MS
        last_ms = min(to_ms, now_ms - SETTLE_MS[interval])
        job = BackfillJob(
            id=next(self._ids),
            interval=interval,
            instruments=len(keys),
            from_ms=from_ms,
            to_ms=last_ms - last_ms % MINUTE_MS,
            started_ms=now_ms,
        )
        windows: list[Window] = []
        await self._ledger.flush()
        known = await self._ledger.store.of_type(keys, interval)
        for number, instrument in enumerate(keys):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            spans = without([(from_ms, job.to_ms)], spans_of(known.get(instrument, ()), HAVE))
            self._ledger.note(
                *(
                    Note(
                        instrument=instrument,
                        type=interval,
                        state=MISSING,
                        from_ms=begin,
                        to_ms=end,
                        reason="asked for",
                        again=True,
                    )
                    for begin, end in spans
                )
            )
            offers = self.filler.offers(instrument, interval).values()
            windows += windows_of(
                instrument,
                interval,
                spans,
                max((offer.window_ms for offer in offers), default=now_ms),
                [now_ms - offer.depth_ms for offer in offers if offer.depth_ms],
            )
            if len(windows) > MOST_WINDOWS:
                raise ValueError(f"more than {MOST_WINDOWS} requests at once: ask for less")
        windows.sort(key=lambda window: -window.to_ms)
        job.windows = len(windows)
        if not windows:
            job.finished_ms = now_ms
        self._asked.extend(_Task(window, job) for window in windows)
        self.jobs[job.id] = job
        while len(self.jobs) > _KEPT_JOBS:
            self.jobs.popitem(last=False)
        self._news.set()
        return job

    async def fetch(self, windows: Sequence[Window], within_s: float) -> tuple[tuple[str, ...], bool]:
        """Fill windows before anything else, and wait for them for a while; they go on after that.

        Returns the codes of the providers that answered, and whether all windows are settled.
        """
        now_ms = self._clock.now_ms()
        job = BackfillJob(
            id=_READER,
            interval=windows[0].interval,
            instruments=1,
            from_ms=windows[-1].from_ms,
            to_ms=windows[0].to_ms,
            started_ms=now_ms,
            windows=len(windows),
        )
        for window in reversed(windows):
            if window not in self._busy:
                self._asked.appendleft(_Task(window, job))
            else:
                job.windows -= 1
        self._news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while job.done < job.windows and not job.waiting:
                    self._settlement.clear()
                    await self._settlement.wait()
        return tuple(job.answered), job.done >= job.windows and not job.failed

    async def plan_depth(self) -> None:
        """Note as missing what is not known of the days that are kept without being asked for."""
        now_ms = self._clock.now_ms() // MINUTE_MS * MINUTE_MS
        kinds: tuple[tuple[Interval, int], ...] = (
            ("1m", self.depth.minute_days),
            ("1d", self.depth.daily_days),
        )
        for interval, days in kinds:
            if days <= 0:
                continue
            async for part in slices(self._planned(), _AT_ONCE):
                for instrument in part:
                    if self.filler.offers(instrument, interval):
                        self._ledger.note(_not_stored(instrument, interval, days, now_ms))

    # ---- working --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fill until cancelled."""
        await end_together(
            ("backfill:plan", self._plan()),
            *(
                (f"backfill:worker-{number}", self._work(found=number < _FOUND_WORKERS))
                for number in range(self._workers)
            ),
        )

    async def work_off(self) -> None:
        """Fill until nothing that was asked for is left; for a command without a daemon."""
        workers = [(f"worker-{number}", self._work_off()) for number in range(self._workers)]
        await asyncio.gather(*(work for _, work in workers))

    def status(self) -> dict[str, Any]:
        """Return what is being done, for the status page and the command."""
        return {
            "depth": msgspec.to_builtins(self.depth),
            "reason": self.reason,
            "asked": len(self._asked),
            "found": len(self._found),
            "busy": len(self._busy),
            "gave_way": self.giving_way.waits,
            "counters": msgspec.to_builtins(self.filler.counters),
            "sources": {
                code: {
                    "requests": source.requests,
                    "used_today": source.quota.used_today,
                    "left_today": source.quota.left_today,
                    "left_for_backfill": source.quota.left_beyond(FOUND_LEAVES),
                    "left_for_orders": source.quota.left_beyond(ORDERED_LEAVES),
                    "paused_s": round(source.quota.paused_s, 1),
                    "refused_here": dict(source.quota.refused),
                }
                for code, source in self.filler.sources.items()
            },
            "jobs": [msgspec.to_builtins(job) for job in self.jobs.values()],
        }

    async def _plan(self) -> None:
        # Soon again after the start: what lay between the plan and the first live bar.
        waits_s = iter((0.0, PLAN_AGAIN_S))
        plan_at_s = self._clock.monotonic_s() + next(waits_s)
        while True:
            now_s = self._clock.monotonic_s()
            if now_s >= plan_at_s:
                plan_at_s = now_s + next(waits_s, PLAN_EVERY_S)
                await self.plan_depth()
            try:
                await self._look()
                if self.reason:
                    _log.info("backfill_goes_on")
                self.reason = ""
            except MarketdError as error:
                if not self.reason:
                    _log.warning("backfill_waits", reason=str(error))
                self.reason = str(error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        """Read what is missing, if nothing that was found before is left to do."""
        automatic = self.depth.minute_days > 0 or self.depth.daily_days > 0
        if not automatic or self._found or self._busy or self._ledger.pending:
            return
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        self._later = {key: until for key, until in self._later.items() if until > now_s}
        known = dict.fromkeys(self._known())
        self._put_off = {key: times for key, times in self._put_off.items() if key[0] in known}
        # What is put off must not take the place of what somebody can answer.
        waiting = {instrument for instrument, _ in self._later}
        rows = await self._ledger.store.missing(
            [instrument for instrument in known if instrument not in waiting], _MOST_SPANS
        )
        # What ended a moment ago is not asked for yet: the vendors are some minutes late.
        due = [row for row in rows if row.from_ms < now_ms - 2 * SETTLE_MS[row.type]]
        by_instrument: dict[str, list[CoverageSpan]] = {}
        for row in due:
            by_instrument.setdefault(row.instrument, []).append(row)
        windows: list[Window] = []
        async for part in slices(by_instrument.values(), _AT_ONCE):
            windows += plan([row for group in part for row in group], self.filler.offers, now_ms)
        for window in sorted(windows, key=newest_first):
            # A day that is not over, or was over a moment ago, would be found at every look.
            if (window.instrument, window.interval) not in self._later and self.filler.due(window, now_ms):
                self._found[window] = _Task(window)
        self._news.set()

    async def _work(self, *, found: bool) -> None:
        """Do what was asked for and, with `found`, what the ledger says is missing, for ever."""
        while True:
            if not await self._step(found=found):
                self._news.clear()
                # What waits for its time is looked at again; everything else comes with news.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5 if self._asked else None):
                        await self._news.wait()

    async def _work_off(self) -> None:
        while self._asked or self._busy:
            if not await self._step():
                await asyncio.sleep(0.1)

    async def _step(self, *, found: bool = False) -> bool:
        """Do one window; tell whether there was one to do now."""
        task = self._next(found=found)
        if task is None:
            return False
        window = task.window
        self._busy.add(window)
        try:
            if task.job is None:
                await self.giving_way.until_calm()
            outcome = await self.filler.fill(window, leave=_leaves(task))
        except (StorageError, TemporaryError) as error:
            self._again(task, 5.0, str(error))
        else:
            if outcome.later_s is not None:
                self._again(task, outcome.later_s, "; ".join(r.message for r in outcome.refusals), outcome)
            else:
                self._settled(task, outcome)
        finally:
            self._busy.discard(window)
        if task.job is None:
            # Nobody waits for it: live data has the process for itself in between.
            await asyncio.sleep(_FOUND_PAUSE_S)
        return True

    def _next(self, *, found: bool) -> _Task | None:
        now_s = self._clock.monotonic_s()
        for _ in range(len(self._asked)):
            task = self._asked.popleft()
            if task.not_before_s <= now_s:
                return task
            self._asked.append(task)
        if self._asked:
            # Those wait for a provider; the others would have to wait for the same one.
            return None
        if found and self._found:
            _, task = self._found.popitem(last=False)
            return task
        return None

    def _again(self, task: _Task, wait_s: float, why: str, outcome: FillOutcome | None = None) -> None:
        task.tries += 1
        if task.job is None:
            key = (task.window.instrument, task.window.interval)
            now_s, times = self._clock.monotonic_s(), self._put_off.get(key, -1)
            if self._later.get(key, 0.0) <= now_s:
                times = self._put_off[key] = min(times + 1, 10)
            self._later[key] = now_s + max(wait_s, min(_LATEST_S, _LATER_S * 2.0**times))
            return
        self._tell(task.job, outcome)
        if task.tries >= _MOST_TRIES:
            task.job.failed += 1
            self._finish_one(task.job)
            return
        task.job.waiting = why
        self._settlement.set()
        task.not_before_s = self._clock.monotonic_s() + min(wait_s, 60.0)
        self._asked.append(task)
        self._news.set()

    def _settled(self, task: _Task, outcome: FillOutcome) -> None:
        self._put_off.pop((task.window.instrument, task.window.interval), None)
        if task.job is not None:
            self._tell(task.job, outcome)
            task.job.bars += outcome.written
            task.job.answered += [code for code in outcome.sources if code not in task.job.answered]
            task.job.waiting = ""
            self._finish_one(task.job)

    def _tell(self, job: BackfillJob, outcome: FillOutcome | None) -> None:
        for refusal in outcome.refusals if outcome is not None else ():
            name = f"{refusal.provider_code} {refusal.reason}"
            job.refused[name] = job.refused.get(name, 0) + 1

    def _finish_one(self, job: BackfillJob) -> None:
        job.done += 1
        self._settlement.set()
        if job.done >= job.windows:
            job.finished_ms = self._clock.now_ms()


def _leaves(task: _Task) -> float:
    if task.job is None:
        return FOUND_LEAVES
    return ORDERED_LEAVES if task.job.id != _READER else 0.0


def _not_stored(instrument: str, interval: Interval, days: int, now_ms: int) -> Note:
    to_ms = now_ms - SETTLE_MS[interval]
    if interval == "1d":
        # Today's day is not over; it is fetched tomorrow, or when somebody asks.
        exchange = instrument.partition(":")[0]
        to_ms = midnight_ms(exchange, trading_day(exchange, now_ms))
    return Note(
        instrument=instrument,
        type=interval,
        state=MISSING,
        from_ms=now_ms - days * DAY_MS,
        to_ms=to_ms,
        reason="not stored",
    )
