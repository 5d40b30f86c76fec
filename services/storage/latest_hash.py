"""What the latest-value writer knows of one instrument's hash."""

from __future__ import annotations

from services.market_data.records import DataIngestionFormat
from services.storage.entry import ALL_FIELDS
from services.storage.resp import bulk


class LatestHash:
    """One instrument's hash: the prepared start of its command, which fields it may hold, its newest tick."""

    __slots__ = ("head", "key", "mask", "newest")

    def __init__(self, key: str) -> None:
        self.key = key
        self.head = bulk("HSET") + bulk(key)
        # An earlier run may have left any field.
        self.mask = ALL_FIELDS
        self.newest: DataIngestionFormat | None = None
