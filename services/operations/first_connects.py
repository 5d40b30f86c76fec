"""A daemon that crashes again and again does not hammer the providers: their back-off outlives the process.

Keeps, per provider, when a process last made its first connection, in `STATE_DIR/first_connects.json`.
After a clean stop, or half a minute of life, the next start connects at once; so does the first start
after a crash. From the second crash in a row on it waits, twice as long each time, up to a minute since
the last attempt.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import structlog

from services.market_data.clock import Clock
from services.operations.state_dir import write_private

_log = structlog.get_logger(__name__)

FILE = "first_connects.json"
STEADY_S = 30.0
LONGEST_WAIT_S = 60.0


class _Attempt(msgspec.Struct):
    """A process connects first: when (UTC epoch ms), after how many crashes; whether it ended well."""

    at_ms: int
    crashes: int = 0
    settled: bool = False


class FirstConnects:
    """Says how long each provider's first connection of this process waits, by what `path` remembers."""

    def __init__(self, path: Path, clock: Clock, rng: random.Random | None = None) -> None:
        self._path = path
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._before: dict[str, _Attempt] | None = None
        self._now: dict[str, _Attempt] = {}

    def wait_s(self, code: str) -> float:
        """Return how many seconds the first connection of provider `code` is to wait; 0 for any later one."""
        before = self._read().get(code)
        if code in self._now or before is None or before.settled or before.crashes < 1:
            return 0.0
        # Never the full doubling for all: several daemons of one account must not come at once.
        wait_s = min(LONGEST_WAIT_S, 2.0**before.crashes) * self._rng.uniform(0.5, 1.0)
        # A clock that was set back must not make it longer.
        left_s = min(wait_s, wait_s - (self._clock.now_ms() - before.at_ms) / 1000)
        if left_s <= 0:
            return 0.0
        _log.warning(
            "first_connect_delayed", provider=code, seconds=round(left_s, 1), crashes=before.crashes + 1
        )
        return left_s

    async def note(self, code: str) -> None:
        """Remember that `code` makes its first connection of this process now."""
        if code in self._now:
            return
        before = self._read().get(code)
        crashes = 0 if before is None or before.settled else before.crashes + 1
        self._now[code] = _Attempt(self._clock.now_ms(), crashes)
        await self._save()

    async def run(self) -> None:
        """Count every attempt that the process has survived for a while as settled, until cancelled."""
        while True:
            await asyncio.sleep(STEADY_S / 3)
            await self._settle(self._clock.now_ms() - round(STEADY_S * 1000))

    async def stopped(self) -> None:
        """Take note of a clean stop."""
        await self._settle(None)

    async def _settle(self, older_than_ms: int | None) -> None:
        fresh = [
            attempt
            for attempt in self._now.values()
            if not attempt.settled and (older_than_ms is None or attempt.at_ms <= older_than_ms)
        ]
        for attempt in fresh:
            attempt.settled = True
        if fresh:
            await self._save()

    def _read(self) -> dict[str, _Attempt]:
        if self._before is None:
            try:
                self._before = msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Attempt])
            except (OSError, msgspec.DecodeError):
                self._before = {}
        return self._before

    async def _save(self) -> None:
        text = msgspec.json.encode(self._read() | self._now).decode()
        try:
            await asyncio.to_thread(write_private, self._path, text + "\n")
        except OSError as error:
            _log.warning("first_connects_not_saved", error=error.strerror)
