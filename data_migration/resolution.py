"""From the list people write, and Dhan's master, to what the tables shall hold. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from decimal import Decimal

import msgspec

from data_migration.sources.dhan_scrip_master import ScripMaster
from data_migration.sources.dhan_scrip_rows import ScripRow
from data_migration.sources.instrument_list import ListedInstrument, Problem
from data_migration.sources.yahoo_symbols import yahoo_symbol

DHAN_EXCHANGES = frozenset({"NSE", "BSE", "NFO", "BFO", "MCX", "CDS"})


class WantedMapping(msgspec.Struct, frozen=True, gc=False):
    """Under which names a provider shall be asked for an instrument."""

    provider: str
    search_code: str
    segment: str | None = None
    security_id: str | None = None


class WantedInstrument(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument as the tables shall hold it. None leaves what is there."""

    exchange: str
    symbol: str
    name: str
    asset_class: str
    currency: str
    tick_size: Decimal | None = None
    lot_size: int | None = None
    underlying: str | None = None
    expiry: date | None = None
    strike: Decimal | None = None
    option_type: str | None = None
    isin: str | None = None
    mappings: tuple[WantedMapping, ...] = ()

    @property
    def key(self) -> str:
        """The instrument key."""
        return f"{self.exchange}:{self.symbol}"


class Resolution(msgspec.Struct):
    """What the sources say together. With a problem nothing of it is to be written."""

    instruments: list[WantedInstrument] = msgspec.field(default_factory=list)
    problems: list[Problem] = msgspec.field(default_factory=list)
    not_at_dhan: list[str] = msgspec.field(default_factory=list)
    without_provider: list[str] = msgspec.field(default_factory=list)


def resolve(rows: Iterable[ListedInstrument], master: ScripMaster | None) -> Resolution:
    """Return the instruments of the list with their names at each provider.

    Without `master` nothing is mapped to Dhan. Two rows that mean the same thing to a provider are
    problems, at the line of the second.
    """
    resolution = Resolution()
    taken: dict[tuple[str, str | None, str, str], tuple[str, int]] = {}
    for row in rows:
        scrip = _find(row, master) if master is not None and row.exchange in DHAN_EXCHANGES else None
        if master is not None and row.exchange in DHAN_EXCHANGES and scrip is None:
            resolution.not_at_dhan.append(row.key)
        instrument = _instrument(row, scrip)
        resolution.instruments.append(instrument)
        if not instrument.mappings:
            resolution.without_provider.append(row.key)
        for mapping in instrument.mappings:
            text = _clash(mapping, row, taken)
            if text:
                resolution.problems.append(Problem(row.line, text))
    return resolution


def listed_contracts(
    master: ScripMaster, underlyings: Sequence[str], expiries: int, today: date, known: Collection[str]
) -> tuple[list[ListedInstrument], list[str]]:
    """Return the nearest contracts of underlyings as rows of a list, and the underlyings that have none.

    Contracts whose keys are `known` are left out: the list already has them.
    """
    rows = []
    missing = []
    for underlying in underlyings:
        contracts = master.contracts([underlying], expiries, today)
        if not contracts:
            missing.append(underlying)
        rows += [_listed(scrip) for scrip in contracts if f"{scrip.exchange}:{scrip.symbol}" not in known]
    return rows, missing


def _find(row: ListedInstrument, master: ScripMaster) -> ScripRow | None:
    if row.dhan_search_code is not None:
        return master.find_by_search_code(row.exchange, row.dhan_search_code, row.expiry)
    return master.find(row.exchange, row.symbol, row.asset_class)


def _instrument(row: ListedInstrument, scrip: ScripRow | None) -> WantedInstrument:
    mappings = []
    if scrip is not None:
        mappings.append(WantedMapping("DHAN", scrip.search_code, scrip.segment, scrip.security_id))
    at_yahoo = row.yahoo_symbol or yahoo_symbol(row.exchange, row.symbol, row.asset_class)
    if at_yahoo is not None:
        mappings.append(WantedMapping("YF", at_yahoo))
    return WantedInstrument(
        exchange=row.exchange,
        symbol=row.symbol,
        name=row.name,
        asset_class=row.asset_class,
        currency=row.currency,
        tick_size=row.tick_size or (scrip.tick_size if scrip else None),
        lot_size=row.lot_size or (scrip.lot_size if scrip else None),
        underlying=row.underlying,
        expiry=row.expiry,
        strike=row.strike,
        option_type=row.option_type,
        isin=scrip.isin if scrip else None,
        mappings=tuple(mappings),
    )


def _clash(
    mapping: WantedMapping,
    row: ListedInstrument,
    taken: dict[tuple[str, str | None, str, str], tuple[str, int]],
) -> str:
    names = [("symbol", mapping.search_code)]
    if mapping.security_id is not None:
        names.append(("security id", mapping.security_id))
    for kind, name in names:
        key, line = taken.setdefault((mapping.provider, mapping.segment, kind, name), (row.key, row.line))
        if key != row.key:
            place = f"{mapping.segment} " if mapping.segment else ""
            return f"{row.key}: {kind} {place}{name} of {mapping.provider} is that of {key} in line {line}"
    return ""


def _listed(scrip: ScripRow) -> ListedInstrument:
    return ListedInstrument(
        line=scrip.line,
        exchange=scrip.exchange,
        symbol=scrip.symbol,
        name=scrip.name[:200],
        asset_class=scrip.asset_class,
        currency="INR",
        underlying=scrip.underlying,
        expiry=scrip.expiry,
        strike=scrip.strike,
        option_type=scrip.option_type,
    )
