"""Reads Dhan's instrument master, compact or detailed. Pure: lines in, instruments and a report out.

A row that we do not trade in (bonds, a segment without a feed) is counted as left out; one that
cannot be understood is counted as odd, with its line and the reason. Neither stops the reading.

Source: DhanHQ v2 instruments documentation; rows of the files as published.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from datetime import date

import msgspec

from data_migration.sources.dhan_scrip_rows import (
    SHARE_SERIES,
    RawRow,
    RowIsNotOurs,
    RowIsOdd,
    ScripRow,
    scrip_row,
)
from services.errors import ConfigurationError

# Columns in the order of RawRow's fields. The compact form has no ISIN and no column for the
# underlying; the detailed form has no trading symbol, a share's is in UNDERLYING_SYMBOL.
_COMPACT = (
    "SEM_EXM_EXCH_ID",
    "SEM_SEGMENT",
    "SEM_SMST_SECURITY_ID",
    "SEM_INSTRUMENT_NAME",
    "SEM_TRADING_SYMBOL",
    "SEM_TRADING_SYMBOL",
    "SEM_CUSTOM_SYMBOL",
    "SEM_LOT_UNITS",
    "SEM_EXPIRY_DATE",
    "SEM_STRIKE_PRICE",
    "SEM_OPTION_TYPE",
    "SEM_TICK_SIZE",
    "SEM_EXCH_INSTRUMENT_TYPE",
    "SEM_SERIES",
)
_DETAILED = (
    "EXCH_ID",
    "SEGMENT",
    "SECURITY_ID",
    "INSTRUMENT",
    "UNDERLYING_SYMBOL",
    "SYMBOL_NAME",
    "DISPLAY_NAME",
    "LOT_SIZE",
    "SM_EXPIRY_DATE",
    "STRIKE_PRICE",
    "OPTION_TYPE",
    "TICK_SIZE",
    "INSTRUMENT_TYPE",
    "SERIES",
    "ISIN",
)
_EMPTY = frozenset({"", "NA"})
ODD_ROWS_KEPT = 50


class OddRow(msgspec.Struct, frozen=True):
    """One row that could not be understood: its line, why, and what it says."""

    line: int
    reason: str
    detail: str


class ReadingReport(msgspec.Struct):
    """What became of the lines: rows left out on purpose and odd rows, both counted by reason."""

    lines: int = 0
    left_out: Counter[str] = msgspec.field(default_factory=Counter)
    odd: Counter[str] = msgspec.field(default_factory=Counter)
    odd_rows: list[OddRow] = msgspec.field(default_factory=list)

    def add_odd(self, line: int, reason: str, detail: str) -> None:
        """Count an odd row; the first fifty are kept."""
        self.odd[reason] += 1
        if len(self.odd_rows) < ODD_ROWS_KEPT:
            self.odd_rows.append(OddRow(line, reason, detail[:120]))


def read_rows(lines: Iterable[str], report: ReadingReport) -> Iterator[ScripRow]:
    """Yield the instruments in the lines of a master; the rest is accounted for in `report`.

    The two forms are told apart by their first line. Raises `ConfigurationError` when it is neither.
    """
    reader = csv.reader(lines)
    positions, width = _positions(next(reader, []))
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report.lines = reader.line_num
            report.add_odd(reader.line_num, "not CSV", str(error))
            continue
        report.lines = line = reader.line_num
        if not fields:
            continue
        if len(fields) < width - 1 or any(text.strip() for text in fields[width:]):
            report.add_odd(line, "wrong number of fields", f"{len(fields)} instead of {width}")
            continue
        texts = [fields[position].strip() if position < len(fields) else "" for position in positions]
        raw = RawRow(*("" if text in _EMPTY else text for text in texts))
        try:
            yield scrip_row(raw, line)
        except RowIsNotOurs as reason:
            report.left_out[str(reason)] += 1
        except RowIsOdd as error:
            report.add_odd(line, error.reason, error.detail)


def has_known_header(line: str) -> bool:
    """Tell whether the first line of a file is one of either form."""
    names = _names(next(csv.reader([line]), []))
    return any(all(column in names for column in form) for form in (_COMPACT, _DETAILED))


def _names(header: list[str]) -> list[str]:
    names = [name.strip().lstrip("\ufeff").upper() for name in header]
    while names and not names[-1]:
        names.pop()
    return names


def _positions(header: list[str]) -> tuple[list[int], int]:
    names = _names(header)
    for form in (_COMPACT, _DETAILED):
        if all(column in names for column in form):
            return [names.index(column) for column in form], len(names)
    shown = ",".join(names)[:60] or "empty"
    raise ConfigurationError(
        f"not Dhan's scrip master (first line: {shown}): take api-scrip-master.csv or "
        "api-scrip-master-detailed.csv from https://images.dhan.co/api-data/"
    )


class ScripMaster:
    """The instruments of a master, found by our names or by Dhan's."""

    def __init__(self, rows: Iterable[ScripRow], report: ReadingReport) -> None:
        self.report = report
        self._rows: dict[tuple[str, str], ScripRow] = {}
        self._by_search_code: dict[tuple[str, str], list[ScripRow]] = defaultdict(list)
        self._contracts: dict[str, list[ScripRow]] = defaultdict(list)
        ids: dict[tuple[str, str], ScripRow] = {}
        for row in rows:
            first = ids.setdefault((row.segment, row.security_id), row)
            if first is not row:
                report.add_odd(
                    row.line, "security id twice", f"{row.segment} {row.security_id}, as in line {first.line}"
                )
                continue
            self._add(row)

    @classmethod
    def read(cls, lines: Iterable[str]) -> ScripMaster:
        """Return the master in these lines. Raises `ConfigurationError` when they are something else."""
        report = ReadingReport()
        return cls(read_rows(lines, report), report)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, exchange: str, symbol: str, asset_class: str) -> ScripRow | None:
        """Return the row of an instrument, None when the master does not have it."""
        return self._rows.get((_kind(asset_class), f"{exchange}:{symbol}"))

    def find_by_search_code(self, exchange: str, code: str, expiry: date | None = None) -> ScripRow | None:
        """Return the row Dhan knows by `code` (`RELIANCE-EQ`, `NIFTY`, `NIFTY-Dec2026-25000-CE`).

        A share's code without a series means its first series. The weekly expiries of a month share
        a contract's name: `expiry` decides. None when there is no such row, or several and nothing to
        decide by.
        """
        code = code.upper()
        rows = self._by_search_code.get((exchange, code), [])
        if not rows and exchange in SHARE_SERIES and split_search_code(code)[1] not in SHARE_SERIES[exchange]:
            return self.find(exchange, code, "equity")
        if expiry is not None:
            rows = [row for row in rows if row.expiry == expiry]
        return rows[0] if len(rows) == 1 else None

    def contracts(self, underlyings: Collection[str], expiries: int, today: date) -> list[ScripRow]:
        """Return the futures and options of underlyings (`NIFTY`, `GOLD`), nearest expiries only.

        `expiries` is how many of them are taken, counted apart for futures and for options of each
        exchange, from `today` on.
        """
        chosen: list[ScripRow] = []
        for underlying in underlyings:
            by_series: dict[tuple[str, str], list[ScripRow]] = defaultdict(list)
            for row in self._contracts.get(underlying, []):
                if row.expiry is not None and row.expiry >= today:
                    by_series[(row.exchange, row.asset_class)].append(row)
            for rows in by_series.values():
                nearest = sorted({row.expiry for row in rows if row.expiry is not None})[:expiries]
                chosen += [row for row in rows if row.expiry in nearest]
        return chosen

    def _add(self, row: ScripRow) -> None:
        key = (_kind(row.asset_class), f"{row.exchange}:{row.symbol}")
        known = self._rows.get(key)
        if known is None or _rank(row) < _rank(known):
            self._rows[key] = row
        elif _rank(row) == _rank(known):
            self.report.add_odd(row.line, "instrument twice", f"{key[1]}, as in line {known.line}")
            return
        codes = {row.search_code} if row.series else {row.search_code, row.trading_symbol}
        for code in codes:
            self._by_search_code[(row.exchange, code.upper())].append(row)
        if row.underlying is not None:
            self._contracts[row.underlying.partition(":")[2]].append(row)


def split_search_code(code: str) -> tuple[str, str]:
    """Return symbol and series of `BAJAJ-AUTO-EQ`: the series stands behind the last dash."""
    symbol, _, series = code.rpartition("-")
    return (symbol, series) if symbol else (code, "")


def _kind(asset_class: str) -> str:
    return "share" if asset_class in ("equity", "etf") else asset_class


def _rank(row: ScripRow) -> int:
    """A share listed in several series is found under the first of them."""
    return SHARE_SERIES[row.exchange].index(row.series) if row.series else 0
