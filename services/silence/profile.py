"""How busy each part of a session usually is, shared by all instruments of a feed. Pure.

Parts are a quarter of an hour from the open of the session, so that time zones, summer time and lunch breaks
need no care. It begins as a guess (the open and the close of a stock exchange are busier) and is corrected by
every ordinary day.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.market_data.calendar import Session

PART_MS = 900_000
PARTS = 96
_LONG_SESSION_MS = 12 * 3_600_000
_FIRST_BLEND, _BLEND = 0.5, 0.25
_LEAST, _MOST = 0.1, 8.0
_STEADY = 1.25
"""A day counts only when the busiest part saw at most so many times the instruments of the emptiest."""


class IntradayProfile:
    """The weight of each part of a session; 1.0 is the usual rate."""

    def __init__(self) -> None:
        self.days = 0
        self._weights: list[float] = []
        self._ticks: dict[int, float] = {}
        self._exposure_s: dict[int, float] = {}
        self._armed: dict[int, int] = {}

    def weight(self, session: Session, at_ms: int) -> float:
        """Return how busy `at_ms` usually is within `session`."""
        if not self._weights:
            self._weights = _guess(session)
        part = (at_ms - session.open_ms) // PART_MS
        return self._weights[part] if 0 <= part < len(self._weights) else 1.0

    def observe(self, session: Session, at_ms: int, ticks: int, exposure_s: float, armed: int) -> None:
        """Take note of ticks in so many seconds times instruments; only while nothing is wrong."""
        part = (at_ms - session.open_ms) // PART_MS
        self._ticks[part] = self._ticks.get(part, 0.0) + ticks
        self._exposure_s[part] = self._exposure_s.get(part, 0.0) + exposure_s
        self._armed[part] = armed

    def end_of_session(self) -> None:
        """Learn from the session that ended, if it was seen for long enough with the same instruments."""
        rates = {
            part: self._ticks[part] / exposure_s
            for part, exposure_s in self._exposure_s.items()
            if exposure_s > 0 and part < len(self._weights)
        }
        armed = [self._armed[part] for part in rates]
        self._ticks, self._exposure_s, self._armed = {}, {}, {}
        if len(rates) < 4 or sum(rates.values()) <= 0 or max(armed) > _STEADY * min(armed):
            return
        # Parts that were not seen keep their weight, and so does the level of those that were.
        scale = sum(self._weights[part] for part in rates) / sum(rates.values())
        blend = _BLEND if self.days else _FIRST_BLEND
        for part, rate in rates.items():
            new = min(_MOST, max(_LEAST, rate * scale))
            self._weights[part] += blend * (new - self._weights[part])
        self.days += 1

    def state(self) -> list[float]:
        """Return the weights, fit for JSON."""
        return [round(weight, 3) for weight in self._weights] if self.days else []

    def restore(self, weights: Sequence[float], days: int) -> None:
        """Take over the weights of an earlier run."""
        self._weights = [min(_MOST, max(_LEAST, float(weight))) for weight in weights[:PARTS]]
        self.days = days


def _guess(session: Session) -> list[float]:
    length_ms = session.close_ms - session.open_ms
    parts = min(PARTS, -(-length_ms // PART_MS))
    if length_ms >= _LONG_SESSION_MS or parts < 4:
        return [1.0] * parts
    weights = [0.85] * parts
    weights[0], weights[1] = 2.0, 1.4
    weights[-2:] = [1.2, 1.4]
    return weights
