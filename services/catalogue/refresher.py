"""Keeps the mapping snapshot in use at what the tables say, and knows how well that goes.

Stands between the loader and the daemon. Decides which snapshot is accepted (only such a one becomes
the last good copy on disk); what accepting means is its user's business. While PostgreSQL is away, or
refuses us, the snapshot in use stays: data flows on, edits of the tables wait. What begins or ends by its
date does so at that moment, without an edit and without PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum

import msgspec
import structlog

from services.catalogue.acceptance import OVERRIDE, next_date_ms, refusal, same_content
from services.catalogue.loader import Catalogue
from services.catalogue.validation import MappingProblem, MappingsInvalid
from services.catalogue.watch import MappingWatch
from services.errors import ConfigurationError, MarketdError, TemporaryError
from services.market_data.instruments import MappingSnapshot
from services.pipeline.backoff import Backoff
from services.pipeline.supervisor import end_together

_log = structlog.get_logger(__name__)

FIRST_WITHIN_S = 10.0
"""How long a start waits for PostgreSQL when there is no copy: it may be starting beside us."""


_LONGEST_WAIT_S = 30.0
"""The clock may be set meanwhile: the next date is looked at again after this time."""


class RefreshState(str, Enum):
    """How the mappings in use stand to the tables."""

    CURRENT = "current"
    UNREACHABLE = "unreachable"
    """PostgreSQL does not serve; tried again by itself."""
    PARKED = "parked"
    """PostgreSQL refuses login, privilege or schema: an operator must act; looked at twice a minute."""
    REFUSED = "refused"
    """The tables say something that is not taken over."""


class MappingStatus(msgspec.Struct, frozen=True):
    """The state with its reason in words, empty while all is well.

    `problems` are what the tables say wrongly while they are refused. `next_date_ms` is when a mapping next
    begins or ceases to hold, UTC epoch ms.
    """

    state: RefreshState
    reason: str
    problems: tuple[MappingProblem, ...] = ()
    next_date_ms: int | None = None


class MappingRefresher:
    """Gives the first snapshot, then every accepted change. `run` may be restarted at any time."""

    def __init__(self, catalogue: Catalogue, watch: MappingWatch) -> None:
        self._catalogue = catalogue
        self._watch = watch
        self._retries = Backoff(base_s=0.5, cap_s=10.0, floor_s=0.2, reset_after_s=0.0)
        self._state = RefreshState.CURRENT
        self._reason = ""
        self._problems: tuple[MappingProblem, ...] = ()
        self._taking_over = asyncio.Lock()
        self._replaced = asyncio.Event()
        self._next_date_ms: int | None = None
        self.current: MappingSnapshot | None = None
        """The snapshot in use."""

    @property
    def status(self) -> MappingStatus:
        """How the snapshot in use stands to the tables."""
        return MappingStatus(self._state, self._reason, self._problems, self._next_date_ms)

    async def use_url(self, database_url: str) -> None:
        """Use another URL of the same database from now on, as after a changed password, at once."""
        await self._catalogue.use_url(database_url)
        self._watch.use_url(database_url)

    def look_now(self) -> None:
        """Read the tables at once instead of at the end of a wait."""
        self._watch.poke()

    async def first(self, within_s: float = FIRST_WITHIN_S) -> MappingSnapshot:
        """Return the snapshot to start with: the tables', or the last good copy while they are away.

        With neither it keeps trying for `within_s` seconds and says why; then raises `TemporaryError`, for
        whoever started the process to start it again. Raises `ConfigurationError` at once when an operator
        must act first. Tables that say something wrong are refused, and the last good copy taken.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        said = False
        while True:
            try:
                await self._catalogue.check_schema()
                snapshot = await self._catalogue.load()
                break
            except MappingsInvalid as error:
                snapshot = await self._catalogue.last_good(error)
                self._enter(RefreshState.REFUSED, str(error), error.problems)
                break
            except TemporaryError as error:
                wait_s = self._retries.next_wait_s()
                if loop.time() + wait_s >= deadline_s:
                    raise
                if not said:
                    said = True
                    _log.warning("mappings_awaited", reason=str(error), within_s=within_s)
            await asyncio.sleep(wait_s)
        self._retries.succeeded(0.0)
        if snapshot.from_cache and self._state is RefreshState.CURRENT:
            self._state = RefreshState.UNREACHABLE
            self._reason = "PostgreSQL could not be reached at the start"
        await self._use(snapshot)
        return snapshot

    async def run(self, apply: Callable[[MappingSnapshot], Awaitable[None]]) -> None:
        """Take over every committed change, and every date that comes, by `apply(snapshot)`."""
        await end_together(
            ("mappings:edits", self._follow_edits(apply)), ("mappings:dates", self._follow_dates(apply))
        )

    async def _follow_edits(self, apply: Callable[[MappingSnapshot], Awaitable[None]]) -> None:
        async for reason in self._watch.changes():
            if reason == "lost":
                if self._watch.problem is not None:
                    self._trouble(self._watch.problem)
                continue
            try:
                await self._catalogue.check_schema()
                proposed = await self._catalogue.read()
            except MappingsInvalid as error:
                self._retries.succeeded(0.0)
                self._enter(RefreshState.REFUSED, str(error), error.problems)
                continue
            except MarketdError as error:
                self._trouble(error)
                if not isinstance(error, ConfigurationError):
                    self._watch.look_within_s = self._retries.next_wait_s()
                continue
            self._retries.succeeded(0.0)
            async with self._taking_over:
                await self._consider(proposed, apply)

    async def _consider(
        self, proposed: MappingSnapshot, apply: Callable[[MappingSnapshot], Awaitable[None]]
    ) -> None:
        current = self.current
        # Long tables take longer to compare than the event loop may stand still.
        changed, why = await asyncio.to_thread(_judge, current, proposed)
        if why is not None:
            self._enter(RefreshState.REFUSED, f"{why.text}; if that is meant: {OVERRIDE}", (why,))
            return
        self._enter(RefreshState.CURRENT, "")
        if changed:
            await apply(proposed)
        if current is not None and not changed and not current.from_cache:
            # The objects in use stay, so that what is kept of them elsewhere is not held twice.
            proposed = msgspec.structs.replace(current, permit=proposed.permit)
        await self._use(proposed)

    async def _use(self, snapshot: MappingSnapshot) -> None:
        self.current = snapshot
        date_ms = await asyncio.to_thread(next_date_ms, snapshot)
        if date_ms != self._next_date_ms:
            self._next_date_ms = date_ms
            self._replaced.set()
        await self._catalogue.keep(snapshot)

    async def _follow_dates(self, apply: Callable[[MappingSnapshot], Awaitable[None]]) -> None:
        """Change to what the tables say from a date on, at that date."""
        clock = self._catalogue.clock
        while True:
            self._replaced.clear()
            due_ms = self._next_date_ms
            now_ms = clock.now_ms()
            if due_ms is not None and due_ms <= now_ms:
                async with self._taking_over:
                    if self.current is not None:
                        snapshot = await self._catalogue.advance(self.current)
                        await apply(snapshot)
                        await self._use(snapshot)
                        _log.info("mapping_dates_passed", version=snapshot.version, date_ms=due_ms)
                continue
            wait_s = _LONGEST_WAIT_S if due_ms is None else min(_LONGEST_WAIT_S, (due_ms - now_ms) / 1000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._replaced.wait()

    def _trouble(self, error: MarketdError) -> None:
        parked = isinstance(error, ConfigurationError)
        self._enter(RefreshState.PARKED if parked else RefreshState.UNREACHABLE, str(error))

    def _enter(self, state: RefreshState, reason: str, problems: tuple[MappingProblem, ...] = ()) -> None:
        """Log a change of state once; a refusal again when it is another one."""
        said = self._state is state and (state is not RefreshState.REFUSED or self._reason == reason)
        self._state, self._reason, self._problems = state, reason, problems
        if said:
            return
        if state is RefreshState.CURRENT:
            _log.info("mappings_current")
        elif state is RefreshState.UNREACHABLE:
            _log.warning("mappings_unreachable", reason=reason)
        else:
            _log.error(f"mappings_{state.value}", reason=reason)


def _judge(current: MappingSnapshot | None, proposed: MappingSnapshot) -> tuple[bool, MappingProblem | None]:
    """Return whether something changed, and why the change is refused, None when it is not."""
    if current is None:
        return True, None
    if same_content(current, proposed):
        return False, None
    return True, refusal(current, proposed)
