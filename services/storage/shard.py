"""A shard of ingestion: the exchanges one daemon ingests, and the keys in Redis that are its own.

Pure. Every shard has a lease and a probe stream of its own, so that two shards on one Redis know nothing of
each other; shards with an exchange in common exclude each other (`redis_lease`). Without exchanges a daemon
ingests everything, under the keys without a suffix.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from services.market_data.records import PROBE_EXCHANGE
from services.storage.keys import FENCE, LEADER, LEASE

EVERYTHING = "*"


class Shard(msgspec.Struct, frozen=True):
    """The exchange codes in alphabetical order; none means all exchanges."""

    exchanges: tuple[str, ...] = ()

    @classmethod
    def of(cls, exchanges: Iterable[str]) -> Shard:
        """Return the shard of these exchange codes, whatever their order."""
        return cls(tuple(sorted(set(exchanges))))

    @classmethod
    def named(cls, name: str) -> Shard:
        """Return the shard of this `name`."""
        return cls() if name == EVERYTHING else cls.of(name.split(","))

    @property
    def name(self) -> str:
        """`BSE,NSE`, or `*` for all exchanges."""
        return ",".join(self.exchanges) or EVERYTHING

    @property
    def lease_keys(self) -> tuple[str, str, str]:
        """The keys of lease, fence and leader."""
        end = f":{self.name}" if self.exchanges else ""
        return f"{LEASE}{end}", f"{FENCE}{end}", f"{LEADER}{end}"

    @property
    def probe_exchange(self) -> str:
        """The exchange under which its health probes stand in a stream, `_PROBE` or `_PROBE:BSE,NSE`."""
        return f"{PROBE_EXCHANGE}:{self.name}" if self.exchanges else PROBE_EXCHANGE

    def covers(self, exchange: str) -> bool:
        """Tell whether it ingests an exchange."""
        return not self.exchanges or exchange in self.exchanges

    def overlaps(self, name: str) -> bool:
        """Tell whether it has an exchange in common with the shard called `name`."""
        return EVERYTHING in (name, self.name) or not set(self.exchanges).isdisjoint(name.split(","))
