"""Reads the list of instruments people write: CSV lines in, checked rows or all problems out. Pure.

The header is `exchange,symbol,name,asset_class,currency`, and after these any of
`tick_size,lot_size,underlying,expiry,strike,option_type,yahoo_symbol,dhan_search_code`.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Collection, Iterable
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import msgspec

from data_migration.sources.contract_symbols import parse_contract_symbol, underlying_key
from services.market_data.instruments import AssetClass

REQUIRED_COLUMNS = ("exchange", "symbol", "name", "asset_class", "currency")
OPTIONAL_COLUMNS = (
    "tick_size",
    "lot_size",
    "underlying",
    "expiry",
    "strike",
    "option_type",
    "yahoo_symbol",
    "dhan_search_code",
)
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.&_-]{0,63}")
_KEY = re.compile(r"[A-Z][A-Z0-9]*:[A-Z0-9][A-Z0-9.&_-]{0,63}")
_CURRENCY = re.compile(r"[A-Za-z]{3,10}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NEEDS_EXPIRY = frozenset({"NFO", "BFO", "MCX", "CDS"})
_CLASSES = tuple(member.value for member in AssetClass)


class ListedInstrument(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of the list. What is None was left blank."""

    line: int
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
    yahoo_symbol: str | None = None
    dhan_search_code: str | None = None

    @property
    def key(self) -> str:
        """The instrument key."""
        return f"{self.exchange}:{self.symbol}"


class _Terms(NamedTuple):
    underlying: str | None
    expiry: date | None = None
    strike: Decimal | None = None
    option_type: str | None = None


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing wrong with the list: its line and what to correct."""

    line: int
    text: str


def read_instrument_list(
    lines: Iterable[str], exchanges: Collection[str]
) -> tuple[list[ListedInstrument], list[Problem]]:
    """Return the rows of a list and everything that is wrong with it, by line.

    `exchanges` are the codes a row may name. When there is a problem the rows are not to be used.
    """
    reader = csv.reader(lines, strict=True)
    problems: list[Problem] = []
    rows: list[ListedInstrument] = []
    columns: list[str] | None = None
    while True:
        try:
            fields = [text.strip() for text in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            problems.append(Problem(reader.line_num, f"not CSV: {error}"))
            continue
        line = reader.line_num
        if columns is None:
            columns = [name.lstrip("\ufeff").lower() for name in fields]
            header_problems = _check_header(columns)
            if header_problems:
                return [], [Problem(line, text) for text in header_problems]
            continue
        if not any(fields):
            continue
        if len(fields) != len(columns):
            problems.append(Problem(line, f"{len(fields)} fields, the header has {len(columns)}"))
            continue
        row = _Row(line, dict(zip(columns, fields, strict=True)), exchanges)
        instrument = row.read()
        problems += [Problem(line, text) for text in row.problems]
        if instrument is not None:
            rows.append(instrument)
    if columns is None:
        problems.append(Problem(1, f"the list is empty; its first line is {','.join(REQUIRED_COLUMNS)}"))
    problems += _check_uniqueness(rows)
    return rows, sorted(problems)


def _check_header(columns: list[str]) -> list[str]:
    if tuple(columns[: len(REQUIRED_COLUMNS)]) != REQUIRED_COLUMNS:
        return [f"the header must begin with {','.join(REQUIRED_COLUMNS)}"]
    problems = []
    extra = columns[len(REQUIRED_COLUMNS) :]
    for name in extra:
        if name not in OPTIONAL_COLUMNS:
            near = difflib.get_close_matches(name, OPTIONAL_COLUMNS, n=1, cutoff=0.0)[0]
            problems.append(f"unknown column {name!r} (did you mean {near}?)")
        elif extra.count(name) > 1:
            problems.append(f"the column {name} appears twice")
    return sorted(set(problems))


def _check_uniqueness(rows: list[ListedInstrument]) -> list[Problem]:
    problems = []
    keys: dict[str, int] = {}
    yahoo: dict[str, int] = {}
    for row in rows:
        first = keys.setdefault(row.key, row.line)
        if first != row.line:
            problems.append(Problem(row.line, f"{row.key} stands in line {first} already"))
        if row.yahoo_symbol is not None:
            first = yahoo.setdefault(row.yahoo_symbol, row.line)
            if first != row.line:
                problems.append(
                    Problem(row.line, f"yahoo_symbol {row.yahoo_symbol} stands in line {first} already")
                )
    return problems


class _Row:
    """Checks one row; collects every problem instead of stopping at the first."""

    def __init__(self, line: int, texts: dict[str, str], exchanges: Collection[str]) -> None:
        self._line = line
        self._texts = texts
        self._exchanges = exchanges
        self.problems: list[str] = []

    def read(self) -> ListedInstrument | None:
        for column, text in self._texts.items():
            if _CONTROL.search(text):
                self.problems.append(f"{column} has a control character")
        exchange = self._choice("exchange", self._exchanges)
        symbol = self._matching("symbol", _SYMBOL, "capital letters, digits and . & _ -")
        asset_class = self._choice("asset_class", _CLASSES)
        currency = self._matching("currency", _CURRENCY, "a code such as INR")
        name = self._texts["name"]
        if not 0 < len(name) <= 200:
            self.problems.append("name is blank" if not name else "name is longer than 200 characters")
        tick_size = self._number("tick_size", decimals=10)
        lot_size = self._lot_size()
        terms = self._terms(exchange, symbol, asset_class)
        yahoo, dhan = self._code("yahoo_symbol"), self._code("dhan_search_code")
        if self.problems:
            return None
        return ListedInstrument(
            line=self._line,
            exchange=exchange,
            symbol=symbol,
            name=name,
            asset_class=asset_class,
            currency=currency,
            tick_size=tick_size,
            lot_size=lot_size,
            underlying=terms.underlying,
            expiry=terms.expiry,
            strike=terms.strike,
            option_type=terms.option_type,
            yahoo_symbol=yahoo,
            dhan_search_code=dhan,
        )

    def _text(self, column: str) -> str:
        return self._texts.get(column, "")

    def _choice(self, column: str, allowed: Collection[str]) -> str:
        text = self._text(column)
        if text not in allowed:
            self.problems.append(f"{column} {text!r} is none of {' '.join(allowed)}")
        return text

    def _matching(self, column: str, pattern: re.Pattern[str], wanted: str) -> str:
        text = self._text(column)
        if not pattern.fullmatch(text):
            self.problems.append(f"{column} {text!r} is not {wanted}")
        return text

    def _code(self, column: str) -> str | None:
        text = self._text(column)
        if len(text) > 128:
            self.problems.append(f"{column} is longer than 128 characters")
        return text or None

    def _number(self, column: str, decimals: int) -> Decimal | None:
        text = self._text(column)
        if not text:
            return None
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("NaN")
        if not (number.is_finite() and 0 < number < 10**9):
            self.problems.append(f"{column} {text!r} is not a number greater than zero")
            return None
        if number != round(number, decimals):
            self.problems.append(f"{column} {text!r} has more than {decimals} decimals")
        return number

    def _lot_size(self) -> int | None:
        number = self._number("lot_size", decimals=0)
        return None if number is None else int(number)

    def _terms(self, exchange: str, symbol: str, asset_class: str) -> _Terms:
        """Return the terms of a contract, or the underlying alone for everything else.

        What the symbol itself says need not be repeated in the other columns, and must not differ.
        """
        strike = self._number("strike", decimals=6)
        option_type = self._text("option_type") or None
        expiry = self._date("expiry")
        underlying = self._text("underlying") or None
        if underlying and not _KEY.fullmatch(underlying):
            self.problems.append(f"underlying {underlying!r} is not an instrument key such as NSE:NIFTY")
        if asset_class not in ("future", "option"):
            given = [column for column in ("expiry", "strike", "option_type") if self._text(column)]
            if given and asset_class in _CLASSES:
                self.problems.append(f"{' and '.join(given)} given for asset_class {asset_class}")
            return _Terms(underlying)
        said = parse_contract_symbol(symbol)
        if said is not None:
            self._agree("expiry", expiry, said.expiry)
            self._agree("strike", strike, said.strike)
            self._agree("option_type", option_type, said.option_type)
            expiry, strike, option_type = said.expiry, said.strike, said.option_type
            underlying = underlying or underlying_key(exchange, said.underlying)
        if asset_class == "future" and (strike is not None or option_type is not None):
            self.problems.append("a future has neither strike nor option_type")
        if asset_class == "future" and expiry is None and exchange in _NEEDS_EXPIRY:
            self.problems.append("a future needs an expiry")
        if asset_class == "option":
            terms = {
                "underlying": underlying,
                "expiry": expiry,
                "strike": strike,
                "option_type": option_type,
            }
            missing = [name for name, value in terms.items() if value is None and not self._mentioned(name)]
            if missing:
                self.problems.append(f"an option needs {', '.join(missing)}")
        if option_type is not None and option_type not in ("CE", "PE"):
            self.problems.append(f"option_type {option_type!r} is neither CE nor PE")
        return _Terms(underlying, expiry, strike, option_type)

    def _mentioned(self, column: str) -> bool:
        return any(problem.startswith(f"{column} ") for problem in self.problems)

    def _agree(self, column: str, written: object, said: object) -> None:
        if written is not None and written != said:
            self.problems.append(f"{column} {self._text(column)} differs from the one in the symbol")

    def _date(self, column: str) -> date | None:
        text = self._text(column)
        if not text:
            return None
        try:
            day = date.fromisoformat(text)
        except ValueError:
            day = None
        # Python reads 20261231 as well; people who type it may mean something else.
        if day is None or day.isoformat() != text:
            self.problems.append(f"{column} {text!r} is not a date such as 2026-12-31")
            return None
        return day
