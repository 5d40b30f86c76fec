"""How often a provider may be asked: evenly spaced requests, a number a day, and pauses it asks for.

Stands before every request for a vendor's data: past bars, option chains, news. One quota per provider and
process: limits count per account, so nothing else may ask beside it. Waits by the monotonic clock; the day
is the vendor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from math import ceil
from pathlib import Path

import msgspec
import structlog

from services.errors import ProviderRateLimited
from services.market_data.clock import Clock

_log = structlog.get_logger(__name__)

_MARGIN = 0.9
"""The part of a documented rate that is used: the vendor's clock is not ours."""
_SAVED_EVERY = 10


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`per_second` requests, evenly, after a pause `burst` of them at once; `per_day` in all (0: no limit) by
    the day `day_offset_s` east of UTC."""

    per_second: float
    burst: int = 1
    per_day: int = 0
    day_offset_s: int = 0


class _Saved(msgspec.Struct):
    day: str
    used: int


class Quota:
    """The budget of one provider. `file` keeps what was used today over restarts; None keeps nothing."""

    def __init__(self, code: str, limits: QuotaLimits, clock: Clock, file: Path | None = None) -> None:
        self.code = code
        self.limits = limits
        self._clock = clock
        self._file = file
        self._next_s = 0.0
        self._paused_s = 0.0
        self._pause_reason = ""
        self._saved = self._read()
        self.taken = 0
        self.refused: dict[str, int] = {}

    @property
    def used_today(self) -> int:
        """How many requests were made today, of this and of former runs."""
        return self._saved.used if self._saved.day == self._today() else 0

    @property
    def left_today(self) -> int | None:
        """How many requests may still be made today; None where there is no limit."""
        return max(0, self.limits.per_day - self.used_today) if self.limits.per_day else None

    def left_beyond(self, leave: float) -> int | None:
        """Return how many requests may still be made today by who leaves so much of the day."""
        left = self.left_today
        return None if left is None else max(0, left - ceil(leave * self.limits.per_day))

    async def take(self, patience_s: float, *, leave: float = 0.0) -> None:
        """Wait for leave to make one request, at most `patience_s` seconds.

        `leave` is the part of the day's number that is left for others. Raises `ProviderRateLimited` at once
        when it would take longer or nothing is left of the day.
        """
        if self.left_beyond(leave) == 0:
            left, per_day = self.left_today, self.limits.per_day
            told = f"{self.used_today} of its {per_day} requests of the day are used"
            self._refuse(
                "quota_day", told + (f", {left} are left for what matters more" if left else ""), None
            )
        now_s = self._clock.monotonic_s()
        every_s = 1.0 / (self.limits.per_second * _MARGIN)
        due_s = max(self._next_s, self._paused_s, now_s - (self.limits.burst - 1) * every_s)
        at_s = max(now_s, due_s)
        if at_s - now_s > patience_s:
            reason = "quota_pause" if self._paused_s >= self._next_s else "quota_second"
            told = self._pause_reason if reason == "quota_pause" else "other requests come first"
            self._refuse(reason, told, at_s - now_s)
        self._next_s = due_s + every_s
        self._count()
        if at_s > now_s:
            await asyncio.sleep(at_s - now_s)

    def pause(self, wait_s: float, reason: str) -> None:
        """Ask nothing for `wait_s` seconds: the provider said that it was too much."""
        self._paused_s = max(self._paused_s, self._clock.monotonic_s() + wait_s)
        self._pause_reason = reason
        _log.warning("provider_requests_paused", provider=self.code, wait_s=wait_s, reason=reason)

    @property
    def paused_s(self) -> float:
        """For how many seconds nothing is asked yet; 0 when asking is allowed."""
        return max(0.0, self._paused_s - self._clock.monotonic_s())

    def save(self) -> None:
        """Write down what was used today; trouble with the disk is logged."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(self._saved))
            part.replace(self._file)
        except OSError as error:
            _log.warning("quota_not_saved", path=str(self._file), error=str(error))

    def _refuse(self, reason: str, told: str, wait_s: float | None) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        raise ProviderRateLimited(
            f"{self.code} is not asked now: {told}", reason=reason, retry_after_s=wait_s
        )

    def _count(self) -> None:
        self.taken += 1
        today = self._today()
        if self._saved.day != today:
            self._saved = _Saved(today, 0)
        self._saved.used += 1
        if self._saved.used % _SAVED_EVERY == 1:
            # What a crash forgets is counted in advance.
            used, self._saved.used = self._saved.used, self._saved.used + _SAVED_EVERY - 1
            self.save()
            self._saved.used = used

    def _today(self) -> str:
        zone = timezone(timedelta(seconds=self.limits.day_offset_s))
        return datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC).astimezone(zone).date().isoformat()

    def _read(self) -> _Saved:
        if self._file is not None:
            try:
                return msgspec.json.decode(self._file.read_bytes(), type=_Saved)
            except (OSError, msgspec.DecodeError):
                pass
        return _Saved("", 0)


QuotaFactory = Callable[[str, QuotaLimits], Quota]
