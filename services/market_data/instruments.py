"""What an instrument is, and under which name each provider knows it.

Built from PostgreSQL by `catalogue`, used by the normaliser, the router and the gateway.
Immutable: a changed mapping is a new object in a new snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from sys import intern

import msgspec


class AssetClass(str, Enum):
    """The kinds of instrument the instruments table allows."""

    EQUITY = "equity"
    ETF = "etf"
    INDEX = "index"
    FUTURE = "future"
    OPTION = "option"
    FX = "fx"
    CRYPTO = "crypto"


EXCHANGE_CODES = ("NASDAQ", "NYSE", "ARCA", "NSE", "BSE", "NFO", "BFO", "MCX", "CDS", "CRYPTO", "FX", "INDEX")


class InstrumentMapping(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One instrument as one provider knows it; one row of `provider_instrument_mappings`, joined.

    `instrument` is the instrument key `EXCHANGE:SYMBOL`. `priority` orders the providers of an
    exchange, smallest first, the primary before all others. `tick_size` is in the currency of the
    price, None where the exchange has none. `delivery` is how fresh this provider's data of the exchange is
    (`real_time`, `delayed` or `end_of_day`; None: as the provider promises), `allow_delayed` whether
    delayed data may stand in for real-time data. The mapping holds from `valid_from_ms` until just before
    `valid_to_ms` (UTC epoch ms, None: always); a contract's ends with its last day of trading.
    """

    mapping_id: int
    instrument: str
    exchange: str
    symbol: str
    name: str
    asset_class: AssetClass
    currency: str
    provider_code: str
    search_code: str
    segment: str | None = None
    security_id: str | None = None
    tick_size: float | None = None
    lot_size: int | None = None
    is_primary: bool = False
    priority: int = 100
    delivery: str | None = None
    allow_delayed: bool = False
    valid_from_ms: int | None = None
    valid_to_ms: int | None = None

    @property
    def provider_symbol(self) -> str:
        """The name handed to `subscribe_symbols`: `NSE_EQ:2885` where there are segments, else `AAPL`."""
        if self.segment and self.security_id:
            # Many tables are keyed by it: all of them hold the same text.
            return intern(f"{self.segment}:{self.security_id}")
        return self.search_code


class ProviderEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One active row of `providers`. `rate_limit` is in requests per second, None where there is none."""

    code: str
    name: str
    rate_limit: float | None = None
    is_active: bool = True


class MappingSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the tables say at one moment: active providers, and active mappings of active exchanges.

    `version` grows by one with every snapshot of a running daemon; `loaded_ms` is UTC epoch ms.
    `from_cache` says that PostgreSQL was down and the last good copy on disk was used. `upcoming` are the
    mappings that begin to hold later. `permit` is the newest permission to remove many instruments at once.
    `switched_off` are the pairs of exchange and provider that stand in the tables and are not active.
    """

    version: int
    loaded_ms: int
    providers: tuple[ProviderEntry, ...]
    mappings: tuple[InstrumentMapping, ...]
    from_cache: bool = False
    upcoming: tuple[InstrumentMapping, ...] = ()
    permit: int = 0
    switched_off: tuple[tuple[str, str], ...] = ()


Candidates = Mapping[str, tuple[InstrumentMapping, ...]]
"""The mappings of each instrument, in the order of preference."""

_newest: tuple[tuple[InstrumentMapping, ...], Candidates] = ((), {})


def candidates_of(mappings: tuple[InstrumentMapping, ...]) -> Candidates:
    """Return the mappings of each instrument: the primary one first, then by priority, then by code.

    Of the newest snapshot everybody is given the same table: it is as large as the snapshot itself.
    """
    global _newest  # noqa: PLW0603 - what is kept says the same as the mappings it was made of
    made_of, table = _newest
    if made_of is mappings:
        return table
    found: dict[str, tuple[InstrumentMapping, ...]] = {}
    for mapping in mappings:
        found[mapping.instrument] = (*found.get(mapping.instrument, ()), mapping)
    for key, rows in found.items():
        if len(rows) > 1:
            found[key] = tuple(
                sorted(rows, key=lambda row: (not row.is_primary, row.priority, row.provider_code))
            )
    _newest = (mappings, found)
    return found
