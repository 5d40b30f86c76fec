"""The series of bars of one instrument and interval, and how bars that came otherwise are stored in them.

Used by the bar series writer, which has the live bars, and by history, which has those of the providers.
Only bars of regular sessions are kept as series. A bar is one sample in each of five series at its start;
an unknown volume is no sample. Storing the same bar again changes nothing.
"""

from __future__ import annotations

from typing import cast

from services.storage.keys import BAR_FIELDS, BarField, bar_labels, bar_series
from services.storage.resp import bulk, command

CHUNK_BYTES: dict[str, int] = {"1m": 512, "5m": 256}
"""By interval, 128 for the others: small steps for series that stay short, larger ones where the overhead of
every step counts (measured: a minute bar takes 49 bytes in steps of 128, 31 in steps of 512)."""
_SMALL_CHUNK_BYTES = 128
_CHUNK_BARS = 200


class BarSeries:
    """Everything a writer must know of one instrument's bars of one interval."""

    __slots__ = ("exchange", "heads", "instrument", "interval", "made")

    def __init__(self, instrument: str, exchange: str, interval: str) -> None:
        self.instrument = instrument
        self.exchange = exchange
        self.interval = interval
        self.heads = tuple(bulk(bar_series(instrument, interval, field)) for field in BAR_FIELDS)
        self.made = 0

    def key(self, field: str) -> str:
        """Return the key of the series of `field`."""
        return bar_series(self.instrument, self.interval, cast(BarField, field))

    def forget(self, field: str) -> None:
        """Assume no longer that the series of `field` exists."""
        self.made &= ~(1 << BAR_FIELDS.index(cast(BarField, field)))

    def create(self, field: str, retention_ms: int) -> str:
        """Return the command that makes the series of `field`; it fails where there is one."""
        return command("TS.CREATE", *self.definition(field, retention_ms))

    def correct(self, field: str, retention_ms: int) -> str:
        """Return the command that gives an existing series of `field` our retention, policy and labels."""
        return command("TS.ALTER", *self.definition(field, retention_ms))

    def definition(self, field: str, retention_ms: int) -> tuple[str, ...]:
        """Return key and options of the series of `field`."""
        labels = bar_labels(self.instrument, self.exchange, self.interval, cast(BarField, field))
        return (
            self.key(field),
            "RETENTION",
            str(retention_ms),
            "CHUNK_SIZE",
            str(CHUNK_BYTES.get(self.interval, _SMALL_CHUNK_BYTES)),
            "DUPLICATE_POLICY",
            "LAST",
            "LABELS",
            *(text for label in labels.items() for text in label),
        )
