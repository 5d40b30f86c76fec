"""A market for the judge of silence: steady providers whose faults are switched on by hand."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from services.market_data.calendar import MarketCalendar
from services.silence.judge import Change, Finding, Judgement, Pulse, SilenceJudge


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class Stage:
    """Instruments by (provider, key) with a rate each; `live` plays seconds and collects the changes.

    `faults` maps the same pair to `mute`, `brown_out`, `frozen` (ticks whose time stands) or `old` (ticks
    whose time is ten minutes old).
    """

    def __init__(self, at: str, *, seed: int = 7, judge: SilenceJudge | None = None) -> None:
        self.calendar = MarketCalendar()
        self.judge = judge or SilenceJudge(self.calendar)
        self.now_ms, self.now_s = utc(at), 5_000.0
        self.random = random.Random(seed)
        self.rates: dict[tuple[str, str], float] = {}
        self.pulses: dict[tuple[str, str], Pulse] = {}
        self.faults: dict[tuple[str, str], str] = {}
        self.changes: list[tuple[float, Change]] = []
        self.trades_when_closed = False

    def arm(self, provider: str, rates: dict[str, float]) -> None:
        for instrument, rate in rates.items():
            key = (provider, instrument)
            self.rates[key] = rate
            pulse = self.pulses.setdefault(key, Pulse())
            self.judge.arm(provider, instrument, instrument.partition(":")[0], pulse, self.now_ms)

    def live(self, seconds: int) -> list[Change]:
        """Play so many seconds and return what changed in them."""
        new: list[Change] = []
        for _ in range(seconds):
            self.now_ms += 1_000
            self.now_s += 1.0
            for key, rate in self.rates.items():
                if self.trades_when_closed or self.calendar.in_session(
                    key[1].partition(":")[0], self.now_ms - 500
                ):
                    self._tick(key, rate)
            found = self.judge.look(self.now_ms, self.now_s)
            self.changes += [(self.now_s, change) for change in found]
            new += found
        return new

    def until(self, provider: str, instrument: str, finding: Finding, within_s: int) -> int:
        """Play until that is found; returns after how many seconds."""
        for second in range(1, within_s + 1):
            self.live(1)
            if self.of(provider, instrument).finding is finding:
                return second
        raise AssertionError(
            f"not {finding} within {within_s} s, but {self.of(provider, instrument)} "
            f"{self.judge.provider_judgement(provider, instrument.partition(':')[0])}"
        )

    def of(self, provider: str, instrument: str) -> Judgement:
        return self.judge.judgement(provider, instrument)

    def _tick(self, key: tuple[str, str], rate: float) -> None:
        fault = self.faults.get(key, "")
        if fault == "mute":
            return
        count = self._poisson(rate * (0.02 if fault == "brown_out" else 1.0))
        if count:
            pulse = self.pulses[key]
            pulse.ticks += count
            pulse.received_ms = self.now_ms - 100
            if fault == "old":
                pulse.event_ms = self.now_ms - 600_000
            elif fault != "frozen":
                pulse.event_ms = self.now_ms - 600
            pulse.price = 100.0

    def _poisson(self, mean: float) -> int:
        count, left = 0, self.random.expovariate(1.0)
        while left < mean:
            count += 1
            left += self.random.expovariate(1.0)
        return count


def faults(changes: list[Change]) -> list[tuple[str, str, Finding]]:
    """Return the faults that began: provider, instrument (empty: its feed), finding."""
    return [
        (change.provider, change.instrument, change.now.finding)
        for change in changes
        if change.now.finding.is_fault
    ]
