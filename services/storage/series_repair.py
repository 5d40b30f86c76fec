"""Which time series do not take our samples, and the commands that make them do so again.

Used by the writers of series, which put the commands in front of the refused batch. A repair that did not
help is not tried again for a while, and a sample in the future is deleted once a series and hour: what is
refused after that is really refused, and counted. Does no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from services.market_data.clock import Clock
from services.storage.failures import Reason
from services.storage.resp import command
from services.storage.retention import Retention

if TYPE_CHECKING:
    from services.storage.series_sink import Series

_log = structlog.get_logger(__name__)

MENDABLE = frozenset({Reason.MISSING_SERIES, Reason.DUPLICATE_BLOCKED})
"""Refusals that commands in front of the same batch can undo: make the series as it should be."""
_BEYOND_REPAIR_S = 60.0
_FUTURE_MS = 5_000
_POISON_EVERY_S = 3_600.0
_LATEST_MS = str(2**63 - 1)


class SeriesRepair:
    """Remembers what was repaired, and what could not be."""

    def __init__(self, clock: Clock, retention: Retention) -> None:
        self._clock = clock
        self._retention = retention
        self._beyond_repair: dict[str, tuple[float, Reason]] = {}
        self._cleansed_s: dict[str, float] = {}

    def mend(self, series: Series, field: str, reason: Reason) -> tuple[str, ...]:
        """Return the commands that make a series take our samples again."""
        if reason is Reason.OLDER_THAN_RETENTION:
            future_ms = str(self._clock.now_ms() + _FUTURE_MS)
            return (command("TS.DEL", series.key(field), future_ms, _LATEST_MS),)
        kept_ms = self._retention.of(series.exchange)
        return (series.create(field, kept_ms), series.correct(field, kept_ms))

    def is_poisoned(self, series: Series, field: str, at_ms: int) -> bool:
        """Tell whether a fresh sample is refused as too old: then one in the future stands in its way.

        True once a series and hour.
        """
        if self._clock.now_ms() - at_ms >= self._retention.of(series.exchange) - _FUTURE_MS:
            return False
        key = series.key(field)
        now_s = self._clock.monotonic_s()
        cleansed_s = self._cleansed_s.get(key)
        if cleansed_s is not None and now_s - cleansed_s < _POISON_EVERY_S:
            return False
        self._cleansed_s[key] = now_s
        _log.error("series_poisoned", series=key, action="samples dated in the future are deleted")
        return True

    def give_up_on(self, series: Series, field: str, reason: Reason) -> None:
        """Try no repair of this series for a while: it did not help."""
        until_s = self._clock.monotonic_s() + _BEYOND_REPAIR_S
        self._beyond_repair[series.key(field)] = (until_s, reason)

    def given_up(self, series: Series, field: str) -> Reason | None:
        """Return why this series is not to be repaired just now, None when it may be tried."""
        until_s, reason = self._beyond_repair.get(series.key(field), (0.0, None))
        return reason if self._clock.monotonic_s() < until_s else None
