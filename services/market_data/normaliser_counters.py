"""What became of the records of one provider: the normaliser's side of the conservation ledger."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class NormaliserCounters:
    """What became of the records of one provider. `merged` are reference updates without a price.

    `noted` counts remarks on accepted ticks (`off_tick`, `skewed`, `clock_stepped`, `volume_rebased` at a new
    day, `volume_backwards` within one, `suspect`, `late`).
    """

    records: int = 0
    accepted: int = 0
    merged: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        """Count one refused record."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def note(self, remark: str) -> None:
        """Count one remark on an accepted tick."""
        self.noted[remark] = self.noted.get(remark, 0) + 1


@dataclass(slots=True)
class ExchangeTally:
    """What was not as it should be in the records of one exchange, for its quality score."""

    duplicates: int = 0
    late: int = 0
