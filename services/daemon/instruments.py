"""The instruments that are mapped and active, as the last accepted snapshot has them.

Loaded when mappings are; everything else of the daemon looks instruments up here.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.market_data.instruments import InstrumentMapping, MappingSnapshot


class KnownInstruments:
    """Every instrument with the mapping that stands for it: the primary one, or the first in order.

    `pinned` (keys or `EXCHANGE:*`) are those whose past is kept without being asked for; None: all.
    """

    def __init__(self, pinned: Sequence[str] | None) -> None:
        self._pinned = pinned
        self.mappings: dict[str, InstrumentMapping] = {}
        self.exchanges: frozenset[str] = frozenset()

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over a snapshot."""
        mappings: dict[str, InstrumentMapping] = {}
        for mapping in snapshot.mappings:
            known = mappings.get(mapping.instrument)
            if known is None or _rank(mapping) < _rank(known):
                mappings[mapping.instrument] = mapping
        self.mappings = mappings
        self.exchanges = frozenset(mapping.exchange for mapping in snapshot.mappings)

    def __contains__(self, instrument: object) -> bool:
        return instrument in self.mappings

    def __len__(self) -> int:
        return len(self.mappings)

    def kept_past(self) -> list[str]:
        """Return the instruments whose past is kept without being asked for."""
        if self._pinned is None:
            return list(self.mappings)
        return [
            key
            for key in self.mappings
            if key in self._pinned or f"{key.partition(':')[0]}:*" in self._pinned
        ]


def _rank(mapping: InstrumentMapping) -> tuple[bool, int, str]:
    return (not mapping.is_primary, mapping.priority, mapping.provider_code)
